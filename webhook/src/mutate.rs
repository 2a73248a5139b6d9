//! The mutating handler: denies a spec that breaks a static rule, fills in the digest if
//! configured, and adds the finalizer.
//!
//! Static rules are checked here, before the schema validation of the API server, so that one
//! denial lists every violation, including those that need the workflow catalog.

use std::sync::Arc;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation};
use serde_json::json;
use tokio::time::Instant;
use wfe_model::FINALIZER;
use wfe_model::rules::{self, Filled, Violation};
use wfe_model::workflow_execution::{Requester, WorkflowExecutionSpec};
use wfe_peers::catalog::Catalog;

use crate::args::ImageDigest;
use crate::created::Created;
use crate::refusal::Refusal;
use crate::review::{Request, UserInfo, Verdict};
use crate::scope::Scope;
use crate::validate::lookup;

/// Reviews and completes CREATE requests.
pub struct Mutator {
    /// The workflow catalog.
    pub catalog: Arc<dyn Catalog>,
    /// Handling of a missing digest.
    pub image_digest: ImageDigest,
    /// The watched namespaces.
    pub scope: Scope,
}

impl Mutator {
    /// Reviews a CREATE request and returns the patch that completes the object. Idempotent: a
    /// reinvocation with the patched object returns an empty patch.
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
        let violations = match rules::check_in(&request.namespace, &spec) {
            Ok(_) => Vec::new(),
            Err(violations) => {
                self.with_catalog_violations(violations, &spec, deadline)
                    .await
            }
        };
        // A failed fill already says what is wrong with the reference: drop the violations that
        // follow from it.
        let fill_failed = filled.is_err();
        let follows_from_fill = |it: &Violation| {
            matches!(
                it,
                Violation::ReferenceInvalid { .. }
                    | Violation::ImageMismatch { .. }
                    | Violation::WorkflowNotFound { .. }
                    | Violation::WorkflowInvalid { .. }
            )
        };
        let violations = violations
            .into_iter()
            .filter(|it| !(fill_failed && follows_from_fill(it)));
        refusals.extend(violations.map(Refusal::Spec));
        let filled = filled.unwrap_or_else(|refusal| {
            refusals.push(refusal);
            None
        });
        refusals.extend(self.scope.refusal(&request.namespace));
        let requester = requester(request.user());
        let stamped = spec.requested_by.as_ref();
        if stamped.is_some_and(|it| *it != requester) {
            let user = requester.username.clone();
            refusals.push(Refusal::RequesterForged { user });
        }
        let is_new = stamped.is_none() && !requester.username.is_empty();
        let requester = is_new.then_some(requester);
        if !refusals.is_empty() {
            return Verdict::refuse(refusals);
        }
        let verdict = Verdict {
            patch: Some(patch(
                filled.as_ref(),
                requester.as_ref(),
                finalizers.as_deref(),
            )),
            ..Verdict::allow()
        };
        match filled {
            None => verdict,
            Some(Filled { field, digest, .. }) => verdict.warn(&format!(
                "spec.{}: {digest} was filled in from the workflow catalog",
                field.path()
            )),
        }
    }

    /// Fills the digest of the catalog entry into a reference without a digest, if configured.
    async fn fill(
        &self,
        spec: &mut WorkflowExecutionSpec,
        deadline: Instant,
    ) -> Result<Option<Filled>, Refusal> {
        let lacking = rules::lacking_digest(spec);
        let Some(field) = lacking.filter(|_| self.image_digest == ImageDigest::Fill) else {
            return Ok(None);
        };
        let workflow_id = spec.workflow_ref.workflow_id.clone();
        match lookup(deadline, &*self.catalog, &workflow_id).await {
            Ok(Ok(workflow)) => rules::fill(spec, field, &workflow).map_err(Refusal::Spec),
            Ok(Err(violation)) => Err(Refusal::Spec(violation)),
            // The controller executes the digest of the catalog entry.
            Err(_) if !field.needs_digest() => Ok(None),
            Err(why) => Err(Refusal::Unavailable {
                field: format!("spec.{}", field.path()),
                why: format!(
                    "the image digest cannot be filled in because the workflow catalog is unavailable ({why}): specify the digest, or try again later"
                ),
            }),
        }
    }

    /// Adds the violations of the rules that depend on the catalog entry, so that the user sees all
    /// violations at once. If the catalog is unavailable, `violations` is returned unchanged.
    async fn with_catalog_violations(
        &self,
        mut violations: Vec<Violation>,
        spec: &WorkflowExecutionSpec,
        deadline: Instant,
    ) -> Vec<Violation> {
        let workflow_id = spec.workflow_ref.workflow_id.clone();
        if workflow_id.is_empty() {
            return violations;
        }
        match lookup(deadline, &*self.catalog, &workflow_id).await {
            Ok(Ok(workflow)) => rules::validate(spec, Err(violations.clone()), &workflow)
                .err()
                .unwrap_or(violations),
            Ok(Err(violation)) => {
                violations.push(violation);
                violations
            }
            Err(_) => violations,
        }
    }
}

fn requester(user: &UserInfo) -> Requester {
    Requester {
        username: user.username.clone(),
        uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
    }
}

/// Sets the filled reference and the requester, and adds the finalizer unless it is present.
fn patch(
    filled: Option<&Filled>,
    requester: Option<&Requester>,
    finalizers: Option<&[String]>,
) -> Patch {
    let pointer = |path: &str| PointerBuf::from_tokens(path.split('.'));
    let filled = filled.map(
        |Filled {
             field, reference, ..
         }| {
            PatchOperation::Replace(ReplaceOperation {
                path: pointer(&format!("spec.{}", field.path())),
                value: json!(reference),
            })
        },
    );
    let add = |path, value| {
        let path = pointer(path);
        Some(PatchOperation::Add(AddOperation { path, value }))
    };
    let finalizer = match finalizers {
        Some(present) if present.iter().any(|it| it == FINALIZER) => None,
        Some(_) => add("metadata.finalizers.-", json!(FINALIZER)),
        None => add("metadata.finalizers", json!([FINALIZER])),
    };
    let requester = requester.and_then(|it| add("spec.requestedBy", json!(it)));
    let operations = filled.into_iter().chain(requester).chain(finalizer);
    Patch(operations.collect())
}
