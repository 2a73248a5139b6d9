//! RemediationRequest and AIAnalysis, two resources of other controllers: the fields that wfe reads,
//! and those of their statuses that it writes.
//!
//! Everything is read leniently: another release may lack a field. No definition of them is installed.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display};

/// A resource in the cluster.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceIdentifier {
    /// API group and version, as in manifests; absent: the kind says enough.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Kind, as in manifests.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace; absent: cluster-scoped.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

impl ResourceIdentifier {
    /// As in `spec.targetResource` of a WorkflowExecution.
    pub fn target(&self) -> String {
        let Self {
            kind,
            name,
            namespace,
            ..
        } = self;
        if namespace.is_empty() {
            format!("{kind}/{name}")
        } else {
            format!("{namespace}/{kind}/{name}")
        }
    }
}

/// An object by its name.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// Namespace; absent: that of the object that refers to it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// A signal that is to be remediated.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "kubernaut.ai",
    version = "v1alpha1",
    kind = "RemediationRequest",
    plural = "remediationrequests",
    shortname = "rr",
    namespaced,
    status = "RemediationRequestStatus",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct RemediationRequestSpec {
    /// Identifies the signal, 64 hex digits.
    pub signal_fingerprint: String,
    /// Name of the signal, for example `OOMKilled`.
    pub signal_name: String,
    /// Severity.
    pub severity: String,
    /// Type of the signal.
    pub signal_type: String,
    /// System of the target; `kubernetes`.
    pub target_type: String,
    /// The resource with the signal.
    pub target_resource: ResourceIdentifier,
    /// The cluster of the resource; empty: this one.
    #[serde(rename = "clusterID", skip_serializing_if = "String::is_empty")]
    pub cluster_id: String,
    /// When the signal began.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub firing_time: String,
    /// When the signal was received.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub received_time: String,
}

/// What became of a RemediationRequest.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RemediationRequestStatus {
    /// Phase; see [`RequestPhase`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub overall_phase: String,
    /// Why the phase is Blocked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub block_reason: String,
    /// What keeps it from running, in the phase Blocked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub block_message: String,
    /// What it came to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub outcome: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub failure_reason: String,
    /// Timeouts of its phases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_config: Option<TimeoutConfig>,
    /// Its AIAnalysis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ai_analysis_ref: Option<Reference>,
    /// Its WorkflowExecution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow_execution_ref: Option<Reference>,
    /// Conditions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Timeouts of the phases of a RemediationRequest.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TimeoutConfig {
    /// Of the whole remediation, as `1h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<String>,
    /// Of the execution, as `10m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executing: Option<String>,
}

/// Phases of a RemediationRequest that never change.
const FINAL_PHASES: [&str; 5] = ["Completed", "Failed", "TimedOut", "Skipped", "Cancelled"];

impl RemediationRequest {
    /// Its phase; empty: none yet.
    pub fn phase(&self) -> &str {
        self.status.as_ref().map_or("", |it| &it.overall_phase)
    }

    /// Whether it never changes any more.
    pub fn is_ended(&self) -> bool {
        FINAL_PHASES.contains(&self.phase())
    }
}

/// Phases of a RemediationRequest that wfe acts in or writes.
#[derive(AsRefStr, Clone, Copy, Debug, Display, Eq, PartialEq)]
pub enum RequestPhase {
    /// The WorkflowExecution was created.
    Executing,
    /// The WorkflowExecution waits for its target.
    Blocked,
    /// The WorkflowExecution has succeeded.
    Completed,
    /// The WorkflowExecution has failed, was skipped, or was not created.
    Failed,
}

/// An analysis of a signal: what caused it, and which workflow remediates it.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "kubernaut.ai",
    version = "v1alpha1",
    kind = "AIAnalysis",
    plural = "aianalyses",
    namespaced,
    status = "AIAnalysisStatus",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct AIAnalysisSpec {
    /// The RemediationRequest that it is for.
    pub remediation_request_ref: Reference,
    /// Correlation id.
    pub remediation_id: String,
    /// What is to be analysed.
    pub analysis_request: AnalysisRequest,
}

/// What is to be analysed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AnalysisRequest {
    /// The signal and its context.
    pub signal_context: SignalContext,
}

/// A signal and its context.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SignalContext {
    /// Identifies the signal.
    pub fingerprint: String,
    /// One of critical, high, medium, low, warning, info.
    pub severity: String,
    /// Name of the signal, for example `OOMKilled`.
    pub signal_name: String,
    /// Environment, for example `production`.
    pub environment: String,
    /// Business priority, `P0` to `P3`.
    pub business_priority: String,
    /// The resource with the signal.
    pub target_resource: ResourceIdentifier,
}

/// What an analysis has found.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AIAnalysisStatus {
    /// `Pending`, `Investigating`, `Analyzing`, `Completed` or `Failed`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Why it failed; one of a closed set of Kubernaut.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why it failed, in a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Whether a person must approve before the workflow is run.
    pub approval_required: bool,
    /// Whether a person must look at the signal.
    pub needs_human_review: bool,
    /// Session of the investigation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub investigation_session: Option<InvestigationSession>,
    /// The workflow that was selected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_workflow: Option<SelectedWorkflow>,
    /// The cause of the signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_cause_analysis: Option<RootCauseAnalysis>,
    /// Both, as releases from 1.5.7 on write them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rca_result: Option<RcaResult>,
    /// What the analysis claimed and was corrected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Session of an investigation.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InvestigationSession {
    /// Id of the session; empty while it is being begun.
    pub id: String,
    /// How many sessions were begun.
    pub generation: u32,
    /// When this one was begun.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_at: String,
    /// When it was last asked for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_polled: String,
    /// How often it was asked for.
    pub poll_count: u32,
}

/// A selected workflow. Releases differ in how they name image or bundle.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SelectedWorkflow {
    /// Id in the catalog.
    pub workflow_id: String,
    /// Type of the action.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub action_type: String,
    /// Version.
    pub version: String,
    /// Image of a Job.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_image: String,
    /// Tekton bundle.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bundle_ref: String,
    /// Either of the two.
    pub execution_bundle: String,
    /// Digest of `executionBundle`, if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub execution_bundle_digest: String,
    /// From 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Values of the parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// Why this workflow.
    pub rationale: String,
    /// The engine that runs it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub execution_engine: String,
}

/// The cause of a signal.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RootCauseAnalysis {
    /// Summary.
    pub summary: String,
    /// One of critical, high, medium, low, unknown.
    pub severity: String,
    /// The signal, as the analysis names it.
    pub signal_type: String,
    /// The resource to remediate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affected_resource: Option<ResourceIdentifier>,
    /// The same, as releases from 1.5.7 on name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remediation_target: Option<ResourceIdentifier>,
}

/// Result of an analysis, as releases from 1.5.7 on write it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RcaResult {
    /// The workflow that was selected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_workflow: Option<SelectedWorkflow>,
    /// The cause of the signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_cause_analysis: Option<RootCauseAnalysis>,
}

impl AIAnalysisStatus {
    /// The selected workflow, in either shape.
    pub fn selection(&self) -> Option<&SelectedWorkflow> {
        let newer = self.rca_result.as_ref();
        let newer = newer.and_then(|it| it.selected_workflow.as_ref());
        newer.or(self.selected_workflow.as_ref())
    }

    /// The resource to remediate, in either shape.
    pub fn target(&self) -> Option<&ResourceIdentifier> {
        let newer = self.rca_result.as_ref();
        let newer = newer.and_then(|it| it.root_cause_analysis.as_ref());
        newer.or(self.root_cause_analysis.as_ref())?.target()
    }
}

impl RootCauseAnalysis {
    /// The resource to remediate, in either shape.
    pub fn target(&self) -> Option<&ResourceIdentifier> {
        let target = self.remediation_target.as_ref();
        let target = target.or(self.affected_resource.as_ref());
        target.filter(|it| !it.name.is_empty())
    }
}
