//! Completes a reference without a digest with the digest of the workflow in the catalog, if both
//! have the same repository (BR-WE-014). No registry is contacted.

use crate::engine::{Engine, ReferenceField};
use crate::image::{Digest, ImageReference};
use crate::violation::Violation;
use crate::workflow::Workflow;
use crate::workflow_execution::WorkflowExecutionSpec;

/// A field that was completed with a digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filled {
    /// The field.
    pub field: ReferenceField,
    /// The completed value.
    pub reference: String,
    /// The digest that was added.
    pub digest: Digest,
}

/// The field of the spec whose image or bundle has no digest.
pub fn lacking_digest(spec: &WorkflowExecutionSpec) -> Option<ReferenceField> {
    let field = Engine::parse(&spec.execution_engine)?.runs();
    let text = spec.workflow_ref.get(field)?;
    (!text.contains('@')).then_some(field)
}

/// Completes the reference in a `field` that [lacks a digest](lacking_digest) with the digest of
/// `workflow`. An invalid reference is left unchanged, for [`check`](super::check) to report.
pub fn fill(
    spec: &mut WorkflowExecutionSpec,
    field: ReferenceField,
    workflow: &Workflow,
) -> Result<Option<Filled>, Violation> {
    let (digest, scheme) = (workflow.bundle.digest(), field.scheme());
    let text = spec.workflow_ref.get(field).unwrap_or_default();
    let completed = format!("{text}@{digest}");
    let without_scheme = completed.strip_prefix(scheme);
    let Some(image) = without_scheme.and_then(ImageReference::parse) else {
        return Ok(None);
    };
    if !image.same_repository(&workflow.bundle) {
        return Err(Violation::ImageMismatch {
            field,
            found: text.to_owned(),
            catalog: format!("{scheme}{}", workflow.bundle),
        });
    }
    let reference = format!("{scheme}{image}");
    spec.workflow_ref.set(field, reference.clone());
    Ok(Some(Filled {
        field,
        reference,
        digest: digest.clone(),
    }))
}
