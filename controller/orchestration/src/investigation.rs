//! The next step for an AIAnalysis. A pure, total function of what is known.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};
use wfe_model::remediation::{AIAnalysis, InvestigationSession};
use wfe_peers::catalog::{Lookup, LookupError};
use wfe_peers::holmes::{HolmesError, IncidentRequest, Outcome, Session};

use crate::answer::{Answer, Unusable};
use crate::selection::may_name;
use crate::verdict::AnalysisReason;

/// Longest time from the creation of an AIAnalysis to its end: an older signal is stale.
const MAX_ANALYSIS: SignedDuration = SignedDuration::from_mins(30);
/// Sessions that are begun at most: the service loses them when it is restarted.
const MAX_SESSIONS: u32 = 5;
/// Times between two questions for the state of a session: the first one is asked at once, then the time is
/// doubled with each.
const MIN_INTERVAL: Duration = Duration::from_millis(500);
const MAX_INTERVAL: Duration = Duration::from_secs(15);
/// Time after which a request that was not answered is repeated.
const RETRY: Duration = Duration::from_secs(5);

/// What is known of an AIAnalysis.
pub struct Observed {
    /// The analysis, as just read from the API server.
    pub analysis: AIAnalysis,
    /// AIAnalyses here may name any resource.
    pub platform_namespace: String,
    /// Whether this pass has stored that it begins a session.
    pub reserved: bool,
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

/// The next step. A status is a merge patch of its fields.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Store that a session is begun, and decide again: a crash after the request to begin it then
    /// counts as a session.
    Reserve(Value),
    /// Begin a session.
    Begin(Box<IncidentRequest>),
    /// Ask for the state of this session.
    Poll(String),
    /// Read the result of this session.
    Fetch(String),
    /// Look up this workflow.
    Lookup(String),
    /// Store a status, and decide again after a while, or when it changes.
    Store {
        /// The status.
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
pub fn decide(observed: &Observed) -> Step {
    let analysis = &observed.analysis;
    let status = analysis.status.clone().unwrap_or_default();
    if is_ended(analysis) || analysis.metadata.deletion_timestamp.is_some() {
        return Step::Done;
    }
    if let Some((reason, message)) = refusal(observed) {
        return failed(reason, &message);
    }
    let session = status.investigation_session.unwrap_or_default();
    if session.id.is_empty() {
        return begin(observed, &session);
    }
    if let Some(result) = &observed.result {
        return match result {
            Ok(Outcome::Result(answer)) => conclude(observed, answer),
            Ok(Outcome::NotReady) => poll_later(observed, &session),
            Ok(Outcome::Lost) => reserve(observed, session.generation + 1),
            Err(error) => unanswered(observed, error),
        };
    }
    match &observed.session {
        None => {
            let left = time_left(observed, &session, interval(session.poll_count));
            if left.is_zero() {
                Step::Poll(session.id)
            } else {
                Step::Wait(left)
            }
        }
        Some(Ok(Session::Running)) => poll_later(observed, &session),
        Some(Ok(Session::Completed)) => Step::Fetch(session.id),
        Some(Ok(Session::Failed(why))) => {
            let message = match why.as_str() {
                "" => "the investigation has failed".to_owned(),
                why => format!("the investigation has failed: {why}"),
            };
            failed(AnalysisReason::InvestigationFailed, &message)
        }
        Some(Ok(Session::Lost)) => reserve(observed, session.generation + 1),
        Some(Err(error)) => unanswered(observed, error),
    }
}

/// Whether an analysis never changes any more.
pub fn is_ended(analysis: &AIAnalysis) -> bool {
    let status = analysis.status.as_ref();
    status.is_some_and(|it| ["Completed", "Failed"].contains(&it.phase.as_str()))
}

/// Why nothing is investigated.
fn refusal(observed: &Observed) -> Option<(AnalysisReason, String)> {
    let analysis = &observed.analysis;
    let context = &analysis.spec.analysis_request.signal_context;
    if context.signal_name.is_empty() || context.target_resource.name.is_empty() {
        let message = "spec.analysisRequest.signalContext: signalName and targetResource.name: required value";
        return Some((AnalysisReason::InvalidSpec, message.to_owned()));
    }
    let namespace = analysis.namespace().unwrap_or_default();
    let target = &context.target_resource;
    if let Err(message) = may_name(&namespace, &observed.platform_namespace, target) {
        return Some((AnalysisReason::TargetNotAllowed, message));
    }
    let created = analysis.creation_timestamp().map(|it| it.0);
    let age = created.map(|at| observed.now.duration_since(at));
    age.is_some_and(|age| age > MAX_ANALYSIS).then(|| {
        let minutes = MAX_ANALYSIS.as_mins();
        let message = format!("the investigation has not ended within {minutes} minutes");
        (AnalysisReason::InvestigationTimeout, message)
    })
}

/// Begins a session whose generation is stored, and stores its id before it is asked for.
fn begin(observed: &Observed, session: &InvestigationSession) -> Step {
    if !observed.reserved {
        // With a time, an earlier process may have begun it, and its id is lost.
        let may_be_begun = !session.created_at.is_empty();
        let left = time_left(observed, session, RETRY);
        if !may_be_begun && !left.is_zero() {
            return Step::Wait(left);
        }
        let next = session.generation + u32::from(may_be_begun);
        return reserve(observed, next.max(1));
    }
    match &observed.begun {
        None => Step::Begin(Box::new(incident(&observed.analysis))),
        Some(Ok(id)) => Step::Store {
            status: json!({
                "reason": null, "message": format!("session {id} investigates"),
                "investigationSession": { "id": id },
            }),
            again: Some(interval(0)),
        },
        Some(Err(HolmesError::Refused(why))) => failed(AnalysisReason::AnalysisRefused, why),
        // No session was begun: the next attempt has the same generation, after a while.
        Some(Err(HolmesError::Unavailable(why))) => {
            let reason = AnalysisReason::HolmesUnavailable;
            let now = observed.now.to_string();
            Step::Store {
                status: json!({
                    "reason": reason.category(), "message": text(reason, &unavailable(why)),
                    "investigationSession": { "createdAt": null, "lastPolled": now },
                }),
                again: Some(RETRY),
            }
        }
    }
}

/// What is left of an interval since HolmesGPT-API was last asked.
fn time_left(observed: &Observed, session: &InvestigationSession, interval: Duration) -> Duration {
    let asked = session.last_polled.parse::<Timestamp>();
    let since = asked.map(|at| observed.now.duration_since(at));
    let since = since.ok().and_then(|it| Duration::try_from(it).ok());
    since.map_or(Duration::ZERO, |since| interval.saturating_sub(since))
}

/// Stores that a session of this generation is begun.
fn reserve(observed: &Observed, generation: u32) -> Step {
    if generation > MAX_SESSIONS {
        let message = format!("HolmesGPT-API has lost {MAX_SESSIONS} sessions");
        return failed(AnalysisReason::SessionLost, &message);
    }
    let created_at = observed.now.to_string();
    Step::Reserve(json!({
        "phase": "Investigating", "approvalRequired": false, "needsHumanReview": false,
        "investigationSession": {
            "id": "", "generation": generation, "createdAt": created_at,
            "lastPolled": null, "pollCount": 0,
        },
    }))
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

/// Time after this many questions.
fn interval(polls: u32) -> Duration {
    let factor = 1_u32.checked_shl(polls.saturating_sub(1).min(8));
    let factor = factor.unwrap_or(u32::MAX);
    MIN_INTERVAL.saturating_mul(factor).min(MAX_INTERVAL)
}

fn poll_later(observed: &Observed, session: &InvestigationSession) -> Step {
    let polls = session.poll_count.saturating_add(1);
    Step::Store {
        status: json!({
            "reason": null,
            "investigationSession": { "lastPolled": observed.now.to_string(), "pollCount": polls },
        }),
        again: Some(interval(polls)),
    }
}

/// An outage is reported, and the request repeated; a request that is refused is not.
fn unanswered(observed: &Observed, error: &HolmesError) -> Step {
    let why = match error {
        HolmesError::Refused(why) => return failed(AnalysisReason::AnalysisRefused, why),
        HolmesError::Unavailable(why) => why,
    };
    let reason = AnalysisReason::HolmesUnavailable;
    delayed(observed, reason, &unavailable(why))
}

fn unavailable(why: &str) -> String {
    format!("HolmesGPT-API is unavailable, retrying: {why}")
}

/// Each outage is reported once: its text may be another one each time.
fn delayed(observed: &Observed, reason: AnalysisReason, message: &str) -> Step {
    let known = observed.analysis.status.as_ref();
    let known = known.is_some_and(|it| {
        it.reason == reason.category() && it.message.starts_with(reason.as_ref())
    });
    if known {
        return Step::Wait(RETRY);
    }
    Step::Store {
        status: json!({ "reason": reason.category(), "message": text(reason, message) }),
        again: Some(RETRY),
    }
}

fn text(reason: AnalysisReason, message: &str) -> String {
    format!("{}: {message}", reason.as_ref())
}

fn failed(reason: AnalysisReason, message: &str) -> Step {
    let needs_review = reason.category() != "APIError";
    Step::Store {
        status: json!({
            "phase": "Failed", "reason": reason.category(), "message": text(reason, message),
            "approvalRequired": false, "needsHumanReview": needs_review,
        }),
        again: None,
    }
}

/// Concludes from the answer and the entry of its workflow in the catalog.
fn conclude(observed: &Observed, answer: &Value) -> Step {
    let refuse = |unusable: Unusable| failed(unusable.reason, &unusable.message);
    let answer = match Answer::read(answer, &observed.analysis) {
        Ok(answer) => answer,
        Err(unusable) => return refuse(unusable),
    };
    let entry = match &observed.catalog {
        None => return Step::Lookup(answer.claim.workflow_id),
        Some(Ok(entry)) => entry,
        Some(Err(LookupError::Unusable(violation))) => {
            return failed(AnalysisReason::WorkflowNotUsable, &violation.to_string());
        }
        Some(Err(LookupError::Unavailable(why))) => {
            let message = format!("the workflow catalog is unavailable, retrying: {why}");
            return delayed(observed, AnalysisReason::CatalogUnavailable, &message);
        }
    };
    let signal = &observed
        .analysis
        .spec
        .analysis_request
        .signal_context
        .target_resource;
    let namespace = observed.analysis.namespace().unwrap_or_default();
    let target = answer.cause.target().unwrap_or(signal);
    if let Err(message) = may_name(&namespace, &observed.platform_namespace, target) {
        return failed(AnalysisReason::TargetNotAllowed, &message);
    }
    let (selected, warnings) = match answer.checked(entry, target) {
        Ok(checked) => checked,
        Err(unusable) => return refuse(unusable),
    };
    let message = format!(
        "workflow {} was selected, engine {}",
        selected.workflow_id, selected.execution_engine
    );
    Step::Store {
        status: json!({
            "phase": "Completed", "reason": "AnalysisCompleted", "message": message,
            "approvalRequired": false, "needsHumanReview": false,
            "selectedWorkflow": selected, "rootCauseAnalysis": answer.cause, "warnings": warnings,
        }),
        again: None,
    }
}

#[cfg(test)]
mod tests;
