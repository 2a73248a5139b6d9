//! The next step for an AIAnalysis. A pure, total function of what is known.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};
use wfe_model::remediation::{AIAnalysis, InvestigationSession};
use wfe_peers::catalog::{Lookup, LookupError};
use wfe_peers::holmes::{HolmesError, IncidentRequest, Outcome, Session};

use crate::answer::{Answer, Unusable};

/// Longest time of one session: a signal that is older is stale.
const MAX_INVESTIGATION: SignedDuration = SignedDuration::from_mins(15);
/// Sessions that are begun at most: the service loses them when it is restarted.
const MAX_SESSIONS: u32 = 5;
/// Times between two questions for the state of a session: doubled each time.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(15);
/// Time after which a request that was not answered is repeated.
const RETRY: Duration = Duration::from_secs(5);

/// What is known of an AIAnalysis.
pub struct Observed<'a> {
    /// The analysis, as just read from the API server.
    pub analysis: &'a AIAnalysis,
    /// Result of beginning a session.
    pub begun: Option<Result<String, HolmesError>>,
    /// State of the session.
    pub session: Option<Result<Session, HolmesError>>,
    /// Result of the session.
    pub result: Option<Result<Outcome, HolmesError>>,
    /// The answer of the catalog.
    pub catalog: Option<Lookup>,
    /// Now.
    pub now: Timestamp,
}

/// The next step.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Begin a session.
    Begin(Box<IncidentRequest>),
    /// Ask for the state of this session.
    Poll(String),
    /// Read the result of this session.
    Fetch(String),
    /// Look up this workflow.
    Lookup(String),
    /// Store this status, as a merge patch, and decide again after a while, or when it changes.
    Store {
        /// Fields of the status.
        status: Value,
        /// When to decide again; `None`: when it changes.
        again: Option<Duration>,
    },
    /// Decide again after this time.
    Wait(Duration),
    /// There is nothing to do.
    Done,
}

/// The next step.
pub fn decide(observed: &Observed<'_>) -> Step {
    let analysis = observed.analysis;
    let status = analysis.status.clone().unwrap_or_default();
    let ended = ["Completed", "Failed"].contains(&status.phase.as_str());
    if ended || analysis.metadata.deletion_timestamp.is_some() {
        return Step::Done;
    }
    let Some(session) = &status.investigation_session else {
        return begin(observed, 0);
    };
    let age = session.created_at.parse::<Timestamp>();
    let age = age.map(|at| observed.now.duration_since(at));
    if age.is_ok_and(|age| age > MAX_INVESTIGATION) {
        let minutes = MAX_INVESTIGATION.as_mins();
        let message = format!("the investigation has not ended within {minutes} minutes");
        return failed("InvestigationTimeout", &message);
    }
    if let Some(result) = &observed.result {
        return match result {
            Ok(Outcome::Result(answer)) => conclude(observed, answer),
            Ok(Outcome::NotReady) => poll_later(observed, session),
            Ok(Outcome::Lost) => begin(observed, session.generation),
            Err(error) => unanswered(observed, error),
        };
    }
    match &observed.session {
        None => {
            let polled = session.last_polled.parse::<Timestamp>();
            let since = polled.map(|at| observed.now.duration_since(at));
            let since = since.ok().and_then(|it| Duration::try_from(it).ok());
            let left = since.map_or(Duration::ZERO, |since| {
                interval(session.poll_count).saturating_sub(since)
            });
            if left.is_zero() {
                Step::Poll(session.id.clone())
            } else {
                Step::Wait(left)
            }
        }
        Some(Ok(Session::Running)) => poll_later(observed, session),
        Some(Ok(Session::Completed)) => Step::Fetch(session.id.clone()),
        Some(Ok(Session::Failed(why))) => {
            let message = match why.as_str() {
                "" => "the investigation has failed".to_owned(),
                why => format!("the investigation has failed: {why}"),
            };
            failed("InvestigationFailed", &message)
        }
        Some(Ok(Session::Lost)) => begin(observed, session.generation),
        Some(Err(error)) => unanswered(observed, error),
    }
}

/// Begins the session after the `generation`th. Its id is stored before it is asked for.
fn begin(observed: &Observed<'_>, generation: u32) -> Step {
    if generation >= MAX_SESSIONS {
        let message = format!("HolmesGPT-API has lost {generation} sessions");
        return failed("SessionLost", &message);
    }
    let context = &observed.analysis.spec.analysis_request.signal_context;
    if context.signal_name.is_empty() || context.target_resource.name.is_empty() {
        let message = "spec.analysisRequest.signalContext: signalName and targetResource.name: required value";
        return failed("InvalidSpec", message);
    }
    match &observed.begun {
        None => Step::Begin(Box::new(incident(observed.analysis))),
        Some(Ok(id)) => {
            let session = InvestigationSession {
                id: id.clone(),
                generation: generation + 1,
                created_at: observed.now.to_string(),
                ..InvestigationSession::default()
            };
            // A merge patch: what an earlier session has left is removed.
            let mut session = json!(session);
            if let Some(fields) = session.as_object_mut() {
                fields.insert("lastPolled".to_owned(), Value::Null);
            }
            let message = format!("session {id} investigates");
            Step::Store {
                status: json!({
                    "phase": "Investigating", "reason": null, "message": message,
                    "investigationSession": session,
                }),
                again: Some(interval(0)),
            }
        }
        Some(Err(error)) => unanswered(observed, error),
    }
}

fn incident(analysis: &AIAnalysis) -> IncidentRequest {
    let context = &analysis.spec.analysis_request.signal_context;
    let resource = &context.target_resource;
    let or = |text: &str, default: &str| {
        let text = if text.is_empty() { default } else { text };
        text.to_owned()
    };
    IncidentRequest {
        incident_id: analysis.uid().unwrap_or_default(),
        remediation_id: or(
            &analysis.spec.remediation_id,
            &analysis.spec.remediation_request_ref.name,
        ),
        signal_name: context.signal_name.clone(),
        severity: or(&context.severity, "medium"),
        signal_source: "kubernaut".to_owned(),
        resource_namespace: resource.namespace.clone(),
        resource_kind: resource.kind.clone(),
        resource_name: resource.name.clone(),
        error_message: context.signal_name.clone(),
        environment: or(&context.environment, "unknown"),
        priority: or(&context.business_priority, "P3"),
        risk_tolerance: "medium".to_owned(),
        business_category: "standard".to_owned(),
        cluster_name: "local".to_owned(),
    }
}

/// Doubled with each poll.
fn interval(polls: u32) -> Duration {
    let factor = 1_u32.checked_shl(polls.min(8)).unwrap_or(u32::MAX);
    MIN_INTERVAL.saturating_mul(factor).min(MAX_INTERVAL)
}

fn poll_later(observed: &Observed<'_>, session: &InvestigationSession) -> Step {
    let polls = session.poll_count.saturating_add(1);
    Step::Store {
        status: json!({
            "reason": null,
            "investigationSession": { "lastPolled": observed.now.to_string(), "pollCount": polls },
        }),
        again: Some(interval(polls)),
    }
}

/// An outage is told, and the request repeated; a request that is refused is not.
fn unanswered(observed: &Observed<'_>, error: &HolmesError) -> Step {
    let why = match error {
        HolmesError::Refused(why) => return failed("AnalysisRefused", why),
        HolmesError::Unavailable(why) => why,
    };
    delayed(
        observed,
        "HolmesUnavailable",
        &format!("HolmesGPT-API is unavailable, retrying: {why}"),
    )
}

fn delayed(observed: &Observed<'_>, reason: &str, message: &str) -> Step {
    let told = observed.analysis.status.as_ref();
    if told.is_some_and(|it| it.reason == reason && it.message == message) {
        return Step::Wait(RETRY);
    }
    Step::Store {
        status: json!({ "reason": reason, "message": message }),
        again: Some(RETRY),
    }
}

fn failed(reason: &str, message: &str) -> Step {
    Step::Store {
        status: json!({ "phase": "Failed", "reason": reason, "message": message }),
        again: None,
    }
}

/// Concludes from the answer, and from what the catalog says of it.
fn conclude(observed: &Observed<'_>, answer: &Value) -> Step {
    let refuse = |unusable: Unusable| failed(unusable.reason, &unusable.message);
    let answer = match Answer::read(answer) {
        Ok(answer) => answer,
        Err(unusable) => return refuse(unusable),
    };
    let entry = match &observed.catalog {
        None => return Step::Lookup(answer.claim.workflow_id),
        Some(Ok(entry)) => entry,
        Some(Err(LookupError::Unusable(violation))) => {
            return failed("WorkflowNotUsable", &violation.to_string());
        }
        Some(Err(LookupError::Unavailable(why))) => {
            let message = format!("the workflow catalog is unavailable, retrying: {why}");
            return delayed(observed, "CatalogUnavailable", &message);
        }
    };
    let signal = &observed
        .analysis
        .spec
        .analysis_request
        .signal_context
        .target_resource;
    let (selected, warnings) = match answer.checked(entry, signal) {
        Ok(checked) => checked,
        Err(unusable) => return refuse(unusable),
    };
    let message = format!(
        "workflow {} was selected, engine {}",
        selected.workflow_id, selected.execution_engine
    );
    Step::Store {
        status: json!({
            "phase": "Completed", "reason": null, "message": message,
            "selectedWorkflow": selected, "rootCauseAnalysis": answer.cause, "warnings": warnings,
        }),
        again: None,
    }
}

#[cfg(test)]
mod tests;
