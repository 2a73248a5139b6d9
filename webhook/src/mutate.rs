//! The mutating handler: refuses what breaks a static rule, in our words and before the schema
//! speaks, fills in the digest where that is wanted, and adds the finalizer.

use std::sync::Arc;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation};
use serde_json::json;
use wfe_model::FINALIZER;
use wfe_model::rules::{self, Filled, Violation};
use wfe_model::workflow_execution::WorkflowExecutionSpec;
use wfe_peers::catalog::Catalog;

use crate::args::ImageDigest;
use crate::created::Created;
use crate::refusal::Refusal;
use crate::review::{Request, Verdict};
use crate::scope::Scope;
use crate::validate::in_full;

/// Completes creates.
pub struct Mutator {
    /// Where workflows are looked up.
    pub catalog: Arc<dyn Catalog>,
    /// What to do about a missing digest.
    pub image_digest: ImageDigest,
    /// Where requests are run.
    pub scope: Scope,
}

impl Mutator {
    /// Judges and completes a create; what is patched in is there only once, however often this is
    /// called.
    pub async fn mutate(&self, request: &Request<'_>) -> Verdict {
        let created = match Created::read(request) {
            Ok(created) => created,
            Err(refusal) => return Verdict::refuse(vec![refusal]),
        };
        let Created {
            mut spec,
            finalizers,
        } = created;
        let mut refusals = self.scope.refusal(&request.namespace);
        let filled = self.fill(&mut spec).await;
        let violations = match rules::check(&spec) {
            Ok(_) => Vec::new(),
            Err(violations) => self.with_the_catalogs(violations, &spec).await,
        };
        // Of a reference that could not be completed, one thing is said.
        let told = filled.is_err();
        let image_told = |it: &Violation| {
            matches!(
                it,
                Violation::ImageInvalid { .. }
                    | Violation::ImageMismatch { .. }
                    | Violation::WorkflowNotFound { .. }
            )
        };
        let violations = violations
            .into_iter()
            .filter(|it| !(told && image_told(it)));
        refusals.extend(violations.map(Refusal::Spec));
        let filled = filled.unwrap_or_else(|refusal| {
            refusals.push(refusal);
            None
        });
        if !refusals.is_empty() {
            return Verdict::refuse(refusals);
        }
        let verdict = Verdict {
            patch: Some(patch(filled.as_ref(), finalizers.as_deref())),
            ..Verdict::allow()
        };
        match filled {
            None => verdict,
            Some(Filled { field, reference }) => verdict.warn(&format!(
                "spec.{field}: the digest is the catalog's: {reference}"
            )),
        }
    }

    /// Completes a reference without a digest by the catalog's, where that is wanted and possible.
    async fn fill(&self, spec: &mut WorkflowExecutionSpec) -> Result<Option<Filled>, Refusal> {
        if self.image_digest == ImageDigest::Require || !rules::lacks_digest(spec) {
            return Ok(None);
        }
        let workflow_id = spec.workflow_ref.workflow_id.clone();
        match self.catalog.lookup(&workflow_id).await {
            Ok(Some(workflow)) => rules::fill(spec, &workflow).map_err(Refusal::Spec),
            Ok(None) => Err(Refusal::Spec(Violation::WorkflowNotFound { workflow_id })),
            // A bundle may go without; the catalog's digest is what will run.
            Err(_) if spec.workflow_ref.container_image.is_none() => Ok(None),
            Err(error) => Err(Refusal::Unavailable(format!(
                "the digest cannot be filled in, because the workflow catalog cannot be asked ({})",
                in_full(&error)
            ))),
        }
    }

    /// What the catalog would say next is said at once, where it is known.
    async fn with_the_catalogs(
        &self,
        violations: Vec<Violation>,
        spec: &WorkflowExecutionSpec,
    ) -> Vec<Violation> {
        let found = self.catalog.lookup(&spec.workflow_ref.workflow_id).await;
        let Ok(Some(workflow)) = found else {
            return violations;
        };
        rules::validate(spec, Err(violations), &workflow)
            .err()
            .unwrap_or_default()
    }
}

/// What is missing, and nothing else.
fn patch(filled: Option<&Filled>, finalizers: Option<&[String]>) -> Patch {
    let pointer = |path: &str| PointerBuf::from_tokens(path.split('.'));
    let filled = filled.map(|Filled { field, reference }| {
        PatchOperation::Replace(ReplaceOperation {
            path: pointer(&format!("spec.{field}")),
            value: json!(reference),
        })
    });
    let add = |path, value| {
        let path = pointer(path);
        Some(PatchOperation::Add(AddOperation { path, value }))
    };
    let finalizer = match finalizers {
        Some(present) if present.iter().any(|it| it == FINALIZER) => None,
        Some(_) => add("metadata.finalizers.-", json!(FINALIZER)),
        None => add("metadata.finalizers", json!([FINALIZER])),
    };
    Patch(filled.into_iter().chain(finalizer).collect())
}
