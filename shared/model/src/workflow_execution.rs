//! The `WorkflowExecution` resource as it is stored.
//!
//! What people write is kept as text, so that an object that slipped in with a bad value is one
//! that ends Failed with a reason, not one that breaks a list; the schema still says what is
//! allowed ([`crd`](crate::crd)), and [`rules`](crate::rules) turns the text into checked types.
//! What only the controller writes (status) is typed here.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration, image, parameters, pattern, rules, target};

/// A request to run one workflow on one target resource, once.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "kubernaut.ai",
    version = "v1alpha1",
    kind = "WorkflowExecution",
    plural = "workflowexecutions",
    singular = "workflowexecution",
    shortname = "wfe",
    category = "kubernaut",
    namespaced,
    status = "WorkflowExecutionStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A request to run one workflow from the catalog on one target resource, once.",
    selectable = ".spec.executionEngine",
    selectable = ".spec.targetResource",
    selectable = ".spec.remediationRequestRef.name",
    selectable = ".status.phase",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Engine", type_ = "string", json_path = ".spec.executionEngine"),
    printcolumn(name = "Workflow", type_ = "string", json_path = ".spec.workflowRef.workflowId"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetResource"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status['failureDetails','skipDetails'].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.phase) || !(oldSelf.status.phase in ['Succeeded', 'Failed', 'Skipped']) || (has(self.status) && has(self.status.phase) && self.status.phase == oldSelf.status.phase)"
    ).message("a final phase (Succeeded, Failed, Skipped) never changes").field_path(".status.phase")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf").message(rules::IMMUTABLE),
    validation = rules::cel_needs("job", "containerImage"),
    validation = rules::cel_needs("tekton", "bundleRef"),
    validation = rules::cel_forbids("job", "bundleRef", "containerImage"),
    validation = rules::cel_forbids("tekton", "containerImage", "bundleRef"),
    validation = rules::cel_no_substitution()
)]
pub struct WorkflowExecutionSpec {
    /// Which executor runs the workflow: `job` (one container in a Kubernetes Job) or `tekton`
    /// (a Tekton PipelineRun). There is no default.
    #[schemars(with = "EngineName")]
    #[serde(default, deserialize_with = "null_is_default")]
    pub execution_engine: String,
    /// The workflow to run.
    #[serde(default, deserialize_with = "null_is_default")]
    pub workflow_ref: WorkflowRef,
    /// The resource to repair, as `[namespace/]kind/name`: the kind of a served resource, with a
    /// namespace exactly when the resource is namespaced.
    #[schemars(length(max = 381))]
    #[x_kube(validation = target::TARGET.cel_and(target::CEL_PART_LENGTHS))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub target_resource: String,
    /// Values for the workflow's declared parameters, as text: `"3"` is an integer where the
    /// workflow declares one. They become environment variables (job) or params (tekton).
    #[schemars(with = "BTreeMap<String, ParameterValue>", extend("maxProperties" = 64))]
    #[x_kube(
        validation = parameters::cel_names(),
        validation = parameters::cel_reserved(),
        validation = parameters::cel_total(),
        validation = parameters::cel_no_nul()
    )]
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        default,
        deserialize_with = "null_is_default"
    )]
    pub parameters: BTreeMap<String, String>,
    /// How the workflow is run.
    #[serde(
        skip_serializing_if = "ExecutionConfig::is_default",
        default,
        deserialize_with = "null_is_default"
    )]
    pub execution_config: ExecutionConfig,
    /// The remediation that asks for this; its name is the correlation id of the audit trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remediation_request_ref: Option<RemediationRequestRef>,
    /// How sure the analysis was of this workflow, 0 to 1. For the audit reader.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Why the analysis chose this workflow. For the audit reader.
    #[schemars(length(max = 16384))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rationale: Option<String>,
}

/// One entry of the workflow catalog, and the content to run.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowRef {
    /// The workflow's name, for people.
    #[schemars(length(max = 253))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The key in the catalog.
    #[schemars(length(min = 1, max = 255))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub workflow_id: String,
    /// The workflow's version; must be the catalog's.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub version: String,
    /// For engine `job`: the image to run, as `registry/repository[:tag]@sha256:<digest>`.
    #[schemars(length(max = 512))]
    #[x_kube(validation = image::IMAGE.cel_and(image::CEL_NAME_LENGTH))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_image: Option<String>,
    /// For engine `tekton`: the bundle to run, as `oci://registry/repository[:tag][@sha256:<digest>]`.
    #[schemars(length(max = 512))]
    #[x_kube(validation = image::BUNDLE.cel_and(image::CEL_NAME_LENGTH))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle_ref: Option<String>,
}

/// How a workflow is run.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionConfig {
    /// How long the execution may take, 1s to 24h (default 30m).
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration::TIMEOUT.cel_and(duration::CEL_BOUNDS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// The ServiceAccount the workflow runs as, in the execution namespace (default
    /// `kubernaut-workflow-runner`). It must carry the label `kubernaut.ai/workflow-runner: "true"`.
    #[schemars(length(max = 253))]
    #[x_kube(validation = pattern::OBJECT_NAME.cel())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// What happens when the workflow may not run now (target busy, cooling down or backing off):
    /// `Skip` (default) ends it as Skipped, `Wait` keeps it Pending until it may run.
    #[schemars(with = "Option<WhenBlockedName>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_blocked: Option<String>,
}

impl ExecutionConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The RemediationRequest that asks for an execution.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RemediationRequestRef {
    /// API version of the object.
    #[schemars(length(max = 253))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Kind of the object.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of the object: the correlation id of the audit trail.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// Namespace of the object.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Uid of the object.
    #[schemars(length(max = 128))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// The schema of `executionEngine`; stored as text.
#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum EngineName {
    Job,
    Tekton,
}

/// The schema of `whenBlocked`; stored as text.
#[derive(JsonSchema, Serialize)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum WhenBlockedName {
    Skip,
    Wait,
}

/// A value, at most 8,192 characters.
#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
struct ParameterValue(#[schemars(length(max = 8192))] String);

/// A required field that is null is a missing one: the rules report it with all other violations,
/// where a type error would hide them.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What became of a WorkflowExecution. Written by the controller only, but for the clearing of a
/// block.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
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
    /// Why the target may be worked on again.
    #[schemars(length(max = 1024))]
    pub clear_reason: String,
    /// When it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Time>,
}

/// Who cleared a block, by the API server's word.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockClearance {
    /// User name.
    pub cleared_by: String,
    /// The user's uid, where the API server knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared_by_uid: Option<String>,
    /// When.
    pub cleared_at: Time,
    /// Why.
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
