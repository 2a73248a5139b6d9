//! Reads a Job and its pods as an [`Execution`].

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, PodCondition};
use wfe_model::workflow_execution::ExecutionRef;

use super::build::CONTAINER;
use crate::execution::{Cause, ContainerEnd, Execution, Facts, Progress, Waiting};
use crate::names::{STARTED, WORKFLOW_EXECUTION_UID};

/// The cause for a reason of a waiting container; `None` for reasons that usually pass within
/// seconds.
fn container_cause(reason: &str) -> Option<Cause> {
    match reason {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => Some(Cause::ImageNotPulled),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(Cause::ContainerConfigInvalid)
        }
        _ => None,
    }
}

/// The cause for an Event about a pod that is not created or does not start.
fn event_cause(reason: &str, message: &str) -> Option<Cause> {
    match reason {
        "FailedMount" | "FailedAttachVolume" => Some(Cause::VolumeNotMounted),
        "FailedCreate" if message.contains(QUOTA) => Some(Cause::QuotaExceeded),
        "FailedCreate" => Some(Cause::PodRefused),
        "FailedCreatePodSandBox" => Some(Cause::Other),
        _ => None,
    }
}

/// The cause for the reason of a pod that the kubelet refuses or evicts.
fn kubelet_cause(reason: &str) -> Cause {
    match reason {
        "NodeAffinity" | "UnexpectedAdmissionError" | "Evicted" => Cause::NodeRejected,
        reason if reason.starts_with("OutOf") => Cause::NodeRejected,
        _ => Cause::Other,
    }
}

fn waiting_for(cause: Cause, reason: &str, message: &str) -> Waiting {
    Waiting {
        cause,
        message: format!("{reason}: {message}"),
    }
}

/// Reason of the Job's Event for a created pod.
const POD_CREATED: &str = "SuccessfulCreate";

/// Fixed text of the quota plugin's refusals. The only message that is matched: a refusal for quota
/// has the same code and reason as any other.
pub const QUOTA: &str = "exceeded quota: ";

/// The state of `job`, by its own status and its newest pod.
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

/// Whether the Job is suspended and was never started. A Job that was started and is suspended
/// again was interrupted by another client.
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

/// When the workflow's container of a pod started.
pub fn began(pod: &Pod) -> Option<Timestamp> {
    container_status(pod).and_then(container_began)
}

/// The kubelet reports the Unix epoch for a container that never started.
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
        // The kubelet reports the Unix epoch for a container that never started, and no time for a
        // container whose status it lost: such a container may have run.
        started: terminated
            .started_at
            .as_ref()
            .is_none_or(|time| time.0 > Timestamp::UNIX_EPOCH),
    })
}

/// Why the cluster removes the pod: eviction, preemption, a lost node.
fn disruption(pod: &Pod) -> Option<Waiting> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions
        .iter()
        .find(|it| it.type_ == "DisruptionTarget" && it.status == "True")?;
    Some(of_condition(Cause::Disrupted, condition))
}

fn of_condition(cause: Cause, condition: &PodCondition) -> Waiting {
    let reason = condition.reason.as_deref().unwrap_or_default();
    let message = condition.message.as_deref().unwrap_or_default();
    waiting_for(cause, reason, message)
}

/// Why the kubelet refused a pod that was bound to its node: such a pod has no container status.
fn refused_by_kubelet(pod: &Pod) -> Option<Waiting> {
    let status = pod.status.as_ref()?;
    let no_container = status.container_statuses.as_ref().is_none_or(Vec::is_empty);
    let failed = status.phase.as_deref() == Some("Failed") && no_container;
    let reason = status.reason.as_deref().filter(|_| failed)?;
    let message = status.message.as_deref().unwrap_or_default();
    Some(waiting_for(kubelet_cause(reason), reason, message))
}

/// Why a pod is not created or does not start, by the newest Event of the pod or its Job.
pub fn startup_diagnosis(events: &[Event]) -> Option<Waiting> {
    let at = |event: &Event| {
        let series = event.series.as_ref();
        let series = series
            .and_then(|it| it.last_observed_time.as_ref())
            .map(|it| it.0);
        let last = event.last_timestamp.as_ref().map(|it| it.0);
        series.or(last).or(event.event_time.as_ref().map(|it| it.0))
    };
    let causes = events.iter().filter_map(|event| {
        let reason = event.reason.as_deref()?;
        // An older FailedCreate is then obsolete.
        if reason == POD_CREATED {
            return Some((at(event), None));
        }
        let message = event.message.as_deref().unwrap_or_default();
        let cause = event_cause(reason, message)?;
        // The Event of a pod that the quota refuses has the same reason as that of any refused pod.
        let word = match cause {
            Cause::QuotaExceeded => cause.as_str(),
            _ => reason,
        };
        Some((at(event), Some(waiting_for(cause, word, message))))
    });
    causes.max_by_key(|(at, _)| *at)?.1
}

fn waiting(pod: &Pod, status: Option<&ContainerStatus>) -> Option<Waiting> {
    let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref());
    let container = waiting.and_then(|waiting| {
        let reason = waiting.reason.as_deref()?;
        let message = waiting.message.as_deref().unwrap_or_default();
        Some(waiting_for(container_cause(reason)?, reason, message))
    });
    container
        .or_else(|| unschedulable(pod))
        .or_else(|| refused_by_kubelet(pod))
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
