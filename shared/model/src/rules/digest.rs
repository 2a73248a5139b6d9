//! Completes a reference without a digest with the digest of the workflow in the catalog, if both
//! have the same repository (BR-WE-014). No registry is contacted.

use crate::image::{Digest, ImageReference};
use crate::violation::Violation;
use crate::workflow::{Engine, Workflow};
use crate::workflow_execution::WorkflowExecutionSpec;

/// A field that was completed with a digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filled {
    /// Path in the spec.
    pub field: &'static str,
    /// The completed value.
    pub reference: String,
    /// The digest that was added.
    pub digest: Digest,
}

/// Whether the image or bundle of the spec has no digest.
pub fn lacks_digest(spec: &WorkflowExecutionSpec) -> bool {
    let text = match Engine::parse(&spec.execution_engine) {
        Some(Engine::Job) => &spec.workflow_ref.container_image,
        Some(Engine::Tekton) => &spec.workflow_ref.bundle_ref,
        None => return false,
    };
    text.as_ref().is_some_and(|text| !text.contains('@'))
}

/// Completes the reference in a spec that [has no digest](lacks_digest) with the digest of
/// `workflow`. An invalid reference is left unchanged, for [`check`](super::check) to report.
pub fn fill(
    spec: &mut WorkflowExecutionSpec,
    workflow: &Workflow,
) -> Result<Option<Filled>, Violation> {
    let digest = workflow.bundle.digest();
    let (field, text, scheme) = match Engine::parse(&spec.execution_engine) {
        Some(Engine::Job) => (
            "workflowRef.containerImage",
            &mut spec.workflow_ref.container_image,
            "",
        ),
        Some(Engine::Tekton) => (
            "workflowRef.bundleRef",
            &mut spec.workflow_ref.bundle_ref,
            "oci://",
        ),
        None => return Ok(None),
    };
    let completed = text.as_ref().map(|name| format!("{name}@{digest}"));
    let without_scheme = completed.as_ref().and_then(|it| it.strip_prefix(scheme));
    let Some(image) = without_scheme.and_then(ImageReference::parse) else {
        return Ok(None);
    };
    if !image.same_repository(&workflow.bundle) {
        return Err(Violation::ImageMismatch {
            field,
            found: text.clone().unwrap_or_default(),
            catalog: format!("{scheme}{}", workflow.bundle),
        });
    }
    let reference = format!("{scheme}{image}");
    *text = Some(reference.clone());
    Ok(Some(Filled {
        field,
        reference,
        digest: digest.clone(),
    }))
}
