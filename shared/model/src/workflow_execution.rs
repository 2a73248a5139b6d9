//! The `WorkflowExecution` resource as it is stored.
//!
//! What people write is kept as text, so that an object that slipped in with a bad value is one
//! that ends Failed with a reason, not one that breaks a list; the schema still says what is
//! allowed ([`crd`](crate::crd)), and [`rules`](crate::rules) turns the text into checked types.
//! What only the controller writes (status) is typed here.

mod status;

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::status::{
    BlockClearance, BlockClearanceRequest, CLEAR_REASON, CLEAR_REASON_MAX, CLEAR_REASON_MIN,
    ClearMethod, ConflictingWorkflow, ExecutionRef, ExecutionStatusSummary, FailureDetails,
    FailureReason, NOTHING_TO_CLEAR, Phase, RecentRemediation, SkipDetails, SkipReason, TriState,
    WorkflowExecutionStatus,
};
use crate::{duration, image, parameters, pattern, rules, target};

/// Most characters of texts that are only carried; the rules hold the same.
pub mod limit {
    /// Key in the catalog.
    pub const WORKFLOW_ID: usize = 255;
    /// Version in the catalog.
    pub const VERSION: usize = 64;
    /// Names of objects and workflows, API versions.
    pub const NAME: usize = 253;
    /// Namespaces and kinds.
    pub const LABEL: usize = 63;
    /// Uids.
    pub const UID: usize = 128;
    /// The analysis' reasons.
    pub const RATIONALE: usize = 16_384;
}

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
    ).message("a final phase (Succeeded, Failed, Skipped) never changes").field_path(".status.phase"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.blockClearance) || (has(self.status) && has(self.status.blockClearance) && self.status.blockClearance == oldSelf.status.blockClearance)"
    ).message("who cleared a block, when and why, is never changed or removed").field_path(".status.blockClearance")
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
    #[schemars(length(max = target::TARGET.max_length))]
    #[x_kube(validation = target::TARGET.cel_and(target::CEL_PART_LENGTHS))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub target_resource: String,
    /// Values for the workflow's declared parameters, as text: `"3"` is an integer where the
    /// workflow declares one. They become environment variables (job) or params (tekton).
    #[schemars(with = "BTreeMap<String, ParameterValue>", extend("maxProperties" = parameters::MAX_COUNT))]
    #[x_kube(
        validation = parameters::cel_names(),
        validation = parameters::cel_reserved(),
        validation = parameters::cel_total(),
        validation = parameters::cel_no_nul()
    )]
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        default,
        deserialize_with = "without_nulls"
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
    #[schemars(length(max = limit::RATIONALE))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rationale: Option<String>,
}

impl WorkflowExecution {
    /// The stored phase; none before the first status.
    pub fn phase(&self) -> Option<Phase> {
        self.status.as_ref()?.phase
    }

    /// The Job or PipelineRun, once there is one.
    pub fn execution_ref(&self) -> Option<&ExecutionRef> {
        self.status.as_ref()?.execution_ref.as_ref()
    }
}

/// One entry of the workflow catalog, and the content to run.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowRef {
    /// The workflow's name, for people.
    #[schemars(length(max = limit::NAME))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The key in the catalog.
    #[schemars(length(min = 1, max = limit::WORKFLOW_ID))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub workflow_id: String,
    /// The workflow's version; must be the catalog's.
    #[schemars(length(min = 1, max = limit::VERSION))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub version: String,
    /// For engine `job`: the image to run, as `registry/repository[:tag]@sha256:<digest>`.
    #[schemars(length(max = image::IMAGE.max_length))]
    #[x_kube(validation = image::IMAGE.cel_and(image::CEL_NAME_LENGTH))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_image: Option<String>,
    /// For engine `tekton`: the bundle to run, as `oci://registry/repository[:tag][@sha256:<digest>]`.
    #[schemars(length(max = image::BUNDLE.max_length))]
    #[x_kube(validation = image::BUNDLE.cel_and(image::CEL_NAME_LENGTH))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle_ref: Option<String>,
}

/// How a workflow is run.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionConfig {
    /// How long the execution may take, 1s to 24h (default 30m).
    #[schemars(length(max = duration::TIMEOUT.max_length))]
    #[x_kube(validation = duration::TIMEOUT.cel_and(duration::CEL_BOUNDS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// The ServiceAccount the workflow runs as, in the execution namespace (default
    /// `kubernaut-workflow-runner`). It must carry the label `kubernaut.ai/workflow-runner: "true"`.
    #[schemars(length(max = pattern::OBJECT_NAME.max_length))]
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
    #[schemars(length(max = limit::NAME))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Kind of the object.
    #[schemars(length(max = limit::LABEL))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of the object: the correlation id of the audit trail.
    #[schemars(length(min = 1, max = limit::NAME))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// Namespace of the object.
    #[schemars(length(max = limit::LABEL))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Uid of the object.
    #[schemars(length(max = limit::UID))]
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
struct ParameterValue(#[schemars(length(max = parameters::MAX_VALUE_LENGTH))] String);

/// A value that is null is one that is not there: the API server prunes it.
fn without_nulls<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let values = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
    let values = values.into_iter().flatten();
    Ok(values
        .filter_map(|(name, value)| Some((name, value?)))
        .collect())
}

/// A required field that is null is a missing one: the rules report it with all other violations,
/// where a type error would hide them.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
