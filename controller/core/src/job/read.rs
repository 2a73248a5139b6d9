//! Reads a Job and its pods as an [`Execution`].

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::JobCondition;
use wfe_model::duration;
use wfe_model::workflow_execution::ExecutionRef;

use super::build::CONTAINER;
use crate::execution::{
    Cause, Execution, Facts, PodMaker, Progress, Tasks, Waiting, controller_of,
};
use crate::names::{IMAGE, JOB_NAME, KUEUE_QUEUE, STARTED, WORKFLOW_EXECUTION_UID};
use crate::pod::{self, container_statuses, ended, newest, trouble, waiting_for};
use crate::seen::{Job, Pod};

/// What makes the pods of this engine.
pub const POD_MAKER: PodMaker = PodMaker {
    kind: "Job",
    label: JOB_NAME,
};

fn ours(container: &str) -> bool {
    container == CONTAINER
}

/// When the workflow's container of a pod started.
pub fn began(pod: &Pod) -> Option<Timestamp> {
    pod::began(pod, ours)
}

/// The state of `job`, by its own status and its newest pod; pods of other owners do not count.
pub fn read(job: &Job, pods: &[Arc<Pod>]) -> Execution {
    let metadata = &job.metadata;
    let conditions = job
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let holds = |kind: &str| {
        conditions
            .iter()
            .find(|it| it.type_ == kind && it.status == "True")
    };
    let uid = metadata.uid.as_deref();
    let own = pods
        .iter()
        .filter(|it| controller_of(it.as_ref(), POD_MAKER.kind) == uid);
    let pod = newest(own);
    let status = pod.and_then(|pod| container_statuses(pod, ours).next());
    let trouble = pod.and_then(|pod| trouble(pod, ours));
    let progress = if let Some(complete) = holds("Complete") {
        let completed = job
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref())
            .map(|time| time.0);
        Progress::Succeeded {
            at: completed.or(since(complete)),
            summary: None,
        }
    } else if let Some(failed) = holds("Failed") {
        let facts = Facts {
            reason: failed.reason.clone(),
            message: failed.message.clone(),
            over_deadline: failed.reason.as_deref() == Some("DeadlineExceeded"),
            container: status.and_then(ended),
            pod_gone: pod.is_none(),
            waiting: trouble,
            ..Facts::default()
        };
        Progress::Failed {
            at: since(failed),
            facts,
        }
    } else {
        Progress::Active {
            waiting: suspended(job)
                .or(trouble)
                .or_else(|| holds("FailureTarget").and_then(|it| stopping(job, it))),
        }
    };
    let labels = metadata.labels.as_ref();
    let resumed = conditions
        .iter()
        .find(|it| it.type_ == "Suspended" && it.status == "False");
    Execution {
        reference: ExecutionRef {
            api_version: "batch/v1".to_owned(),
            kind: "Job".to_owned(),
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        },
        source_uid: labels
            .and_then(|labels| labels.get(WORKFLOW_EXECUTION_UID))
            .cloned(),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0),
        ending: metadata.deletion_timestamp.is_some(),
        deleted_at: metadata.deletion_timestamp.as_ref().map(|time| time.0),
        held: is_suspended(job) && !is_started(job),
        queued: labels.is_some_and(|it| it.contains_key(KUEUE_QUEUE)),
        resumed: resumed.and_then(since),
        began: pod.and_then(began),
        timeout: timeout(job),
        image: metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(IMAGE))
            .cloned(),
        tasks: Tasks {
            completed: i32::from(matches!(progress, Progress::Succeeded { .. })),
            total: 1,
        },
        // The Job controller waits for the end of the pods.
        ends_with_pods: true,
        progress,
    }
}

fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

fn is_started(job: &Job) -> bool {
    let annotations = job.metadata.annotations.as_ref();
    annotations.is_some_and(|it| it.contains_key(STARTED))
}

/// A started Job that is suspended again was suspended by another client.
fn suspended(job: &Job) -> Option<Waiting> {
    let message = "spec.suspend of the Job is true, set by another client";
    (is_suspended(job) && is_started(job))
        .then(|| waiting_for(Cause::Suspended, "JobSuspended", message))
}

fn timeout(job: &Job) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.active_deadline_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// A Job that exceeded its deadline waits for the end of its pods before it is Failed.
fn stopping(job: &Job, target: &JobCondition) -> Option<Waiting> {
    let message = format!(
        "the timeout of {} is exceeded, waiting for the pod to end",
        duration::format(timeout(job)?)
    );
    let over = target.reason.as_deref() == Some("DeadlineExceeded");
    over.then(|| waiting_for(Cause::Stopping, "DeadlineExceeded", &message))
}

fn since(condition: &JobCondition) -> Option<Timestamp> {
    condition.last_transition_time.as_ref().map(|time| time.0)
}
