//! The mutating handler: refuses what breaks a static rule, in our words and before the schema
//! speaks, fills in the digest where that is wanted, and adds the finalizer.

use std::sync::Arc;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation};
use serde_json::json;
use tokio::time::Instant;
use wfe_model::FINALIZER;
use wfe_model::rules::{self, Filled, Violation};
use wfe_model::workflow_execution::WorkflowExecutionSpec;
use wfe_peers::catalog::Catalog;

use crate::args::ImageDigest;
use crate::created::Created;
use crate::refusal::Refusal;
use crate::review::{Request, Verdict};
use crate::scope::Scope;
use crate::validate::within;

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
    pub async fn mutate(&self, request: &Request<'_>, deadline: Instant) -> Verdict {
        let created = match Created::read(request) {
            Ok(created) => created,
            Err(refusal) => return Verdict::refuse(vec![refusal]),
        };
        let Created {
            mut spec,
            finalizers,
        } = created;
        let mut refusals = Vec::new();
        let filled = self.fill(&mut spec, deadline).await;
        let violations = match rules::check(&spec) {
            Ok(_) => Vec::new(),
            Err(violations) => self.with_the_catalogs(violations, &spec, deadline).await,
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
        refusals.extend(self.scope.refusal(&request.namespace));
        if !refusals.is_empty() {
            return Verdict::refuse(refusals);
        }
        let verdict = Verdict {
            patch: Some(patch(filled.as_ref(), finalizers.as_deref())),
            ..Verdict::allow()
        };
        match filled {
            None => verdict,
            Some(Filled { field, reference }) => {
                let digest = reference.split('@').next_back().unwrap_or_default();
                verdict.warn(&format!(
                    "spec.{field}: the catalog's {digest} was filled in"
                ))
            }
        }
    }

    /// Completes a reference without a digest by the catalog's, where that is wanted and possible.
    async fn fill(
        &self,
        spec: &mut WorkflowExecutionSpec,
        deadline: Instant,
    ) -> Result<Option<Filled>, Refusal> {
        if self.image_digest == ImageDigest::Require || !rules::lacks_digest(spec) {
            return Ok(None);
        }
        let workflow_id = spec.workflow_ref.workflow_id.clone();
        match within(deadline, self.catalog.lookup(&workflow_id)).await {
            Ok(Some(workflow)) => rules::fill(spec, &workflow).map_err(Refusal::Spec),
            Ok(None) => Err(Refusal::Spec(Violation::WorkflowNotFound { workflow_id })),
            // A bundle may go without; the catalog's digest is what will run.
            Err(_) if spec.workflow_ref.container_image.is_none() => Ok(None),
            Err(why) => Err(Refusal::Unavailable {
                field: "spec.workflowRef.containerImage",
                why: format!(
                    "the digest cannot be filled in, because the workflow catalog cannot be asked ({why}): write it, or try again later"
                ),
            }),
        }
    }

    /// What the catalog would say next is said at once, where it is known.
    async fn with_the_catalogs(
        &self,
        mut violations: Vec<Violation>,
        spec: &WorkflowExecutionSpec,
        deadline: Instant,
    ) -> Vec<Violation> {
        let workflow_id = spec.workflow_ref.workflow_id.clone();
        if workflow_id.is_empty() {
            return violations;
        }
        match within(deadline, self.catalog.lookup(&workflow_id)).await {
            Ok(Some(workflow)) => rules::validate(spec, Err(violations.clone()), &workflow)
                .err()
                .unwrap_or(violations),
            Ok(None) => {
                let workflow_id = wfe_model::text::shortened(&workflow_id);
                violations.push(Violation::WorkflowNotFound { workflow_id });
                violations
            }
            Err(_) => violations,
        }
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
