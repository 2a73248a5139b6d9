//! The status. Only the controller writes it, except for block clearances.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

/// Message for a clearance of a WorkflowExecution that is not Failed.
pub const NOTHING_TO_CLEAR: &str =
    "only a Failed WorkflowExecution blocks its target: there is nothing to clear";

/// Minimum length of `clearReason` in characters, without surrounding white space.
pub const CLEAR_REASON_MIN: usize = 10;
/// Message for a `clearReason` that is too short or too long.
pub const CLEAR_REASON: &str =
    "must describe in 10 to 1024 characters what was found and what was done";
/// Maximum length of `clearReason` in characters.
pub const CLEAR_REASON_MAX: usize = 1024;

/// The command that clears the block of a WorkflowExecution.
pub fn clear_command(namespace: &str, name: &str) -> String {
    format!(
        "kubectl -n {namespace} patch workflowexecution {name} --subresource=status --type=merge -p '{{\"status\":{{\"blockClearanceRequest\":{{\"clearReason\":\"<what you found>\"}}}}}}'"
    )
}
/// Message for a change of a stored block clearance.
pub const CLEARANCE_IMMUTABLE: &str =
    "blockClearance must not be changed or removed after it has been set";

/// Observed state of a WorkflowExecution. Only the controller writes it, except for block
/// clearances.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.blockClearanceRequest)")
        .message("wfe-webhook did not process this request: check that its MutatingWebhookConfiguration exists, then retry")
        .field_path(".blockClearanceRequest"),
    validation = Rule::new("!has(self.blockClearance) || (has(self.phase) && self.phase == 'Failed')")
        .message(NOTHING_TO_CLEAR)
        .field_path(".blockClearance"),
    validation = Rule::new("!has(self.blockClearance) || !has(self.completionTime) || self.blockClearance.clearedAt >= self.completionTime - duration('5m')")
        .message("must not be more than 5 minutes before status.completionTime")
        .field_path(".blockClearance.clearedAt")
)]
pub struct WorkflowExecutionStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pending, Running, or one of the final phases Succeeded, Failed and Skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// When the Job or PipelineRun was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the execution ended, as reported by the Job or PipelineRun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Time from startTime to completionTime, for example `2m30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Job or PipelineRun that runs the workflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_ref: Option<ExecutionRef>,
    /// Image or bundle that is run, with its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Status of the Job or PipelineRun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_status: Option<ExecutionStatusSummary>,
    /// Why the execution failed; set in phase Failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_details: Option<FailureDetails>,
    /// Why the workflow was not run; set in phase Skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_details: Option<SkipDetails>,
    /// Number of consecutive executions on this target, including this one, that failed before a
    /// container of the workflow started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<i32>,
    /// When the backoff on this target ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_allowed_execution: Option<Time>,
    /// Written by an operator to clear the block of the target. It is never stored: the webhook
    /// replaces it with `blockClearance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_clearance_request: Option<BlockClearanceRequest>,
    /// Who cleared the block of the target, when and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_clearance: Option<BlockClearance>,
    /// Latest observations of the execution, by condition type.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Phase of a WorkflowExecution.
#[derive(Clone, Copy, Debug, Deserialize, Eq, IntoStaticStr, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum Phase {
    /// Accepted; the Job or PipelineRun is not created yet.
    Pending,
    /// The Job or PipelineRun was created.
    Running,
    /// The workflow succeeded.
    Succeeded,
    /// The workflow failed or could not be started.
    Failed,
    /// The workflow was not run, because the target was blocked.
    Skipped,
}

impl Phase {
    /// The name in the status.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether this phase never changes again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Skipped)
    }
}

/// Reference to the Job or PipelineRun that runs the workflow.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecutionRef {
    /// API version of the Job or PipelineRun.
    pub api_version: String,
    /// `Job` or `PipelineRun`.
    pub kind: String,
    /// Name of the Job or PipelineRun.
    pub name: String,
    /// Namespace of the Job or PipelineRun.
    pub namespace: String,
    /// Uid of the Job or PipelineRun.
    pub uid: String,
}

/// Status of the Job or PipelineRun.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionStatusSummary {
    /// True (succeeded), False (failed) or Unknown (not ended).
    pub status: TriState,
    /// Reason reported by the Job, PipelineRun or pod; in phase Pending why it has not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Message reported by the Job, PipelineRun or pod; in phase Pending why it has not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Number of tasks that have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_tasks: Option<i32>,
    /// Number of tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_tasks: Option<i32>,
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum TriState {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// The condition is undetermined.
    Unknown,
}

impl TriState {
    /// The name in a condition.
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
    /// Class of the failure.
    pub reason: FailureReason,
    /// Details of the failure.
    pub message: String,
    /// Index of the failed task (Tekton only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_task_index: Option<i32>,
    /// Name of the failed task (Tekton only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_task_name: Option<String>,
    /// Name of the failed step (Tekton only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_step_name: Option<String>,
    /// Exit code of the container that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When the execution failed.
    pub failed_at: Time,
    /// How long the execution ran before it failed, for example `2m30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_time_before_failure: Option<String>,
    /// Summary in one or two sentences, with the next step for the operator.
    pub natural_language_summary: String,
    /// Whether a container of the workflow may have run. If true, the target is blocked until an
    /// operator clears the block; if false, the target only enters a backoff.
    pub was_execution_failure: bool,
}

/// Classes of failure (BR-WE-012).
#[derive(Clone, Copy, Debug, Deserialize, Eq, IntoStaticStr, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum FailureReason {
    /// A container exceeded its memory limit.
    OOMKilled,
    /// The execution exceeded its timeout.
    DeadlineExceeded,
    /// The API server refused to create the execution or its pod.
    Forbidden,
    /// A quota was exceeded, or the pod could not be scheduled, was evicted or was preempted.
    ResourceExhausted,
    /// The workflow, its parameters or its dependencies are invalid.
    ConfigurationError,
    /// The image could not be pulled.
    ImagePullBackOff,
    /// A container exited with a code other than 0.
    TaskFailed,
    /// The engine is not installed in this cluster.
    UnsupportedEngine,
    /// The ServiceAccount does not have the label `kubernaut.ai/workflow-runner: "true"`.
    ServiceAccountNotAllowed,
    /// The Job or PipelineRun was deleted by another client.
    ExecutionDeleted,
    /// The execution was cancelled on request.
    Cancelled,
    /// The cause could not be determined.
    Unknown,
}

impl FailureReason {
    /// The name in the status.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Why a workflow was not run.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkipDetails {
    /// Class of the obstacle.
    pub reason: SkipReason,
    /// Details of the obstacle.
    pub message: String,
    /// When the workflow was skipped.
    pub skipped_at: Time,
    /// Execution that holds the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicting_workflow: Option<ConflictingWorkflow>,
    /// Execution that started the cooldown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent_remediation: Option<RecentRemediation>,
    /// Earliest time at which the same request can be accepted; absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
}

/// Reasons for skipping a workflow, in the order of the checks (BR-WE-009 to BR-WE-012).
#[derive(Clone, Copy, Debug, Deserialize, Eq, IntoStaticStr, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum SkipReason {
    /// Another execution is running on the target.
    ResourceBusy,
    /// The last execution on the target failed after it had started, and its block is not cleared.
    PreviousExecutionFailed,
    /// The limit of consecutive failures on the target is reached.
    ExhaustedRetries,
    /// The target is in its backoff after a failure.
    BackoffActive,
    /// The same workflow succeeded on the target within the cooldown.
    RecentlyRemediated,
    /// The WorkflowExecution was Pending for longer than its timeout.
    StartDeadlineExceeded,
}

impl WorkflowExecutionStatus {
    /// Whether this failure exhausted the retries on the target: there is no end of a backoff, only
    /// a clearance lets the next execution run.
    pub fn exhausts_retries(&self) -> bool {
        self.consecutive_failures.is_some_and(|it| it > 0) && self.next_allowed_execution.is_none()
    }
}

impl SkipReason {
    /// The name in the status.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether only a clearance by a user lets the next execution run.
    pub fn needs_clearance(self) -> bool {
        matches!(self, Self::PreviousExecutionFailed | Self::ExhaustedRetries)
    }
}

/// Execution that holds the target.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConflictingWorkflow {
    /// Name of the WorkflowExecution.
    pub name: String,
    /// Namespace of the WorkflowExecution.
    pub namespace: String,
    /// Id of its workflow in the catalog.
    pub workflow_id: String,
    /// Target resource of both executions.
    pub target_resource: String,
    /// When the execution started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
}

/// Execution that started the cooldown.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RecentRemediation {
    /// Name of the WorkflowExecution.
    pub name: String,
    /// Id of its workflow in the catalog.
    pub workflow_id: String,
    /// When the execution ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Phase in which the execution ended.
    pub outcome: String,
    /// Remaining time of the cooldown, for example `2m30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_remaining: Option<String>,
}

/// Request of an operator to clear the block of a failed execution (BR-WE-013).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockClearanceRequest {
    /// What was found and what was done before workflows may run on the target again, in 10 to
    /// 1,024 characters.
    #[schemars(length(max = CLEAR_REASON_MAX))]
    pub clear_reason: String,
    /// When the clearance was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Time>,
}

/// Clearance of a block. The API server authenticated the user.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockClearance {
    /// Name of the user who cleared the block.
    #[schemars(length(min = 1, max = 1024))]
    pub cleared_by: String,
    /// Uid of the user; absent if the API server does not know one.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared_by_uid: Option<String>,
    /// When the block was cleared, in whole seconds.
    #[x_kube(validation = Rule::new("timestamp(int(self)) == self && self < timestamp('9999-01-01T00:00:00Z')").message("must be a time in whole seconds before the year 9999, for example 2026-01-31T12:00:00Z"))]
    pub cleared_at: Time,
    /// What was found and what was done, as written by the user.
    #[schemars(length(max = CLEAR_REASON_MAX))]
    #[x_kube(validation = Rule::new(format!("self.trim().size() >= {CLEAR_REASON_MIN}")).message(CLEAR_REASON))]
    pub clear_reason: String,
    /// How the identity of the user was established.
    pub clear_method: ClearMethod,
}

/// How the identity of the user who cleared a block was established.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub enum ClearMethod {
    /// The admission webhook recorded the user of the admission request.
    KubernetesAdmissionWebhook,
}
