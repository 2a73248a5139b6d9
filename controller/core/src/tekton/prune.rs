//! Removes the fields of cached PipelineRuns and TaskRuns that [`read`](super::read::read) does not
//! use.

use super::objects::{PipelineRun, PipelineRunSpec, TaskRun};
use crate::names::WORKFLOW_EXECUTION;

/// Keeps metadata, `spec.status`, `spec.timeouts` and the used part of the status of a PipelineRun.
pub fn pipeline_run(run: &mut PipelineRun) {
    run.metadata.managed_fields = None;
    run.spec = PipelineRunSpec {
        status: run.spec.status.take(),
        timeouts: run.spec.timeouts.take(),
        ..PipelineRunSpec::default()
    };
}

/// Keeps labels, one annotation and the used part of the status of a TaskRun.
pub fn task_run(run: &mut TaskRun) {
    run.metadata.managed_fields = None;
    if let Some(annotations) = &mut run.metadata.annotations {
        annotations.retain(|name, _| name == WORKFLOW_EXECUTION);
    }
}
