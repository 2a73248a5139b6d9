//! The status: written by the controller only, but for the clearing of a block.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why only a Failed one can be cleared.
pub const NOTHING_TO_CLEAR: &str =
    "only a Failed WorkflowExecution blocks its target: there is nothing to clear";

/// Fewest characters of a reason, without the white space around it.
pub const CLEAR_REASON_MIN: usize = 10;
/// What both bounds ask for.
pub const CLEAR_REASON: &str =
    "must say in 10 to 1024 characters what was found and done: the next reader depends on it";
/// Most characters of a reason.
pub const CLEAR_REASON_MAX: usize = 1024;

/// What became of a WorkflowExecution. Written by the controller only, but for the clearing of a
/// block.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.blockClearanceRequest)")
        .message("wfe-webhook turns a request into blockClearance, and was not asked: see that its webhook configuration is there, then try again")
        .field_path(".blockClearanceRequest"),
    validation = Rule::new("!has(self.blockClearance) || (has(self.phase) && self.phase == 'Failed')")
        .message(NOTHING_TO_CLEAR)
        .field_path(".blockClearance"),
    validation = Rule::new("!has(self.blockClearance) || !has(self.completionTime) || self.blockClearance.clearedAt >= self.completionTime - duration('5m')")
        .message("clearedAt is before the execution ended")
        .field_path(".blockClearance.clearedAt")
)]
pub struct WorkflowExecutionStatus {
    /// The generation of the spec this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pending, Running, or one of the final phases Succeeded, Failed, Skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// When the Job or PipelineRun was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the execution ended by its own account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// From start to completion, as `2m30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// The Job or PipelineRun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_ref: Option<ExecutionRef>,
    /// What the Job or PipelineRun says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_status: Option<ExecutionStatusSummary>,
    /// Why the execution failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_details: Option<FailureDetails>,
    /// Why the workflow was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_details: Option<SkipDetails>,
    /// Failures in a row on this target before anything ran, up to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<i32>,
    /// End of the backoff on this target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_allowed_execution: Option<Time>,
    /// An operator's wish to clear the block; the webhook turns it into `blockClearance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_clearance_request: Option<BlockClearanceRequest>,
    /// Who cleared the block, when and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_clearance: Option<BlockClearance>,
    /// Conditions by type.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Where a WorkflowExecution stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum Phase {
    /// Accepted, nothing started.
    Pending,
    /// The Job or PipelineRun exists.
    Running,
    /// It ended well.
    Succeeded,
    /// It failed, or could not be started.
    Failed,
    /// It was not allowed to run.
    Skipped,
}

impl Phase {
    /// Whether this phase never changes again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Skipped)
    }
}

/// The Job or PipelineRun that runs the workflow.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecutionRef {
    /// API version.
    pub api_version: String,
    /// `Job` or `PipelineRun`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Uid: another uid is another object.
    pub uid: String,
}

/// What the execution object says of itself.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionStatusSummary {
    /// True (ended well), False (failed), Unknown (not ended).
    pub status: TriState,
    /// The reason it gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The message it gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Tasks that ended (Tekton).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_tasks: Option<i32>,
    /// Tasks in all (Tekton).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_tasks: Option<i32>,
}

/// A condition's status.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum TriState {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Not known, or not yet.
    Unknown,
}

impl TriState {
    /// As conditions have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Why an execution failed.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureDetails {
    /// The class of failure.
    pub reason: FailureReason,
    /// What was found.
    pub message: String,
    /// Index of the failed task (Tekton).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_task_index: Option<i32>,
    /// Name of the failed task (Tekton).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_task_name: Option<String>,
    /// Name of the failed step (Tekton).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_step_name: Option<String>,
    /// Exit code of the container that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When it failed.
    pub failed_at: Time,
    /// How long it ran before, as `2m30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_time_before_failure: Option<String>,
    /// One or two sentences for the operator, with the next thing to do.
    pub natural_language_summary: String,
    /// Whether a container of the workflow may have run: true blocks the target until somebody
    /// looked, false only backs off.
    pub was_execution_failure: bool,
}

/// Classes of failure (BR-WE-012).
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum FailureReason {
    /// A container used more memory than its limit.
    OOMKilled,
    /// The execution took longer than its timeout.
    DeadlineExceeded,
    /// Creating the execution or its pod was refused.
    Forbidden,
    /// No room: quota, scheduling, eviction.
    ResourceExhausted,
    /// The workflow, its parameters or its dependencies are wrong.
    ConfigurationError,
    /// The image could not be pulled.
    ImagePullBackOff,
    /// A container ended with an exit code other than 0.
    TaskFailed,
    /// The engine is not installed in this cluster.
    UnsupportedEngine,
    /// The ServiceAccount is not meant for workflows.
    ServiceAccountNotAllowed,
    /// Somebody deleted the execution.
    ExecutionDeleted,
    /// Cancelled on request.
    Cancelled,
    /// None of the above.
    Unknown,
}

/// Why a workflow was not run.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkipDetails {
    /// The class of obstacle.
    pub reason: SkipReason,
    /// What was found.
    pub message: String,
    /// When it was decided.
    pub skipped_at: Time,
    /// The execution that is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicting_workflow: Option<ConflictingWorkflow>,
    /// The execution that ended not long ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent_remediation: Option<RecentRemediation>,
    /// From when on the same request would be accepted, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
}

/// Obstacles, in the order they are checked (BR-WE-009 to BR-WE-012).
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum SkipReason {
    /// Another execution runs on the target.
    ResourceBusy,
    /// The last execution on the target failed midway and nobody cleared it.
    PreviousExecutionFailed,
    /// Too many failures in a row on the target.
    ExhaustedRetries,
    /// The target backs off after a failure.
    BackoffActive,
    /// The same workflow succeeded on the target not long ago.
    RecentlyRemediated,
    /// It waited longer than its own timeout.
    StartDeadlineExceeded,
}

/// The execution that holds the target.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConflictingWorkflow {
    /// Name of the WorkflowExecution.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its workflow.
    pub workflow_id: String,
    /// The target both want.
    pub target_resource: String,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
}

/// The execution that ended not long ago.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RecentRemediation {
    /// Name of the WorkflowExecution.
    pub name: String,
    /// Its workflow.
    pub workflow_id: String,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// How it ended.
    pub outcome: String,
    /// How much of the cooldown is left, as `2m30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_remaining: Option<String>,
}

/// An operator's wish to clear the block that a failed execution left (BR-WE-013).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockClearanceRequest {
    /// Why the target may be worked on again: what was found and done, 10 to 1,024 characters.
    #[schemars(length(max = CLEAR_REASON_MAX))]
    pub clear_reason: String,
    /// When it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Time>,
}

/// Who cleared a block, by the API server's word.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockClearance {
    /// User name.
    #[schemars(length(min = 1, max = 1024))]
    pub cleared_by: String,
    /// The user's uid, where the API server knows one.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared_by_uid: Option<String>,
    /// When, to the second.
    #[x_kube(validation = Rule::new("timestamp(int(self)) == self").message("must be a time in whole seconds, as 2026-01-31T12:00:00Z"))]
    pub cleared_at: Time,
    /// Why.
    #[schemars(length(max = CLEAR_REASON_MAX))]
    #[x_kube(validation = Rule::new(format!("self.trim().size() >= {CLEAR_REASON_MIN}")).message(CLEAR_REASON))]
    pub clear_reason: String,
    /// How the identity was established.
    pub clear_method: ClearMethod,
}

/// How the identity of who cleared a block was established.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum ClearMethod {
    /// Stamped at admission from what the API server says of the requester.
    KubernetesAdmissionWebhook,
}
