//! Digests from the catalog: a reference by name only is completed with the digest of the workflow
//! that it names, where that is the same repository (BR-WE-014). No registry is asked.

use super::Violation;
use crate::image::ImageReference;
use crate::workflow::{Engine, Workflow};
use crate::workflow_execution::WorkflowExecutionSpec;

/// A field that got a digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filled {
    /// Path in the spec.
    pub field: &'static str,
    /// The field as it is now.
    pub reference: String,
}

/// Whether the field of the spec's engine names no content: there is something to fill in.
pub fn lacks_digest(spec: &WorkflowExecutionSpec) -> bool {
    let text = match Engine::parse(&spec.execution_engine) {
        Some(Engine::Job) => &spec.workflow_ref.container_image,
        Some(Engine::Tekton) => &spec.workflow_ref.bundle_ref,
        None => return false,
    };
    text.as_ref().is_some_and(|text| !text.contains('@'))
}

/// Completes the reference in a spec that [lacks](lacks_digest) a digest, with the digest of
/// `workflow`. A reference that nothing can be made of stays as it is, for
/// [`check`](super::check) to judge.
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
    let named = text.as_ref().map(|name| format!("{name}@{digest}"));
    let bare = named.as_ref().and_then(|it| it.strip_prefix(scheme));
    let Some(image) = bare.and_then(ImageReference::parse) else {
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
    Ok(Some(Filled { field, reference }))
}
