//! Removes the fields of cached PipelineRuns and TaskRuns that [`read`](super::read::read) does not
//! use.

use super::objects::{PipelineRun, PipelineRunSpec, TaskRun};

/// Keeps metadata, `spec.status` and the used part of the status of a PipelineRun.
pub fn pipeline_run(run: &mut PipelineRun) {
    run.metadata.managed_fields = None;
    run.spec = PipelineRunSpec {
        status: run.spec.status.take(),
        ..PipelineRunSpec::default()
    };
}

/// Keeps labels and the used part of the status of a TaskRun.
pub fn task_run(run: &mut TaskRun) {
    run.metadata.managed_fields = None;
    run.metadata.annotations = None;
    run.metadata.owner_references = None;
}
