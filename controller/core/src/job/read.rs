//! A Job and its pods become an [`Execution`]. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, PodCondition};
use wfe_model::workflow_execution::ExecutionRef;

use super::build::CONTAINER;
use crate::execution::{Cause, ContainerEnd, Execution, Facts, Progress, Waiting};
use crate::names::{STARTED, WORKFLOW_EXECUTION_UID};

/// Words of the kubelet about a container that waits, where that is not just a matter of seconds.
fn stuck(word: &str) -> Option<Cause> {
    match word {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => Some(Cause::ImageNotPulled),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(Cause::ContainerConfigInvalid)
        }
        _ => None,
    }
}

/// Reasons of Events about a pod that is not created or does not start.
fn complaint(reason: &str, message: &str) -> Option<Cause> {
    match reason {
        "FailedMount" | "FailedAttachVolume" => Some(Cause::VolumeNotMounted),
        "FailedCreate" if message.contains(QUOTA) => Some(Cause::QuotaExceeded),
        "FailedCreate" => Some(Cause::PodRefused),
        "FailedCreatePodSandBox" => Some(Cause::Other),
        _ => None,
    }
}

/// Reasons of a pod that the kubelet refuses or evicts.
fn rejected(reason: &str) -> Cause {
    match reason {
        "NodeAffinity" | "UnexpectedAdmissionError" | "Evicted" => Cause::NodeRejected,
        reason if reason.starts_with("OutOf") => Cause::NodeRejected,
        _ => Cause::Other,
    }
}

fn waiting_for(cause: Cause, word: &str, sentence: &str) -> Waiting {
    Waiting {
        cause,
        message: format!("{word}: {sentence}"),
    }
}

/// The Job's Event for a pod that it made.
const MADE: &str = "SuccessfulCreate";

/// The fixed words of the quota plugin: the one text that is matched, since its refusal has the
/// same code and reason as any other.
pub const QUOTA: &str = "exceeded quota: ";

/// What `job` and the pods made for it say.
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
    let pod = newest(pods);
    let status = pod.and_then(container_status);
    let progress = if let Some(complete) = holds("Complete") {
        let ended = job
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref())
            .map(|time| time.0);
        Progress::Succeeded {
            at: ended.or(since(complete)),
        }
    } else if let Some(failed) = holds("Failed") {
        let facts = Facts {
            reason: failed.reason.clone(),
            message: failed.message.clone(),
            over_deadline: failed.reason.as_deref() == Some("DeadlineExceeded"),
            container: status.and_then(ended),
            waiting: pod.and_then(|pod| disruption(pod).or_else(|| waiting(pod, status))),
        };
        Progress::Failed {
            at: since(failed),
            facts,
        }
    } else {
        Progress::Active {
            waiting: pod.and_then(|pod| disruption(pod).or_else(|| waiting(pod, status))),
        }
    };
    Execution {
        reference: ExecutionRef {
            api_version: "batch/v1".to_owned(),
            kind: "Job".to_owned(),
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        },
        source_uid: metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(WORKFLOW_EXECUTION_UID))
            .cloned(),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0),
        deleting: metadata.deletion_timestamp.is_some(),
        held: is_held(job),
        began: status.and_then(container_began),
        progress,
    }
}

/// Whether it is suspended and was never started. One that was started and is suspended again has
/// been interrupted by somebody else.
fn is_held(job: &Job) -> bool {
    let suspended = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
    let annotations = job.metadata.annotations.as_ref();
    suspended && !annotations.is_some_and(|it| it.contains_key(STARTED))
}

fn newest(pods: &[Arc<Pod>]) -> Option<&Pod> {
    pods.iter()
        .map(Arc::as_ref)
        .max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

fn container_status(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == CONTAINER)
}

fn since(condition: &JobCondition) -> Option<Timestamp> {
    condition.last_transition_time.as_ref().map(|time| time.0)
}

/// Since when the workflow's container of a pod runs or ran.
pub fn began(pod: &Pod) -> Option<Timestamp> {
    container_status(pod).and_then(container_began)
}

/// One that could not be started says 1970.
fn container_began(status: &ContainerStatus) -> Option<Timestamp> {
    let state = status.state.as_ref()?;
    let running = state
        .running
        .as_ref()
        .and_then(|running| running.started_at.as_ref());
    let terminated = state
        .terminated
        .as_ref()
        .and_then(|terminated| terminated.started_at.as_ref());
    running
        .or(terminated)
        .map(|time| time.0)
        .filter(|time| *time > Timestamp::UNIX_EPOCH)
}

fn ended(status: &ContainerStatus) -> Option<ContainerEnd> {
    let terminated = status.state.as_ref()?.terminated.as_ref()?;
    Some(ContainerEnd {
        exit_code: terminated.exit_code,
        oom_killed: terminated.reason.as_deref() == Some("OOMKilled"),
        message: terminated
            .message
            .clone()
            .filter(|message| !message.trim().is_empty()),
        // Whoever could not be started says 1970; one whose fate is not known says nothing.
        started: terminated
            .started_at
            .as_ref()
            .is_none_or(|time| time.0 > Timestamp::UNIX_EPOCH),
    })
}

/// Why the pod is taken away by the cluster: evicted, preempted, its node lost.
fn disruption(pod: &Pod) -> Option<Waiting> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions
        .iter()
        .find(|it| it.type_ == "DisruptionTarget" && it.status == "True")?;
    Some(of_condition(Cause::Disrupted, condition))
}

fn of_condition(cause: Cause, condition: &PodCondition) -> Waiting {
    let word = condition.reason.as_deref().unwrap_or_default();
    let sentence = condition.message.as_deref().unwrap_or_default();
    waiting_for(cause, word, sentence)
}

/// Why the kubelet did not take a pod that was bound to its node: there is no container then.
fn turned_away(pod: &Pod) -> Option<Waiting> {
    let status = pod.status.as_ref()?;
    let no_container = status.container_statuses.as_ref().is_none_or(Vec::is_empty);
    let failed = status.phase.as_deref() == Some("Failed") && no_container;
    let word = status.reason.as_deref().filter(|_| failed)?;
    let sentence = status.message.as_deref().unwrap_or_default();
    Some(waiting_for(rejected(word), word, sentence))
}

/// Why a pod does not come or start, as the newest of its Events, or its Job's, tells.
pub fn startup_diagnosis(events: &[Event]) -> Option<Waiting> {
    let at = |event: &Event| {
        let series = event.series.as_ref();
        let series = series
            .and_then(|it| it.last_observed_time.as_ref())
            .map(|it| it.0);
        let last = event.last_timestamp.as_ref().map(|it| it.0);
        series.or(last).or(event.event_time.as_ref().map(|it| it.0))
    };
    let complaints = events.iter().filter_map(|event| {
        let reason = event.reason.as_deref()?;
        // It could be created after all.
        if reason == MADE {
            return Some((at(event), None));
        }
        let message = event.message.as_deref().unwrap_or_default();
        let cause = complaint(reason, message)?;
        Some((at(event), Some(waiting_for(cause, reason, message))))
    });
    complaints.max_by_key(|(at, _)| *at)?.1
}

fn waiting(pod: &Pod, status: Option<&ContainerStatus>) -> Option<Waiting> {
    let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref());
    let stuck = waiting.and_then(|waiting| {
        let word = waiting.reason.as_deref()?;
        let sentence = waiting.message.as_deref().unwrap_or_default();
        Some(waiting_for(stuck(word)?, word, sentence))
    });
    stuck
        .or_else(|| unschedulable(pod))
        .or_else(|| turned_away(pod))
}

fn unschedulable(pod: &Pod) -> Option<Waiting> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|it| {
        it.type_ == "PodScheduled"
            && it.status == "False"
            && it.reason.as_deref() == Some("Unschedulable")
    })?;
    Some(of_condition(Cause::Unschedulable, condition))
}
