//! What is kept of Jobs and pods: what [`read`](super::read::read) looks at. With ten thousand objects
//! the rest is most of the memory.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;

use crate::names::WORKFLOW_EXECUTION;

/// A Job is read by its metadata, its status and whether it is suspended.
pub fn job(job: &mut Job) {
    job.metadata.managed_fields = None;
    job.spec = job.spec.take().map(|spec| JobSpec {
        suspend: spec.suspend,
        ..JobSpec::default()
    });
}

/// A pod is read by its labels, one annotation, phase, reason, conditions and container states.
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
