//! Audit events as Data Storage takes them: names, order and content.
//!
//! Everything in an event is derived from the stored object, timestamps included, so that the
//! same transition always gives the same event.

use std::collections::BTreeMap;

use std::time::Duration;

use enumset::{EnumSet, EnumSetType};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::workflow_execution::FailureReason;

/// What happened, in the order in which it happens.
#[derive(Debug, Deserialize, EnumSetType, Hash, Ord, PartialOrd, Serialize)]
pub enum EventType {
    /// It left Pending: allowed to run, or skipped.
    #[serde(rename = "workflowexecution.selection.completed")]
    SelectionCompleted,
    /// The Job or PipelineRun was created.
    #[serde(rename = "workflowexecution.execution.started")]
    ExecutionStarted,
    /// It began to run.
    #[serde(rename = "workflowexecution.workflow.started")]
    WorkflowStarted,
    /// It succeeded.
    #[serde(rename = "workflowexecution.workflow.completed")]
    WorkflowCompleted,
    /// It failed, or was cancelled.
    #[serde(rename = "workflowexecution.workflow.failed")]
    WorkflowFailed,
    /// A block was cleared.
    #[serde(rename = "workflowexecution.block.cleared")]
    BlockCleared,
}

impl EventType {
    /// The name on the wire.
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

    /// By its name on the wire.
    pub fn named(name: &str) -> Option<Self> {
        EnumSet::<Self>::all().iter().find(|it| it.as_str() == name)
    }

    /// `event_action`.
    pub fn action(self) -> &'static str {
        match self {
            Self::SelectionCompleted | Self::WorkflowCompleted => "completed",
            Self::ExecutionStarted | Self::WorkflowStarted => "started",
            Self::WorkflowFailed => "failed",
            Self::BlockCleared => "block_cleared",
        }
    }

    /// `event_category`.
    pub fn category(self) -> Category {
        match self {
            Self::BlockCleared => Category::Webhook,
            _ => Category::WorkflowExecution,
        }
    }
}

/// The id of an event: one WorkflowExecution has each event once.
pub fn event_id(workflow_execution_uid: &str, event_type: EventType) -> Uuid {
    let name = format!("{workflow_execution_uid}/{}", event_type.as_str());
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

/// The moment of an event whose status says `second`: statuses have whole seconds, which of two
/// events in one came first is told by microseconds, and so is of which object it is. Without them
/// a sink could not be asked whether it has the event of a WorkflowExecution, when there was another
/// one of its name within the same second.
pub fn moment(workflow_execution_uid: &str, event_type: EventType, second: Timestamp) -> Timestamp {
    /// Leaves room for the types.
    const OBJECTS: u128 = 999_000;
    let object = Uuid::new_v5(&Uuid::NAMESPACE_OID, workflow_execution_uid.as_bytes());
    let object = u64::try_from(object.as_u128() % OBJECTS).unwrap_or_default();
    let offset = Duration::from_micros(object + event_type as u64);
    second.checked_add(offset).unwrap_or(second)
}

/// By what an event is known again: what every sink keeps of it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Identity {
    /// What happened.
    pub event_type: String,
    /// Of the WorkflowExecution.
    pub namespace: String,
    /// Of the WorkflowExecution.
    pub name: String,
    /// [`moment`].
    pub timestamp: Timestamp,
}

impl AuditEvent {
    /// See [`Identity`].
    pub fn identity(&self) -> Identity {
        Identity {
            event_type: self.event_type.as_str().to_owned(),
            namespace: self.namespace.clone(),
            name: self.resource_id.clone(),
            timestamp: self.event_timestamp,
        }
    }
}

/// Which service's events these are.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// The controller's.
    WorkflowExecution,
    /// The webhook's: the identity in it was stamped at admission.
    Webhook,
}

/// How it ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Well.
    Success,
    /// Not well.
    Failure,
    /// Not yet.
    Pending,
}

/// One audit event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuditEvent {
    /// `1.0`.
    pub version: String,
    /// What happened.
    pub event_type: EventType,
    /// When it happened.
    pub event_timestamp: Timestamp,
    /// Whose event it is.
    pub event_category: Category,
    /// The verb.
    pub event_action: String,
    /// How it ended.
    pub event_outcome: Outcome,
    /// `service`, or `user` for a cleared block.
    pub actor_type: String,
    /// Who did it.
    pub actor_id: String,
    /// `WorkflowExecution`.
    pub resource_type: String,
    /// Name of the WorkflowExecution.
    pub resource_id: String,
    /// Its namespace.
    pub namespace: String,
    /// The RemediationRequest's name, else the WorkflowExecution's.
    pub correlation_id: String,
    /// Details.
    pub event_data: EventData,
}

/// Details of an event.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EventData {
    /// Of a cleared block.
    BlockCleared(BlockClearedData),
    /// Of everything else.
    Execution(Box<ExecutionData>),
}

/// Details of an execution's event. Absent keys are left out: the peer refuses null.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ExecutionData {
    /// As outside.
    pub event_type: EventType,
    /// [`event_id`].
    pub event_id: Uuid,
    /// `job` or `tekton`.
    pub execution_engine: String,
    /// Key in the catalog.
    pub workflow_id: String,
    /// Version in the catalog.
    pub workflow_version: String,
    /// Name in the catalog, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_name: Option<String>,
    /// The target as written.
    pub target_resource: String,
    /// The peer's word for the phase.
    pub phase: PeerPhase,
    /// Image or bundle.
    pub container_image: String,
    /// Name of the Job or PipelineRun, also where it was not made: the peer wants one.
    pub execution_name: String,
    /// When the execution was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// As `2m30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// What it was told, and `KUBERNAUT_EXECUTION_ENGINE`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// Name of the PipelineRun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipelinerun_name: Option<String>,
    /// The peer's word for the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<PeerFailureReason>,
    /// What was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_message: Option<String>,
    /// Which task failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_task_name: Option<String>,
    /// Our word for the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_details: Option<ErrorDetails>,
}

/// Details of a cleared block: exactly these six.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct BlockClearedData {
    /// `workflowexecution.block.cleared`.
    pub event_type: EventType,
    /// The WorkflowExecution's name (the peer's word for it).
    pub workflow_name: String,
    /// Why.
    pub clear_reason: String,
    /// When.
    pub cleared_at: Timestamp,
    /// `Blocked`.
    pub previous_state: String,
    /// `Running`.
    pub new_state: String,
}

/// Our word for a failure; the peer refuses it unless all four are there.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ErrorDetails {
    /// For people.
    pub message: String,
    /// A [`FailureReason`] or skip reason.
    pub code: String,
    /// `workflowexecution`.
    pub component: String,
    /// Whether the same request may succeed later.
    pub retry_possible: bool,
}

/// The peer's phases.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PeerPhase {
    /// Ours too.
    Pending,
    /// Ours too.
    Running,
    /// Our Succeeded.
    Completed,
    /// Our Failed.
    Failed,
}

/// The peer's failure reasons.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum PeerFailureReason {
    /// Ours too.
    OOMKilled,
    /// Ours too.
    DeadlineExceeded,
    /// Ours too.
    Forbidden,
    /// Ours too.
    ResourceExhausted,
    /// Ours too.
    ConfigurationError,
    /// Ours too.
    ImagePullBackOff,
    /// Ours too.
    TaskFailed,
    /// Whatever else.
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
