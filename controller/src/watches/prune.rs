//! Removes fields that no code reads: for ten thousand objects they are most of the memory.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use wfe_model::workflow_execution::WorkflowExecution;

use wfe_core::names::PAUSED;

pub(super) fn workflow_execution(wfe: &mut WorkflowExecution) {
    wfe.metadata.managed_fields = None;
}

/// Keeps the name, the deletion timestamp and the pause annotation.
pub(super) fn namespace(namespace: &mut PartialObjectMeta<Namespace>) {
    let metadata = &mut namespace.metadata;
    metadata.managed_fields = None;
    metadata.labels = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| name == PAUSED);
    }
}

pub(super) fn lease(lease: &mut Lease) {
    lease.metadata.managed_fields = None;
}
