//! The `WorkflowExecution` resource as it is stored.
//!
//! Spec fields are kept as text, so that a stored object with an invalid value still deserializes
//! and ends as Failed with a reason, instead of failing every list request. The schema
//! ([`crd`](crate::crd)) restricts the values, and [`rules`](crate::rules) converts the text to
//! checked types. The status, which only the controller writes, is typed here.

mod status;

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::status::{
    BlockClearance, BlockClearanceRequest, CLEAR_REASON, CLEAR_REASON_MAX, CLEAR_REASON_MIN,
    CLEARANCE_IMMUTABLE, ClearMethod, ConflictingWorkflow, ExecutionRef, ExecutionStatusSummary,
    FailureDetails, FailureReason, NOTHING_TO_CLEAR, Phase, RecentRemediation, SkipDetails,
    SkipReason, TriState, WorkflowExecutionStatus, clear_command,
};
use crate::engine::{Engine, ReferenceField};
pub use crate::limit;
use crate::{duration, image, parameters, pattern, target, violation};

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
        json_path = ".status['failureDetails','skipDetails','executionStatus'].reason",
        priority = 1
    ),
    printcolumn(
        name = "Ran",
        type_ = "boolean",
        json_path = ".status.failureDetails.wasExecutionFailure",
        priority = 1
    ),
    printcolumn(
        name = "Cleared by",
        type_ = "string",
        json_path = ".status.blockClearance.clearedBy",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.phase) || !(oldSelf.status.phase in ['Succeeded', 'Failed', 'Skipped']) || (has(self.status) && has(self.status.phase) && self.status.phase == oldSelf.status.phase)"
    ).message("a final phase (Succeeded, Failed, Skipped) never changes").field_path(".status.phase"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.blockClearance) || (has(self.status) && has(self.status.blockClearance) && self.status.blockClearance == oldSelf.status.blockClearance)"
    ).message(CLEARANCE_IMMUTABLE).field_path(".status.blockClearance")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message(violation::IMMUTABLE))]
pub struct WorkflowExecutionSpec {
    /// Engine that runs the workflow: `job` (one container in a Kubernetes Job) or `tekton`
    /// (a Tekton PipelineRun). There is no default.
    #[schemars(with = "Engine")]
    #[serde(default, deserialize_with = "null_is_default")]
    pub execution_engine: String,
    /// Workflow to run.
    #[serde(default, deserialize_with = "null_is_default")]
    pub workflow_ref: WorkflowRef,
    /// Resource to remediate, as `[namespace/]kind/name`. The kind must be served by the API
    /// server; the namespace is required for namespaced kinds and forbidden for cluster-scoped
    /// kinds.
    #[schemars(length(max = target::TARGET.max_length))]
    #[x_kube(validation = target::TARGET.cel_and(target::CEL_PART_LENGTHS))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub target_resource: String,
    /// Values for the parameters that the workflow declares, as text: `"3"` is valid for a
    /// parameter of type integer. They become environment variables (job) or params (tekton).
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
    /// Options for running the workflow.
    #[serde(
        skip_serializing_if = "ExecutionConfig::is_default",
        default,
        deserialize_with = "null_is_default"
    )]
    pub execution_config: ExecutionConfig,
    /// RemediationRequest that this execution belongs to. Its name is the correlation id in the
    /// audit trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remediation_request_ref: Option<RemediationRequestRef>,
    /// User who created this object. The webhook sets it; only the requesting user's own is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<Requester>,
    /// Confidence of the analysis in this workflow, from 0 to 1. Informational.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Why the analysis chose this workflow. Informational.
    #[schemars(length(max = limit::RATIONALE))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rationale: Option<String>,
}

impl WorkflowExecution {
    /// The stored phase; `None` before the controller has written a status.
    pub fn phase(&self) -> Option<Phase> {
        self.status.as_ref()?.phase
    }

    /// Whether no execution was created yet.
    pub fn is_pending(&self) -> bool {
        self.phase().is_none_or(|phase| phase == Phase::Pending)
    }

    /// The Job or PipelineRun; `None` before it is created.
    pub fn execution_ref(&self) -> Option<&ExecutionRef> {
        self.status.as_ref()?.execution_ref.as_ref()
    }
}

/// A user as the API server has authenticated them.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requester {
    /// Name of the user.
    #[schemars(length(min = 1, max = limit::USER))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub username: String,
    /// Uid of the user; client certificates have none.
    #[schemars(length(max = limit::USER))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Reference to a workflow in the catalog, and the image or bundle to run.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowRef {
    /// Name of the workflow. Informational.
    #[schemars(length(max = limit::NAME))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Id of the workflow in the catalog.
    #[schemars(length(min = 1, max = limit::WORKFLOW_ID))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub workflow_id: String,
    /// Version of the workflow; must equal the version in the catalog.
    #[schemars(length(min = 1, max = limit::VERSION))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub version: String,
    /// Image to run, required for engine `job`, as `registry/repository[:tag]@sha256:<digest>`.
    #[schemars(length(max = image::IMAGE.max_length))]
    #[x_kube(validation = image::IMAGE.cel_and(image::CEL_NAME_LENGTH))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_image: Option<String>,
    /// Tekton bundle to run, required for engine `tekton`, as
    /// `oci://registry/repository[:tag][@sha256:<digest>]`.
    #[schemars(length(max = image::BUNDLE.max_length))]
    #[x_kube(validation = image::BUNDLE.cel_and(image::CEL_NAME_LENGTH))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle_ref: Option<String>,
}

impl WorkflowRef {
    /// The image or bundle in a field.
    pub fn get(&self, field: ReferenceField) -> Option<&str> {
        match field {
            ReferenceField::ContainerImage => self.container_image.as_deref(),
            ReferenceField::BundleRef => self.bundle_ref.as_deref(),
        }
    }

    /// Sets the image or bundle in a field.
    pub fn set(&mut self, field: ReferenceField, value: String) {
        match field {
            ReferenceField::ContainerImage => self.container_image = Some(value),
            ReferenceField::BundleRef => self.bundle_ref = Some(value),
        }
    }
}

/// Options for running a workflow.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionConfig {
    /// Maximum run time of the execution, from 1s to 24h (default 30m).
    #[schemars(length(max = duration::TIMEOUT.max_length))]
    #[x_kube(validation = duration::TIMEOUT.cel_and(duration::CEL_BOUNDS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// ServiceAccount in the execution namespace that the workflow runs as (default
    /// `kubernaut-workflow-runner`). It must have the label `kubernaut.ai/workflow-runner: "true"`.
    #[schemars(length(max = pattern::OBJECT_NAME.max_length))]
    #[x_kube(validation = pattern::OBJECT_NAME.cel())]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// What to do while the target is busy, in its cooldown or in its backoff: `Skip` (default)
    /// ends this WorkflowExecution as Skipped, `Wait` keeps it Pending until the workflow may run.
    #[schemars(with = "Option<WhenBlockedName>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_blocked: Option<String>,
}

impl ExecutionConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Reference to the RemediationRequest that an execution belongs to.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RemediationRequestRef {
    /// API version of the RemediationRequest.
    #[schemars(length(max = limit::NAME))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Kind of the referenced object, `RemediationRequest`.
    #[schemars(length(max = limit::LABEL))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of the RemediationRequest, used as the correlation id in the audit trail.
    #[schemars(length(min = 1, max = limit::NAME))]
    #[serde(default, deserialize_with = "null_is_default")]
    pub name: String,
    /// Namespace of the RemediationRequest.
    #[schemars(length(max = limit::LABEL))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Uid of the RemediationRequest.
    #[schemars(length(max = limit::UID))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Schema of `whenBlocked`, which is stored as text.
#[derive(JsonSchema, Serialize)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum WhenBlockedName {
    Skip,
    Wait,
}

/// Value of a parameter, at most 8,192 characters.
#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
struct ParameterValue(#[schemars(length(max = parameters::MAX_VALUE_LENGTH))] String);

/// Drops null values, as the API server prunes them.
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

/// Reads a null required field as a missing one, so that the rules report it together with all
/// other violations; a type error would hide them.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
