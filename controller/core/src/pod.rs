//! Reads the pods of an execution: when its containers started and ended, and why they do not
//! start. The kubelet's and the scheduler's words are matched here and nowhere else.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Event, PodCondition};

use crate::execution::{Cause, ContainerEnd, Waiting};
use crate::names::WORKFLOW_EXECUTION;
use crate::seen::{ContainerStatus, Pod};

/// Selects the containers of the workflow by name; the engine may add others.
pub(crate) type Ours = fn(&str) -> bool;

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

pub(crate) fn waiting_for(cause: Cause, reason: &str, message: &str) -> Waiting {
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

/// The pod that was created last.
pub(crate) fn newest<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> Option<&'a Pod> {
    pods.into_iter()
        .map(Arc::as_ref)
        .max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// The statuses of the workflow's containers.
pub(crate) fn container_statuses(pod: &Pod, ours: Ours) -> impl Iterator<Item = &ContainerStatus> {
    let statuses = pod
        .status
        .iter()
        .filter_map(|it| it.container_statuses.as_ref());
    statuses.flatten().filter(move |status| ours(&status.name))
}

/// When the first of the workflow's containers of a pod started.
pub(crate) fn began(pod: &Pod, ours: Ours) -> Option<Timestamp> {
    container_statuses(pod, ours)
        .filter_map(container_began)
        .min()
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

/// How a container ended; `None` while it has not.
pub(crate) fn ended(status: &ContainerStatus) -> Option<ContainerEnd> {
    Some(container_end(status.state.as_ref()?.terminated.as_ref()?))
}

/// How a terminated container ended.
pub(crate) fn container_end(terminated: &ContainerStateTerminated) -> ContainerEnd {
    ContainerEnd {
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
    }
}

/// Why a pod does not run: a disruption, or what keeps its containers from starting.
pub(crate) fn trouble(pod: &Pod, ours: Ours) -> Option<Waiting> {
    disruption(pod).or_else(|| waiting(pod, ours))
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

fn waiting(pod: &Pod, ours: Ours) -> Option<Waiting> {
    let mut statuses = container_statuses(pod, ours);
    let container = statuses.find_map(|status| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
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

/// Removes annotations of a cached pod that this module does not read.
pub fn prune(pod: &mut Pod) {
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| name == WORKFLOW_EXECUTION);
    }
}
