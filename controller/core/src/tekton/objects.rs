//! The fields of Tekton's objects that this program uses. Objects are created and patched, never
//! replaced, so other fields are kept.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, ContainerStateTerminated, PodSecurityContext, SecretVolumeSource,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `spec.status` of a PipelineRun that must not start yet.
pub const PENDING: &str = "PipelineRunPending";
/// `spec.status` of a PipelineRun that is cancelled; its `finally` tasks run.
pub const CANCELLED: &str = "CancelledRunFinally";
/// Label of a TaskRun: the name of its PipelineRun.
pub const PIPELINE_RUN: &str = "tekton.dev/pipelineRun";
/// Label of a TaskRun: the task of the pipeline.
pub const PIPELINE_TASK: &str = "tekton.dev/pipelineTask";

/// Spec of a PipelineRun.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "tekton.dev",
    version = "v1",
    kind = "PipelineRun",
    namespaced,
    schema = "disabled",
    status = "PipelineRunStatus",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct PipelineRunSpec {
    /// The pipeline to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline_ref: Option<ResolverRef>,
    /// Values of the pipeline's params.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<Param>,
    /// [`PENDING`], [`CANCELLED`], or another request to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Time limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// Settings of every TaskRun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_run_template: Option<TaskRunTemplate>,
    /// Volumes for the pipeline's workspaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workspaces: Vec<Workspace>,
}

/// Where Tekton finds a pipeline.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ResolverRef {
    /// Name of the resolver.
    pub resolver: String,
    /// What the resolver is asked for.
    pub params: Vec<Param>,
}

/// A named value.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Param {
    /// Name.
    pub name: String,
    /// A text; other clients' objects may have arrays and objects.
    pub value: Value,
}

/// Time limits of a PipelineRun.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Timeouts {
    /// Of all tasks together, `finally` tasks included, as `90s`.
    pub pipeline: String,
}

/// Settings of every TaskRun of a PipelineRun.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskRunTemplate {
    /// ServiceAccount of the pods.
    pub service_account_name: String,
    /// Settings of the pods.
    pub pod_template: PodTemplate,
}

/// Settings of the pods of a PipelineRun.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodTemplate {
    /// Security context of the pods.
    pub security_context: PodSecurityContext,
    /// Whether the pods get environment variables for every Service.
    pub enable_service_links: bool,
}

/// A volume for a workspace.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Workspace {
    /// Name of the workspace in the pipeline.
    pub name: String,
    /// A Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolumeSource>,
    /// A ConfigMap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolumeSource>,
}

/// Status of a PipelineRun.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PipelineRunStatus {
    /// Conditions; `Succeeded` says how the run ends.
    pub conditions: Vec<TektonCondition>,
    /// When Tekton started the run.
    pub start_time: Option<Time>,
    /// When the run ended.
    pub completion_time: Option<Time>,
    /// The pipeline, once Tekton has resolved it.
    pub pipeline_spec: Option<PipelineSpec>,
    /// Tasks that are not run.
    pub skipped_tasks: Vec<Named>,
    /// Results of the pipeline.
    pub results: Vec<Param>,
}

/// A condition of Tekton's objects.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TektonCondition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason.
    pub reason: Option<String>,
    /// Message.
    pub message: Option<String>,
}

/// The condition that says whether and how a run or a request has ended.
pub(super) fn succeeded(conditions: &[TektonCondition]) -> Option<&TektonCondition> {
    conditions.iter().find(|it| it.kind == "Succeeded")
}

/// What a pipeline declares.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct PipelineSpec {
    /// Tasks.
    pub tasks: Vec<Named>,
    /// Tasks that run after all others, also after a failure or a cancellation.
    pub finally: Vec<Named>,
    /// Params.
    pub params: Vec<Named>,
    /// Workspaces.
    pub workspaces: Vec<Named>,
}

/// Something with a name.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Named {
    /// Name.
    pub name: String,
}

/// Spec of a TaskRun; nothing of it is used.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "tekton.dev",
    version = "v1",
    kind = "TaskRun",
    namespaced,
    schema = "disabled",
    status = "TaskRunStatus",
    derive = "Default",
    derive = "PartialEq"
)]
pub struct TaskRunSpec {}

/// Status of a TaskRun.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskRunStatus {
    /// Conditions; `Succeeded` says how the run ends.
    pub conditions: Vec<TektonCondition>,
    /// When the run ended.
    pub completion_time: Option<Time>,
    /// Steps.
    pub steps: Vec<StepState>,
}

/// State of a step.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StepState {
    /// Name of the step in its task.
    pub name: String,
    /// How the step ended.
    pub terminated: Option<ContainerStateTerminated>,
    /// Why the step ended; `Skipped` after an earlier step has failed.
    pub termination_reason: Option<String>,
}

/// Spec of a request to one of Tekton's resolvers.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "resolution.tekton.dev",
    version = "v1beta1",
    kind = "ResolutionRequest",
    namespaced,
    schema = "disabled",
    status = "ResolutionRequestStatus",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(default)]
pub struct ResolutionRequestSpec {
    /// What the resolver is asked for.
    pub params: Vec<Param>,
}

/// Status of a request to one of Tekton's resolvers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ResolutionRequestStatus {
    /// Conditions; `Succeeded` says whether the request is answered.
    pub conditions: Vec<TektonCondition>,
    /// The answer, in base64.
    pub data: Option<String>,
}
