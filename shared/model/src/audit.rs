//! Audit events in the format of Data Storage.
//!
//! All fields of an event, including its timestamp, are derived from the stored WorkflowExecution,
//! so that deriving an event again gives an identical event.

use std::collections::BTreeMap;

use std::time::Duration;

use enumset::{EnumSet, EnumSetType};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::workflow_execution::FailureReason;

/// Type of an event, in the order in which the events occur.
#[derive(Debug, Deserialize, EnumSetType, Hash, Ord, PartialOrd, Serialize)]
pub enum EventType {
    /// The WorkflowExecution left phase Pending.
    #[serde(rename = "workflowexecution.selection.completed")]
    SelectionCompleted,
    /// The Job or PipelineRun was created.
    #[serde(rename = "workflowexecution.execution.started")]
    ExecutionStarted,
    /// The workflow began to run.
    #[serde(rename = "workflowexecution.workflow.started")]
    WorkflowStarted,
    /// The workflow succeeded.
    #[serde(rename = "workflowexecution.workflow.completed")]
    WorkflowCompleted,
    /// The workflow failed or was cancelled.
    #[serde(rename = "workflowexecution.workflow.failed")]
    WorkflowFailed,
    /// The block of the target was cleared.
    #[serde(rename = "workflowexecution.block.cleared")]
    BlockCleared,
}

impl EventType {
    /// The value of `event_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SelectionCompleted => "workflowexecution.selection.completed",
            Self::ExecutionStarted => "workflowexecution.execution.started",
            Self::WorkflowStarted => "workflowexecution.workflow.started",
            Self::WorkflowCompleted => "workflowexecution.workflow.completed",
            Self::WorkflowFailed => "workflowexecution.workflow.failed",
            Self::BlockCleared => "workflowexecution.block.cleared",
        }
    }

    /// Parses a value of `event_type`.
    pub fn named(name: &str) -> Option<Self> {
        EnumSet::<Self>::all().iter().find(|it| it.as_str() == name)
    }

    /// The value of `event_action`.
    pub fn action(self) -> &'static str {
        match self {
            Self::SelectionCompleted | Self::WorkflowCompleted => "completed",
            Self::ExecutionStarted | Self::WorkflowStarted => "started",
            Self::WorkflowFailed => "failed",
            Self::BlockCleared => "block_cleared",
        }
    }

    /// The value of `event_category`.
    pub fn category(self) -> Category {
        match self {
            Self::BlockCleared => Category::Webhook,
            _ => Category::WorkflowExecution,
        }
    }
}

/// Id of an event. A WorkflowExecution has at most one event of each type.
pub fn event_id(workflow_execution_uid: &str, event_type: EventType) -> Uuid {
    let name = format!("{workflow_execution_uid}/{}", event_type.as_str());
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

/// Timestamp of an event whose time in the status is `second`.
///
/// Times in a status are whole seconds. The microseconds, which are derived from the uid and the
/// event type, order the events within a second, and distinguish two WorkflowExecutions that had
/// the same name within a second: a sink finds an event by its [`Identity`], which has no uid.
pub fn moment(workflow_execution_uid: &str, event_type: EventType, second: Timestamp) -> Timestamp {
    /// Below 10^6, so that adding the event type stays within the second.
    const UID_OFFSETS: u128 = 999_000;
    let object = Uuid::new_v5(&Uuid::NAMESPACE_OID, workflow_execution_uid.as_bytes());
    let object = u64::try_from(object.as_u128() % UID_OFFSETS).unwrap_or_default();
    let offset = Duration::from_micros(object + event_type as u64);
    second.checked_add(offset).unwrap_or(second)
}

/// Identity of an event: the fields that every sink stores.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Identity {
    /// Type of the event.
    pub event_type: String,
    /// Namespace of the WorkflowExecution.
    pub namespace: String,
    /// Name of the WorkflowExecution.
    pub name: String,
    /// Timestamp of the event, see [`moment`].
    pub timestamp: Timestamp,
}

impl AuditEvent {
    /// The identity of this event.
    pub fn identity(&self) -> Identity {
        Identity {
            event_type: self.event_type.as_str().to_owned(),
            namespace: self.namespace.clone(),
            name: self.resource_id.clone(),
            timestamp: self.event_timestamp,
        }
    }
}

/// Category of an event.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// Event of the controller.
    WorkflowExecution,
    /// Event with a user identity that was recorded at admission.
    Webhook,
}

/// Outcome of an event.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The action succeeded.
    Success,
    /// The action failed.
    Failure,
    /// The action has not ended.
    Pending,
}

/// An audit event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuditEvent {
    /// Version of the format, `1.0`.
    pub version: String,
    /// Type of the event.
    pub event_type: EventType,
    /// Time of the event.
    pub event_timestamp: Timestamp,
    /// Category of the event.
    pub event_category: Category,
    /// Action, see [`EventType::action`].
    pub event_action: String,
    /// Outcome of the action.
    pub event_outcome: Outcome,
    /// `service`, or `user` for a cleared block.
    pub actor_type: String,
    /// Name of the service or user.
    pub actor_id: String,
    /// Always `WorkflowExecution`.
    pub resource_type: String,
    /// Name of the WorkflowExecution.
    pub resource_id: String,
    /// Namespace of the WorkflowExecution.
    pub namespace: String,
    /// Name of the RemediationRequest, or of the WorkflowExecution if it refers to none.
    pub correlation_id: String,
    /// Details that depend on the event type.
    pub event_data: EventData,
}

/// Details of an event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EventData {
    /// Details of [`EventType::BlockCleared`].
    BlockCleared(BlockClearedData),
    /// Details of all other event types.
    Execution(Box<ExecutionData>),
}

/// Details of an event of an execution. Absent values are omitted, because Data Storage rejects
/// null.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ExecutionData {
    /// Type of the event, the same as in [`AuditEvent`].
    pub event_type: EventType,
    /// Id of the event, see [`event_id`].
    pub event_id: Uuid,
    /// `job` or `tekton`.
    pub execution_engine: String,
    /// Id of the workflow in the catalog.
    pub workflow_id: String,
    /// Version of the workflow.
    pub workflow_version: String,
    /// Name of the workflow, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_name: Option<String>,
    /// Target resource as written in the spec.
    pub target_resource: String,
    /// Phase in the vocabulary of Data Storage.
    pub phase: PeerPhase,
    /// Image or bundle that runs.
    pub container_image: String,
    /// Name of the Job or PipelineRun. Data Storage requires it, even if none was created.
    pub execution_name: String,
    /// When the execution was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the execution ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Run time, for example `2m30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Parameters of the spec, `KUBERNAUT_EXECUTION_ENGINE`, and once there is one
    /// `KUBERNAUT_EXECUTION` (kind, namespace and name of the Job or PipelineRun).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// Name of the PipelineRun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipelinerun_name: Option<String>,
    /// Failure reason in the vocabulary of Data Storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<PeerFailureReason>,
    /// Message of the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_message: Option<String>,
    /// Name of the failed task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_task_name: Option<String>,
    /// Failure or skip reason in the vocabulary of the WorkflowExecution status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_details: Option<ErrorDetails>,
}

/// Details of a cleared block. Data Storage accepts exactly these six keys.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct BlockClearedData {
    /// Always [`EventType::BlockCleared`].
    pub event_type: EventType,
    /// Name of the WorkflowExecution, despite the name of the key.
    pub workflow_name: String,
    /// Reason given by the user.
    pub clear_reason: String,
    /// When the block was cleared.
    pub cleared_at: Timestamp,
    /// Always `Blocked`.
    pub previous_state: String,
    /// Always `Running`.
    pub new_state: String,
}

/// Details of a failure or skip. Data Storage requires all four keys.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ErrorDetails {
    /// Message of the failure or skip.
    pub message: String,
    /// A [`FailureReason`] or a
    /// [`SkipReason`](crate::workflow_execution::SkipReason).
    pub code: String,
    /// Always `workflowexecution`.
    pub component: String,
    /// Whether the same request may succeed if it is repeated later.
    pub retry_possible: bool,
}

/// Phases in the vocabulary of Data Storage.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PeerPhase {
    /// Phase Pending.
    Pending,
    /// Phase Running.
    Running,
    /// Phase Succeeded.
    Completed,
    /// Phase Failed.
    Failed,
}

/// Failure reasons in the vocabulary of Data Storage.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PeerFailureReason {
    /// [`FailureReason::OOMKilled`].
    OOMKilled,
    /// [`FailureReason::DeadlineExceeded`].
    DeadlineExceeded,
    /// [`FailureReason::Forbidden`].
    Forbidden,
    /// [`FailureReason::ResourceExhausted`].
    ResourceExhausted,
    /// [`FailureReason::ConfigurationError`].
    ConfigurationError,
    /// [`FailureReason::ImagePullBackOff`].
    ImagePullBackOff,
    /// [`FailureReason::TaskFailed`].
    TaskFailed,
    /// Any other [`FailureReason`].
    Unknown,
}

impl From<FailureReason> for PeerFailureReason {
    fn from(reason: FailureReason) -> Self {
        match reason {
            FailureReason::OOMKilled => Self::OOMKilled,
            FailureReason::DeadlineExceeded => Self::DeadlineExceeded,
            FailureReason::Forbidden => Self::Forbidden,
            FailureReason::ResourceExhausted => Self::ResourceExhausted,
            FailureReason::ConfigurationError => Self::ConfigurationError,
            FailureReason::ImagePullBackOff => Self::ImagePullBackOff,
            FailureReason::TaskFailed => Self::TaskFailed,
            FailureReason::UnsupportedEngine
            | FailureReason::ServiceAccountNotAllowed
            | FailureReason::ExecutionDeleted
            | FailureReason::Cancelled
            | FailureReason::Unknown => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
