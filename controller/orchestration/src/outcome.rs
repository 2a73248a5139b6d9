//! What is reported to a RemediationRequest.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use serde_json::{Map, Value, json};
use strum::{Display, IntoStaticStr};
use wfe_model::remediation::{RemediationRequest, RequestPhase};
use wfe_model::text::cut;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecution};

/// Type of the condition.
pub const CONDITION: &str = "WorkflowExecutionReady";
/// Maximum length of the message of a condition.
const MAX_MESSAGE: usize = 32_768;

/// Reason of the condition, where it is not one of the WorkflowExecution's own.
#[derive(Clone, Copy, Debug, Display, Eq, IntoStaticStr, PartialEq)]
pub enum RequestReason {
    /// The analysis has selected no workflow.
    NoWorkflowSelected,
    /// The analysis names no engine.
    EngineMissing,
    /// The analysis names an engine that does not exist.
    UnsupportedEngine,
    /// The analysis names another engine than the catalog.
    EngineMismatch,
    /// The catalog does not have the workflow, or cannot run it.
    WorkflowNotUsable,
    /// The catalog cannot be asked.
    CatalogUnavailable,
    /// The target is in another namespace than the request may name.
    TargetNotAllowed,
    /// The resource is in another cluster.
    ClusterNotSupported,
    /// The request is older than its timeout.
    RequestTooOld,
    /// The analysis requires an approval.
    ApprovalRequired,
    /// The WorkflowExecution was denied at admission.
    AdmissionDenied,
    /// The API server cannot be asked, or does not let this program create WorkflowExecutions.
    ApiServerUnavailable,
    /// Another object has the name of the WorkflowExecution.
    NameTaken,
    /// The WorkflowExecution was deleted.
    WorkflowExecutionDeleted,
    /// The WorkflowExecution was created and has not begun.
    WorkflowExecutionCreated,
    /// The workflow runs.
    WorkflowExecutionRunning,
    /// The workflow has succeeded.
    WorkflowExecutionSucceeded,
}

/// What is reported to a RemediationRequest.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Its phase; `None`: as it is.
    pub phase: Option<RequestPhase>,
    /// Status of the condition.
    pub ready: TriState,
    /// Reason of the condition.
    pub reason: String,
    /// Message of the condition.
    pub message: String,
    /// Why it is Blocked.
    pub block_reason: Option<&'static str>,
    /// What it came to.
    pub outcome: Option<&'static str>,
    /// Name of the WorkflowExecution, if there is one.
    pub execution: Option<String>,
}

impl Report {
    fn new(phase: Option<RequestPhase>, ready: TriState, reason: &str, message: &str) -> Self {
        Self {
            phase,
            ready,
            reason: reason.to_owned(),
            message: cut(message, MAX_MESSAGE),
            block_reason: None,
            outcome: None,
            execution: None,
        }
    }

    /// There will be no WorkflowExecution.
    pub fn refused(reason: RequestReason, message: &str) -> Self {
        Self::failed(reason.into(), message)
    }

    /// A person must look at the signal.
    fn failed(reason: &str, message: &str) -> Self {
        let phase = Some(RequestPhase::Failed);
        Self {
            outcome: Some("ManualReviewRequired"),
            ..Self::new(phase, TriState::False, reason, message)
        }
    }

    /// It is not known yet whether there will be a WorkflowExecution.
    pub fn delayed(reason: RequestReason, message: &str) -> Self {
        Self::new(None, TriState::Unknown, reason.into(), message)
    }

    /// What has become of the WorkflowExecution.
    pub fn of(execution: &WorkflowExecution) -> Self {
        let report = match execution.phase() {
            None | Some(Phase::Pending) => pending(execution),
            Some(Phase::Running) => {
                let message = format!(
                    "workflow {} is running",
                    execution.spec.workflow_ref.workflow_id
                );
                let (phase, reason) = (
                    RequestPhase::Executing,
                    RequestReason::WorkflowExecutionRunning,
                );
                Self::new(Some(phase), TriState::True, reason.into(), &message)
            }
            Some(Phase::Succeeded) => {
                let (phase, reason) = (
                    RequestPhase::Completed,
                    RequestReason::WorkflowExecutionSucceeded,
                );
                let message = "the workflow has succeeded";
                Self {
                    outcome: Some("Remediated"),
                    ..Self::new(Some(phase), TriState::True, reason.into(), message)
                }
            }
            Some(Phase::Failed) => failed(execution),
            Some(Phase::Skipped) => skipped(execution),
        };
        Self {
            execution: Some(execution.name_any()),
            ..report
        }
    }

    /// The merge patch that stores the report; `None`: it is stored already.
    pub fn patch(&self, request: &RemediationRequest, now: Timestamp) -> Option<Value> {
        let stored = request.status.clone().unwrap_or_default();
        let mut status = Map::new();
        let mut set = |key: &str, stored: &str, value: &str| {
            if stored != value {
                let value = Some(value).filter(|it| !it.is_empty());
                status.insert(key.to_owned(), json!(value));
            }
        };
        if let Some(phase) = self.phase {
            let blocked = phase == RequestPhase::Blocked;
            let failed = phase == RequestPhase::Failed;
            set("overallPhase", &stored.overall_phase, phase.as_ref());
            set(
                "blockReason",
                &stored.block_reason,
                self.block_reason.unwrap_or_default(),
            );
            set(
                "blockMessage",
                &stored.block_message,
                if blocked { &self.message } else { "" },
            );
            set(
                "failureReason",
                &stored.failure_reason,
                if failed { &self.message } else { "" },
            );
            set("outcome", &stored.outcome, self.outcome.unwrap_or_default());
        }
        let known = stored.workflow_execution_ref.as_ref().map(|it| &it.name);
        if let Some(name) = &self.execution
            && known != Some(name)
        {
            let namespace = request.namespace();
            let reference = json!({
                "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
                "name": name, "namespace": namespace,
            });
            status.insert("workflowExecutionRef".to_owned(), reference);
        }
        let is = |it: &&Condition| it.type_ == CONDITION;
        let known = stored.conditions.iter().find(is);
        let (ready, generation) = (self.ready.as_str(), request.metadata.generation);
        // The text of an outage may be another one each time; each write would cause a pass at once.
        let is_outage = self.ready == TriState::Unknown && self.phase.is_none();
        let same = known.is_some_and(|it| {
            let same_message = is_outage || it.message == self.message;
            (it.status.as_str(), &it.reason) == (ready, &self.reason) && same_message
        });
        if !same {
            let since = known.filter(|it| it.status == ready);
            let condition = Condition {
                type_: CONDITION.to_owned(),
                status: ready.to_owned(),
                reason: self.reason.clone(),
                message: self.message.clone(),
                observed_generation: generation,
                last_transition_time: since.map_or(Time(now), |it| it.last_transition_time.clone()),
            };
            let others = stored.conditions.into_iter();
            let others = others.filter(|it| it.type_ != CONDITION);
            let all: Vec<_> = others.chain([condition]).collect();
            status.insert("conditions".to_owned(), json!(all));
        }
        if status.is_empty() {
            return None;
        }
        // A concurrent write of another client makes the patch a conflict.
        let version = &request.metadata.resource_version;
        Some(json!({ "metadata": { "resourceVersion": version }, "status": status }))
    }
}

/// A WorkflowExecution that has not begun.
fn pending(execution: &WorkflowExecution) -> Report {
    let conditions = execution.status.as_ref().map(|it| &it.conditions);
    let find = |kind: &str| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.find(|it| it.type_ == kind)
    };
    let blocked = find("Blocked").filter(|it| it.status == TriState::True.as_str());
    if let Some(blocked) = blocked {
        let block_reason = match blocked.reason.as_str() {
            "ResourceBusy" => Some("ResourceBusy"),
            "RecentlyRemediated" => Some("RecentlyRemediated"),
            "BackoffActive" => Some("ExponentialBackoff"),
            _ => None,
        };
        // The reasons of a RemediationRequest are a closed set: others are in the condition only.
        let phase = block_reason.map_or(RequestPhase::Executing, |_| RequestPhase::Blocked);
        let (reason, message) = (&blocked.reason, &blocked.message);
        return Report {
            block_reason,
            ..Report::new(Some(phase), TriState::False, reason, message)
        };
    }
    let unknown = ["WorkflowResolved", "DependenciesReady"].into_iter();
    let unknown = unknown.filter_map(find);
    let mut unknown = unknown.filter(|it| it.status == TriState::Unknown.as_str());
    let phase = Some(RequestPhase::Executing);
    if let Some(unknown) = unknown.next() {
        return Report::new(phase, TriState::Unknown, &unknown.reason, &unknown.message);
    }
    let message = format!("WorkflowExecution {} was created", execution.name_any());
    let reason = RequestReason::WorkflowExecutionCreated;
    Report::new(phase, TriState::True, reason.into(), &message)
}

fn failed(execution: &WorkflowExecution) -> Report {
    let status = execution.status.as_ref();
    let details = status.and_then(|it| it.failure_details.as_ref());
    details.map_or_else(
        || Report::failed("Unknown", ""),
        |it| Report::failed(it.reason.as_str(), &it.natural_language_summary),
    )
}

fn skipped(execution: &WorkflowExecution) -> Report {
    let status = execution.status.as_ref();
    let details = status.and_then(|it| it.skip_details.as_ref());
    details.map_or_else(
        || Report::failed("Unknown", ""),
        |it| Report::failed(it.reason.as_str(), &it.message),
    )
}
