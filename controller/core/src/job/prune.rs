//! Removes the fields of cached Jobs and pods that [`read`](super::read::read) does not use: with
//! ten thousand objects they would take most of the memory.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;

use crate::names::WORKFLOW_EXECUTION;

/// Keeps metadata, status and `spec.suspend` of a Job.
pub fn job(job: &mut Job) {
    job.metadata.managed_fields = None;
    job.spec = job.spec.take().map(|spec| JobSpec {
        suspend: spec.suspend,
        ..JobSpec::default()
    });
}

/// Keeps labels, one annotation, phase, reason, message, conditions and container statuses of a
/// pod.
pub fn pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| name == WORKFLOW_EXECUTION);
    }
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
