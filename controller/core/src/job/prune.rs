//! Removes the fields of cached Jobs that [`read`](super::read::read) does not use: with ten thousand
//! objects they would take most of the memory.

use k8s_openapi::api::batch::v1::{Job, JobSpec};

/// Keeps metadata, status and suspension and deadline of a Job.
pub fn job(job: &mut Job) {
    job.metadata.managed_fields = None;
    job.spec = job.spec.take().map(|spec| JobSpec {
        suspend: spec.suspend,
        active_deadline_seconds: spec.active_deadline_seconds,
        ..JobSpec::default()
    });
}
