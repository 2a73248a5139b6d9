//! Reads a Job and its pods as an [`Execution`].

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::Pod;
use wfe_model::workflow_execution::ExecutionRef;

use super::build::CONTAINER;
use crate::execution::{Execution, Facts, Progress, Tasks};
use crate::names::{IMAGE, STARTED, WORKFLOW_EXECUTION_UID};
use crate::pod::{self, container_statuses, ended, newest, trouble};

fn ours(container: &str) -> bool {
    container == CONTAINER
}

/// When the workflow's container of a pod started.
pub fn began(pod: &Pod) -> Option<Timestamp> {
    pod::began(pod, ours)
}

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
            waiting: trouble,
            ..Facts::default()
        };
        Progress::Failed {
            at: since(failed),
            facts,
        }
    } else {
        Progress::Active { waiting: trouble }
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
        ending: metadata.deletion_timestamp.is_some(),
        held: is_held(job),
        began: pod.and_then(began),
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

/// Whether the Job is suspended and was never started. A Job that was started and is suspended
/// again was interrupted by another client.
fn is_held(job: &Job) -> bool {
    let suspended = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
    let annotations = job.metadata.annotations.as_ref();
    suspended && !annotations.is_some_and(|it| it.contains_key(STARTED))
}

fn since(condition: &JobCondition) -> Option<Timestamp> {
    condition.last_transition_time.as_ref().map(|time| time.0)
}
