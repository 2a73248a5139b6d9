//! What nobody reads is not kept: with ten thousand objects it is most of the memory.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::core::PartialObjectMeta;
use wfe_model::workflow_execution::WorkflowExecution;

use crate::names::PAUSED;

pub(super) fn workflow_execution(wfe: &mut WorkflowExecution) {
    wfe.metadata.managed_fields = None;
}

/// A Job is read by its metadata, its status and whether it is suspended.
pub(crate) fn job(job: &mut Job) {
    job.metadata.managed_fields = None;
    job.spec = job.spec.take().map(|spec| JobSpec {
        suspend: spec.suspend,
        ..JobSpec::default()
    });
}

/// A pod is read by its labels, phase, reason, conditions and container states.
pub(crate) fn pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    pod.spec = None;
    if let Some(status) = &mut pod.status {
        let (phase, conditions, containers) = (
            status.phase.take(),
            status.conditions.take(),
            status.container_statuses.take(),
        );
        let (reason, message) = (status.reason.take(), status.message.take());
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase,
            conditions,
            container_statuses: containers,
            reason,
            message,
            ..Default::default()
        };
    }
}

/// A namespace is read by its name, its deletion and one annotation.
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
