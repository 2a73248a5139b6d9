//! Reads a PipelineRun, its TaskRuns and their pods as an [`Execution`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ContainerStateTerminated;
use kube::ResourceExt;
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::ExecutionRef;

use super::objects::{
    PENDING, PIPELINE_TASK, PipelineRun, PipelineSpec, StepState, TaskRun, TektonCondition,
    succeeded,
};
use crate::execution::{
    Cause, ContainerEnd, Execution, Facts, FailedTask, PodMaker, Progress, Tasks, Waiting,
    controller_of, is_alive,
};
use crate::names::{IMAGE, STARTED, WORKFLOW_EXECUTION_UID};
use crate::pod::{self, container_end, newest, trouble, waiting_for};
use crate::seen::Pod;

/// Tekton's name prefix of the containers that run the steps of a task.
const STEP_PREFIX: &str = "step-";
/// The result that is reported as the summary of a run.
const SUMMARY: &str = "summary";
/// Longest summary that is kept, in bytes.
const MAX_SUMMARY: usize = 4096;

/// Reason of a PipelineRun that ended because a client cancelled it.
const CANCELLED: &str = "Cancelled";

/// What makes the pods of this engine.
pub const POD_MAKER: PodMaker = PodMaker {
    kind: "TaskRun",
    label: "tekton.dev/taskRun",
};
/// Kind of the controllers of TaskRuns.
const TASK_RUN_CONTROLLER: &str = "PipelineRun";

fn ours(container: &str) -> bool {
    container.starts_with(STEP_PREFIX)
}

/// When the first step of a pod started.
pub fn began(pod: &Pod) -> Option<Timestamp> {
    pod::began(pod, ours)
}

/// The state of `run`, by its own status, its TaskRuns and their pods; those of other owners do not
/// count.
pub fn read(run: &PipelineRun, task_runs: &[Arc<TaskRun>], pods: &[Arc<Pod>]) -> Execution {
    let metadata = &run.metadata;
    let (task_runs, pods) = own(run, task_runs, pods);
    let (task_runs, pods) = (&task_runs[..], &pods[..]);
    let (api_version, kind) = Engine::Tekton.runs_as();
    let succeeded = run.status.as_ref().and_then(|it| succeeded(&it.conditions));
    let at = completed_at(run);
    let progress = match succeeded.map(|it| it.status.as_str()) {
        Some("True") => Progress::Succeeded {
            at,
            summary: summary(run),
        },
        Some("False") => Progress::Failed {
            at,
            facts: facts(run, succeeded, task_runs, pods),
        },
        _ => Progress::Active {
            waiting: held_back(run).or_else(|| waiting(pods)),
        },
    };
    let is_active = matches!(progress, Progress::Active { .. });
    Execution {
        reference: ExecutionRef {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: run.name_any(),
            namespace: run.namespace().unwrap_or_default(),
            uid: run.uid().unwrap_or_default(),
        },
        source_uid: run.labels().get(WORKFLOW_EXECUTION_UID).cloned(),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0),
        ending: metadata.deletion_timestamp.is_some() || is_active && is_stopped(run),
        deleted_at: run.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        held: is_pending(run) && !is_started(run),
        queued: false,
        resumed: None,
        began: pods.iter().filter_map(|pod| began(pod)).min(),
        timeout: timeout(run),
        image: run.annotations().get(IMAGE).cloned(),
        tasks: tasks(run, task_runs, &progress),
        // Tekton waits for the end of the steps; the pod ends a moment later.
        ends_with_pods: false,
        progress,
    }
}

/// How long `run` may take. Other clients write longer durations and fractions, too.
fn timeout(run: &PipelineRun) -> Option<Duration> {
    let own = &run.spec.timeouts.as_ref()?.pipeline;
    Duration::try_from(own.parse::<SignedDuration>().ok()?).ok()
}

/// The TaskRuns of `run`, and their pods.
fn own(
    run: &PipelineRun,
    task_runs: &[Arc<TaskRun>],
    pods: &[Arc<Pod>],
) -> (Vec<Arc<TaskRun>>, Vec<Arc<Pod>>) {
    let uid = run.metadata.uid.as_deref();
    let task_runs = task_runs.iter();
    let task_runs = task_runs.filter(|it| controller_of(it.as_ref(), TASK_RUN_CONTROLLER) == uid);
    let task_runs: Vec<_> = task_runs.cloned().collect();
    let uids: HashSet<_> = task_runs.iter().filter_map(|it| it.uid()).collect();
    let is_own = |pod: &&Arc<Pod>| {
        controller_of(pod.as_ref(), POD_MAKER.kind).is_some_and(|owner| uids.contains(owner))
    };
    (task_runs, pods.iter().filter(is_own).cloned().collect())
}

/// Whether a TaskRun has ended; until then Tekton may create its pod, again as well.
pub fn has_ended(task_run: &TaskRun) -> bool {
    let status = task_run.status.as_ref();
    let succeeded = status.and_then(|it| succeeded(&it.conditions));
    succeeded.is_some_and(|it| it.status != "Unknown")
}

/// The condition of a TaskRun whose failure fails the pipeline.
fn failure(task_run: &TaskRun) -> Option<&TektonCondition> {
    let condition = succeeded(&task_run.status.as_ref()?.conditions)?;
    let ignored = condition.reason.as_deref() == Some("FailureIgnored");
    (condition.status == "False" && !ignored).then_some(condition)
}

fn completed_at(run: &PipelineRun) -> Option<Timestamp> {
    Some(run.status.as_ref()?.completion_time.as_ref()?.0)
}

fn is_pending(run: &PipelineRun) -> bool {
    run.spec.status.as_deref() == Some(PENDING)
}

fn is_started(run: &PipelineRun) -> bool {
    run.annotations().contains_key(STARTED)
}

/// Whether a client has asked the run to stop.
fn is_stopped(run: &PipelineRun) -> bool {
    run.spec.status.is_some() && !is_pending(run)
}

/// A started run that is pending again was held back by another client.
fn held_back(run: &PipelineRun) -> Option<Waiting> {
    let message = "spec.status is PipelineRunPending, set by another client";
    (is_pending(run) && is_started(run))
        .then(|| waiting_for(Cause::Suspended, "PipelineRunPending", message))
}

/// Why the newest pod that has not ended does not run.
fn waiting(pods: &[Arc<Pod>]) -> Option<Waiting> {
    let alive = pods.iter().filter(|pod| is_alive(pod));
    let alive: Vec<_> = alive.cloned().collect();
    trouble(newest(&alive)?, ours)
}

/// How many of the pipeline's tasks have ended, those that are skipped apart.
fn tasks(run: &PipelineRun, task_runs: &[Arc<TaskRun>], progress: &Progress) -> Tasks {
    let status = run.status.as_ref();
    let declared = status.and_then(|it| it.pipeline_spec.as_ref());
    let declared = declared.map_or(0, |it| it.tasks.len() + it.finally.len());
    let skipped = status.map_or(0, |it| it.skipped_tasks.len());
    let completed = task_runs.iter().filter(|it| has_ended(it)).count();
    let total = declared.saturating_sub(skipped).max(task_runs.len());
    // The watch of TaskRuns may lag.
    let completed = match progress {
        Progress::Succeeded { .. } => total,
        _ => completed,
    };
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    Tasks {
        completed: count(completed),
        total: count(total),
    }
}

/// The text of the result [`SUMMARY`].
fn summary(run: &PipelineRun) -> Option<String> {
    let results = &run.status.as_ref()?.results;
    let text = results.iter().find(|it| it.name == SUMMARY)?.value.as_str();
    let text = text?.trim();
    let end = text.floor_char_boundary(MAX_SUMMARY);
    text.get(..end)
        .filter(|it| !it.is_empty())
        .map(str::to_owned)
}

fn facts(
    run: &PipelineRun,
    succeeded: Option<&TektonCondition>,
    task_runs: &[Arc<TaskRun>],
    pods: &[Arc<Pod>],
) -> Facts {
    let reason = succeeded.and_then(|it| it.reason.as_deref());
    let spec = run.status.as_ref().and_then(|it| it.pipeline_spec.as_ref());
    let failed = task_runs.iter().filter(|it| failure(it).is_some());
    let failed = failed.min_by_key(|it| {
        let status = it.status.as_ref();
        status.and_then(|it| it.completion_time.as_ref().map(|time| time.0))
    });
    let task_failure = failed.and_then(|it| failure(it));
    let task_reason = task_failure.and_then(|it| it.reason.as_deref());
    let step = failed.and_then(|it| failed_step(it));
    let ended = step.and_then(|step| step.terminated.as_ref());
    let ended = ended.filter(|it| may_have_run(it));
    Facts {
        reason: reason.map(str::to_owned),
        message: succeeded.and_then(|it| it.message.clone()),
        over_deadline: reason == Some("PipelineRunTimeout")
            || task_reason == Some("TaskRunTimeout"),
        pod_gone: false,
        cancelled: reason == Some(CANCELLED),
        task: failed.and_then(|it| failed_task(it, spec, step)),
        container: ended.map(|ended| ContainerEnd {
            oom_killed: ended.reason.as_deref() == Some("OOMKilled")
                || task_reason == Some("StepOOM"),
            // Tekton's own record of results, not the workflow's words.
            message: None,
            ..container_end(ended)
        }),
        waiting: task_failure
            .and_then(task_run_cause)
            .or_else(|| pods.iter().find_map(|pod| trouble(pod, ours)))
            .or_else(|| definition_cause(succeeded?)),
    }
}

/// Whether a terminated step may have run. Tekton makes up a state without a container for steps that
/// it stops; of these only one that was stopped while it ran has a start.
fn may_have_run(terminated: &ContainerStateTerminated) -> bool {
    let stopped = ["TaskRunTimeout", "TaskRunCancelled"];
    let reason = terminated.reason.as_deref().unwrap_or_default();
    terminated.container_id.is_some()
        || stopped.contains(&reason) && terminated.started_at.is_some()
}

/// The first step of a TaskRun that ended with an error; those after it are skipped.
fn failed_step(task_run: &TaskRun) -> Option<&StepState> {
    let mut steps = task_run.status.as_ref()?.steps.iter();
    steps.find(|step| {
        let failed = step.terminated.as_ref().is_some_and(|it| it.exit_code != 0);
        // `Continued`: the task ignores the error of this step.
        let ignored = ["Skipped", "Continued"];
        failed
            && !step
                .termination_reason
                .as_deref()
                .is_some_and(|it| ignored.contains(&it))
    })
}

fn failed_task(
    task_run: &TaskRun,
    spec: Option<&PipelineSpec>,
    step: Option<&StepState>,
) -> Option<FailedTask> {
    let name = task_run.labels().get(PIPELINE_TASK)?.clone();
    let tasks = spec.map(|spec| spec.tasks.iter().chain(&spec.finally));
    let index = tasks.and_then(|mut tasks| tasks.position(|it| it.name == name));
    Some(FailedTask {
        index: index.and_then(|index| i32::try_from(index).ok()),
        step: step.map(|step| step.name.clone()),
        name,
    })
}

/// Why no step of a failed TaskRun started, or why its pod was lost, by the reasons that Tekton
/// documents.
fn task_run_cause(condition: &TektonCondition) -> Option<Waiting> {
    let cause = match condition.reason.as_deref()? {
        "TaskRunImagePullFailed" | "PullImageFailed" => Cause::ImageNotPulled,
        "CreateContainerConfigError" => Cause::ContainerConfigInvalid,
        "PodAdmissionFailed" | "PodCreationFailed" => Cause::PodRefused,
        "ExceededResourceQuota" => Cause::QuotaExceeded,
        "ExceededNodeResources" => Cause::Unschedulable,
        "PodEvicted" => Cause::Disrupted,
        "TaskRunValidationFailed"
        | "TaskValidationFailed"
        | "TaskRunResolutionFailed"
        | "InvalidParamValue"
        | "ResourceVerificationFailed" => Cause::DefinitionInvalid,
        _ => return None,
    };
    Some(of_condition(cause, condition))
}

/// Why a PipelineRun failed before it started a task, by the reasons that Tekton documents.
fn definition_cause(condition: &TektonCondition) -> Option<Waiting> {
    let cause = match condition.reason.as_deref()? {
        "CouldntGetPipeline" => Cause::ImageNotPulled,
        "CELEvaluationFailed"
        | "CouldntGetTask"
        | "CreateRunFailed"
        | "InvalidMatrixParameterTypes"
        | "InvalidParamValue"
        | "InvalidPipelineResourceBindings"
        | "InvalidPipelineResultReference"
        | "InvalidTaskResultReference"
        | "InvalidTaskRunSpecs"
        | "InvalidWorkspaceBindings"
        | "ObjectParameterMissKeys"
        | "ParamArrayIndexingInvalid"
        | "ParameterMissing"
        | "ParameterTypeMismatch"
        | "PipelineInvalidGraph"
        | "PipelineValidationFailed"
        | "RequiredWorkspaceMarkedOptional"
        | "ResourceVerificationFailed" => Cause::DefinitionInvalid,
        _ => return None,
    };
    Some(of_condition(cause, condition))
}

fn of_condition(cause: Cause, condition: &TektonCondition) -> Waiting {
    let reason = condition.reason.as_deref().unwrap_or_default();
    let message = condition.message.as_deref().unwrap_or_default();
    waiting_for(cause, reason, message)
}
