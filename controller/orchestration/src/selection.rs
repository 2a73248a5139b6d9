//! From the workflow that an analysis has selected to a WorkflowExecution, or to the reason why there
//! is none.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};
use wfe_model::engine::{Engine, ReferenceField};
use wfe_model::remediation::{
    AIAnalysisStatus, RemediationRequest, ResourceIdentifier, SelectedWorkflow,
};
use wfe_model::text::shortened;
use wfe_model::workflow::{TargetKind, Workflow};
use wfe_model::workflow_execution::{
    ExecutionConfig, RemediationRequestRef, WorkflowExecution, WorkflowExecutionSpec, WorkflowRef,
};

use crate::outcome::{Report, RequestReason};

/// Longest name of an object.
const MAX_NAME: usize = 253;
/// Hex digits of the hash in a name that was cut.
const HASH_DIGITS: usize = 8;

/// Name of the WorkflowExecution of a RemediationRequest. A name that would be too long is cut, and
/// gets a hash of the whole.
pub fn execution_name(request: &str) -> String {
    let name = format!("we-{request}");
    if name.len() <= MAX_NAME {
        return name;
    }
    let hash = hex::encode(Sha256::digest(request.as_bytes()));
    // Names are ASCII.
    let kept: String = name.chars().take(MAX_NAME - HASH_DIGITS - 1).collect();
    let hash: String = hash.chars().take(HASH_DIGITS).collect();
    format!("{}-{hash}", kept.trim_end_matches(['-', '.']))
}

/// What may be run: the selected workflow, its target and its engine, as far as they can be checked
/// without the catalog.
#[derive(Debug, PartialEq)]
pub struct Selection<'a> {
    /// The selected workflow.
    pub workflow: &'a SelectedWorkflow,
    /// The engine that the analysis claims.
    pub engine: Engine,
    /// The resource to remediate.
    pub target: &'a ResourceIdentifier,
}

impl<'a> Selection<'a> {
    /// Reads the selection of an analysis.
    pub fn read(
        request: &'a RemediationRequest,
        analysis: &'a AIAnalysisStatus,
        platform_namespace: &str,
    ) -> Result<Self, Report> {
        let Some(workflow) = analysis.selection() else {
            let message = "the AIAnalysis is Completed without status.selectedWorkflow: it must select a workflow, or fail";
            return Err(Report::refused(RequestReason::NoWorkflowSelected, message));
        };
        let supported = Engine::supported();
        let engine = match workflow.execution_engine.as_str() {
            "" => {
                let message = format!(
                    "selectedWorkflow.executionEngine: required value: supported values are {supported} (there is no default)"
                );
                return Err(Report::refused(RequestReason::EngineMissing, &message));
            }
            text => Engine::parse(text).ok_or_else(|| {
                let found = shortened(text);
                let message = format!(
                    "selectedWorkflow.executionEngine: unsupported value {found:?}: supported values are {supported}"
                );
                Report::refused(RequestReason::UnsupportedEngine, &message)
            })?,
        };
        let target = analysis.target().unwrap_or(&request.spec.target_resource);
        let namespace = request.namespace().unwrap_or_default();
        may_name(&namespace, platform_namespace, target)
            .map_err(|message| Report::refused(RequestReason::TargetNotAllowed, &message))?;
        Ok(Self {
            workflow,
            engine,
            target,
        })
    }

    /// The WorkflowExecution.
    pub fn execution(
        &self,
        request: &RemediationRequest,
        entry: &Workflow,
    ) -> Result<WorkflowExecution, Report> {
        if self.engine != entry.engine {
            let message = format!(
                "selectedWorkflow.executionEngine: invalid value \"{}\": must be the engine of workflow {:?} in the catalog, \"{}\"",
                self.engine, entry.workflow_id, entry.engine
            );
            return Err(Report::refused(RequestReason::EngineMismatch, &message));
        }
        if let Some(message) = other_group(self.target, entry) {
            return Err(Report::refused(RequestReason::TargetNotAllowed, &message));
        }
        let timeouts = request.status.as_ref();
        let timeouts = timeouts.and_then(|it| it.timeout_config.as_ref());
        let mut spec = spec(self.workflow, self.target, entry);
        spec.execution_config = ExecutionConfig {
            timeout: timeouts.and_then(|it| it.executing.clone()),
            when_blocked: Some("Wait".to_owned()),
            ..ExecutionConfig::default()
        };
        spec.remediation_request_ref = Some(RemediationRequestRef {
            api_version: Some(RemediationRequest::api_version(&()).into_owned()),
            kind: Some(RemediationRequest::kind(&()).into_owned()),
            name: request.name_any(),
            namespace: request.namespace(),
            uid: request.uid(),
        });
        let mut execution = WorkflowExecution::new(&execution_name(&request.name_any()), spec);
        execution.metadata.namespace = request.namespace();
        let owner = request
            .controller_owner_ref(&())
            .map(|owner| OwnerReference {
                block_owner_deletion: Some(true),
                ..owner
            });
        execution.metadata.owner_references = owner.map(|owner| vec![owner]);
        Ok(execution)
    }
}

/// Whether an object in `namespace` may name this target; the error says why not. Those of the platform
/// may name any target, the others only targets in their own namespace: what follows is done with the
/// permissions of this program, not with those of the object's creator.
pub fn may_name(
    namespace: &str,
    platform_namespace: &str,
    target: &ResourceIdentifier,
) -> Result<(), String> {
    if namespace == platform_namespace || target.namespace == namespace {
        return Ok(());
    }
    let target = shortened(&target.target());
    Err(format!(
        "target {target:?}: an object in namespace {namespace} must name a target there; only those in namespace {platform_namespace} may name others"
    ))
}

/// A target of a group that is not Kubernetes' own: its kind alone may be that of another resource, so
/// the workflow must be for this group.
fn other_group(target: &ResourceIdentifier, entry: &Workflow) -> Option<String> {
    let (group, _) = target.api_version.split_once('/')?;
    let is_own = !group.contains('.') || group.ends_with(".k8s.io");
    let kind = &target.kind;
    let is_listed = |it: &TargetKind| it.kind == *kind && it.group.as_deref() == Some(group);
    (!is_own && !entry.target_kinds.iter().any(is_listed)).then(|| {
        format!(
            "target {:?} is of {kind}.{group}: workflow {:?} must list it in execution.targetKinds",
            shortened(&target.target()),
            entry.workflow_id
        )
    })
}

/// The spec of a WorkflowExecution of the selected workflow, with the engine and, where the analysis
/// names none, the image of the catalog's entry.
pub fn spec(
    selected: &SelectedWorkflow,
    target: &ResourceIdentifier,
    entry: &Workflow,
) -> WorkflowExecutionSpec {
    let field = entry.engine.runs();
    let image = image(selected, field);
    let image = image.unwrap_or_else(|| entry.bundle.to_string());
    let scheme = field.scheme();
    let image = format!("{scheme}{}", image.trim_start_matches("oci://"));
    let mut workflow_ref = WorkflowRef {
        workflow_id: selected.workflow_id.clone(),
        version: selected.version.clone(),
        ..WorkflowRef::default()
    };
    workflow_ref.set(field, image);
    WorkflowExecutionSpec {
        execution_engine: entry.engine.as_str().to_owned(),
        workflow_ref,
        target_resource: target.target(),
        parameters: selected.parameters.clone(),
        confidence: selected.confidence,
        rationale: Some(selected.rationale.clone()).filter(|it| !it.is_empty()),
        ..WorkflowExecutionSpec::default()
    }
}

/// The image or bundle that the analysis names.
fn image(selected: &SelectedWorkflow, field: ReferenceField) -> Option<String> {
    let SelectedWorkflow {
        container_image,
        bundle_ref,
        execution_bundle,
        execution_bundle_digest,
        ..
    } = selected;
    let own = match field {
        ReferenceField::ContainerImage => container_image,
        ReferenceField::BundleRef => bundle_ref,
    };
    if !own.is_empty() {
        return Some(own.clone());
    }
    if execution_bundle.is_empty() {
        return None;
    }
    if execution_bundle_digest.is_empty() || execution_bundle.contains('@') {
        return Some(execution_bundle.clone());
    }
    let digest = execution_bundle_digest.trim_start_matches("sha256:");
    Some(format!("{execution_bundle}@sha256:{digest}"))
}
