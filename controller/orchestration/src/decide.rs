//! The next step for a RemediationRequest. A pure, total function of what is known.

use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt};
use wfe_model::duration::ExecutionTimeout;
use wfe_model::remediation::{AIAnalysis, RemediationRequest};
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_peers::catalog::{Lookup, LookupError};

use crate::outcome::{Report, RequestReason};
use crate::selection::Selection;

/// Phases in which the WorkflowExecution is created.
const ACTIVE: [&str; 5] = ["", "Pending", "Processing", "Analyzing", "Executing"];
/// Age at which a request without a timeout of its own is stale, as in Kubernaut.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(1);

/// What is known of a RemediationRequest.
pub struct Observed<'a> {
    /// The request.
    pub request: &'a RemediationRequest,
    /// Its analysis.
    pub analysis: Option<&'a AIAnalysis>,
    /// The object with the name of its WorkflowExecution, as just read from the API server.
    pub execution: Option<&'a WorkflowExecution>,
    /// The answer of the catalog.
    pub catalog: Option<Lookup>,
    /// The result of the create.
    pub created: Option<Created>,
    /// Requests here may name any target.
    pub platform_namespace: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// The result of a create.
#[derive(Clone, Debug)]
pub enum Created {
    /// It was denied at admission, in these words.
    Denied(String),
    /// It is not known whether it was created, or it was refused for another reason.
    Unanswered(String),
}

/// The next step.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Look up this workflow, and decide again.
    Lookup(String),
    /// Create the WorkflowExecution, and decide again.
    Create(Box<WorkflowExecution>),
    /// Store a report.
    Report(Report),
    /// Store a report, and decide again after a while.
    Retry(Report),
    /// Wait for a change.
    Wait,
}

/// The next step.
pub fn decide(observed: &Observed<'_>) -> Step {
    let request = observed.request;
    let status = request.status.clone().unwrap_or_default();
    let phase = status.overall_phase.as_str();
    if request.is_ended() || request.metadata.deletion_timestamp.is_some() {
        return Step::Wait;
    }
    if let Some(execution) = observed.execution {
        return match owner(execution, request) {
            Owner::Request => Step::Report(Report::of(execution)),
            // The garbage collector deletes what an earlier request of this name has left.
            Owner::Predecessor => {
                let message = format!(
                    "WorkflowExecution {} of an earlier RemediationRequest of this name is being deleted",
                    execution.name_any()
                );
                Step::Retry(Report::delayed(RequestReason::NameTaken, &message))
            }
            Owner::Other => {
                let message = format!(
                    "WorkflowExecution {} exists and is not of this RemediationRequest: delete one of them",
                    execution.name_any()
                );
                Step::Report(Report::refused(RequestReason::NameTaken, &message))
            }
        };
    }
    if let Some(reference) = &status.workflow_execution_ref {
        let message = format!("WorkflowExecution {} was deleted", reference.name);
        return Step::Report(Report::refused(
            RequestReason::WorkflowExecutionDeleted,
            &message,
        ));
    }
    if !ACTIVE.contains(&phase) {
        return Step::Wait;
    }
    match &observed.created {
        Some(Created::Denied(message)) => {
            return Step::Report(Report::refused(RequestReason::AdmissionDenied, message));
        }
        Some(Created::Unanswered(why)) => {
            let message = format!("the WorkflowExecution could not be created, retrying: {why}");
            return Step::Retry(Report::delayed(
                RequestReason::ApiServerUnavailable,
                &message,
            ));
        }
        None => {}
    }
    let analysis = observed.analysis.and_then(|it| it.status.as_ref());
    let Some(analysis) = analysis.filter(|it| it.phase == "Completed") else {
        return Step::Wait;
    };
    if !request.spec.cluster_id.is_empty() {
        let message = format!(
            "spec.clusterID: {:?}: other clusters are not reached: remediate it from that cluster",
            request.spec.cluster_id
        );
        return Step::Report(Report::refused(
            RequestReason::ClusterNotSupported,
            &message,
        ));
    }
    if let Some(message) = too_old(request, observed.now) {
        return Step::Report(Report::refused(RequestReason::RequestTooOld, &message));
    }
    if analysis.approval_required && phase != "Executing" {
        let message = "the AIAnalysis requires an approval: set status.overallPhase to Executing to approve it";
        return Step::Report(Report::delayed(RequestReason::ApprovalRequired, message));
    }
    let selection = Selection::read(request, analysis, observed.platform_namespace);
    let selection = match selection {
        Ok(selection) => selection,
        Err(report) => return Step::Report(report),
    };
    let entry = match &observed.catalog {
        None => return Step::Lookup(selection.workflow.workflow_id.clone()),
        Some(Ok(entry)) => entry,
        Some(Err(LookupError::Unusable(violation))) => {
            let message = violation.to_string();
            return Step::Report(Report::refused(RequestReason::WorkflowNotUsable, &message));
        }
        Some(Err(LookupError::Unavailable(why))) => {
            let message = format!("the workflow catalog is unavailable, retrying: {why}");
            return Step::Retry(Report::delayed(RequestReason::CatalogUnavailable, &message));
        }
    };
    match selection.execution(request, entry) {
        Ok(execution) => Step::Create(Box::new(execution)),
        Err(report) => Step::Report(report),
    }
}

/// Says why a request is stale: a remediation that was decided long ago must not run because the
/// catalog is back.
fn too_old(request: &RemediationRequest, now: Timestamp) -> Option<String> {
    let created = request.creation_timestamp()?.0;
    let timeouts = request
        .status
        .as_ref()
        .and_then(|it| it.timeout_config.as_ref());
    let global = timeouts.and_then(|it| it.global.as_deref());
    let global = global.and_then(ExecutionTimeout::parse);
    let global = global.and_then(|it| SignedDuration::try_from(it.get()).ok());
    let most = global.unwrap_or(MAX_AGE);
    (now.duration_since(created) > most).then(|| {
        let minutes = most.as_mins();
        format!("the RemediationRequest is older than {minutes} minutes, its timeout: create another one if it is still needed")
    })
}

enum Owner {
    Request,
    /// A request of the same name and another uid.
    Predecessor,
    Other,
}

fn owner(execution: &WorkflowExecution, request: &RemediationRequest) -> Owner {
    let kind = RemediationRequest::kind(&());
    let owners = execution.owner_references().iter();
    let mut owners = owners.filter(|it| it.controller == Some(true) && it.kind == kind);
    // There is at most one.
    match owners.next() {
        Some(owner) if Some(&owner.uid) == request.metadata.uid.as_ref() => Owner::Request,
        Some(owner) if owner.name == request.name_any() => Owner::Predecessor,
        _ => Owner::Other,
    }
}

#[cfg(test)]
mod tests;
