//! Derives audit events from a stored status. The same status gives the same events, timestamps
//! included, so that a restarted controller sends no different ones.

use std::collections::BTreeMap;

use enumset::EnumSet;
use jiff::Timestamp;
use wfe_model::audit::{
    AuditEvent, BlockClearedData, ErrorDetails, EventData, EventType, ExecutionData, Outcome,
    PeerPhase, event_id, moment,
};
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::{
    FailureDetails, FailureReason, Phase, TriState, WorkflowExecution, WorkflowExecutionStatus,
};

use crate::condition::{ConditionType, Reason};
use crate::line::cancelled_by;
use crate::status::{cleared_at, holds, stored};

const ACTOR: &str = "workflowexecution-controller";

/// Types of the events that a stored status stands for, with their time in whole seconds.
pub fn timestamps(wfe: &WorkflowExecution) -> Vec<(EventType, Timestamp)> {
    let Some(status) = &wfe.status else {
        return Vec::new();
    };
    let Some(phase) = status.phase.filter(|phase| *phase != Phase::Pending) else {
        return Vec::new();
    };
    let started = status.start_time.as_ref().map(|time| time.0);
    let skipped = status.skip_details.as_ref().map(|it| it.skipped_at.0);
    let failed = status.failure_details.as_ref().map(|it| it.failed_at.0);
    let failed = failed.filter(|_| phase == Phase::Failed);
    let resolved = holds(wfe, ConditionType::WorkflowResolved);
    let selected = skipped.or(started).or(failed.filter(|_| resolved));
    let began = stored(wfe, ConditionType::ExecutionRunning)
        .filter(|it| it.status == TriState::True.as_str());
    let completed = status.completion_time.as_ref().map(|time| time.0);
    let cleared = cleared_at(wfe);
    [
        (EventType::SelectionCompleted, selected),
        (
            EventType::ExecutionStarted,
            started.filter(|_| status.execution_ref.is_some()),
        ),
        (
            EventType::WorkflowStarted,
            began.map(|it| it.last_transition_time.0),
        ),
        (
            EventType::WorkflowCompleted,
            completed.filter(|_| phase == Phase::Succeeded),
        ),
        (EventType::WorkflowFailed, failed),
        (EventType::BlockCleared, cleared),
    ]
    .into_iter()
    .filter_map(|(event_type, at)| Some((event_type, at?)))
    .collect()
}

/// Types of the events that a stored status stands for.
pub fn types(wfe: &WorkflowExecution) -> EnumSet<EventType> {
    timestamps(wfe).into_iter().map(|(it, _)| it).collect()
}

/// Types of the events whose delivery the status does not confirm.
pub fn unconfirmed(wfe: &WorkflowExecution) -> EnumSet<EventType> {
    let mut unconfirmed = types(wfe);
    if is_settled(wfe, ConditionType::AuditRecorded) {
        unconfirmed &= EventType::BlockCleared;
    }
    if is_settled(wfe, ConditionType::ClearanceRecorded) {
        unconfirmed -= EventType::BlockCleared;
    }
    unconfirmed
}

/// Whether a condition says that no event is left to deliver: all were delivered or rejected.
pub fn is_settled(wfe: &WorkflowExecution, kind: ConditionType) -> bool {
    stored(wfe, kind).is_some_and(|it| {
        it.status == TriState::True.as_str() || it.reason == Reason::AuditEventRejected.as_str()
    })
}

/// The `wanted` events that a stored status stands for, in the order in which they happen.
pub fn events(wfe: &WorkflowExecution, wanted: EnumSet<EventType>) -> Vec<AuditEvent> {
    let Some(status) = &wfe.status else {
        return Vec::new();
    };
    timestamps(wfe)
        .into_iter()
        .filter(|(event_type, _)| wanted.contains(*event_type))
        .map(|(event_type, second)| event(wfe, status, event_type, second))
        .collect()
}

fn event(
    wfe: &WorkflowExecution,
    status: &WorkflowExecutionStatus,
    event_type: EventType,
    second: Timestamp,
) -> AuditEvent {
    let (spec, metadata) = (&wfe.spec, &wfe.metadata);
    let name = metadata.name.clone().unwrap_or_default();
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let cleared = status.block_clearance.as_ref();
    let cleared = cleared.filter(|_| event_type == EventType::BlockCleared);
    let failed = event_type == EventType::WorkflowFailed
        || event_type == EventType::SelectionCompleted && status.skip_details.is_some();
    let event_data = cleared.map(|clearance| {
        EventData::BlockCleared(BlockClearedData {
            event_type,
            workflow_name: name.clone(),
            clear_reason: clearance.clear_reason.clone(),
            cleared_at: second,
            previous_state: "Blocked".to_owned(),
            new_state: "Running".to_owned(),
        })
    });
    let event_data = event_data
        .unwrap_or_else(|| EventData::Execution(Box::new(execution_data(wfe, status, event_type))));
    let (actor_type, actor_id) = match cleared {
        Some(clearance) => ("user", clearance.cleared_by.as_str()),
        None => ("service", ACTOR),
    };
    AuditEvent {
        version: "1.0".to_owned(),
        event_type,
        event_timestamp: moment(uid, event_type, second),
        event_category: event_type.category(),
        event_action: event_type.action().to_owned(),
        event_outcome: if failed {
            Outcome::Failure
        } else {
            Outcome::Success
        },
        actor_type: actor_type.to_owned(),
        actor_id: actor_id.to_owned(),
        resource_type: "WorkflowExecution".to_owned(),
        resource_id: name.clone(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        correlation_id: spec
            .remediation_request_ref
            .as_ref()
            .map_or(name, |request| request.name.clone()),
        event_data,
    }
}

fn execution_data(
    wfe: &WorkflowExecution,
    status: &WorkflowExecutionStatus,
    event_type: EventType,
) -> ExecutionData {
    let (spec, metadata) = (&wfe.spec, &wfe.metadata);
    let (name, uid) = (metadata.name.as_deref(), metadata.uid.as_deref());
    let (name, uid) = (name.unwrap_or_default(), uid.unwrap_or_default());
    let workflow = &spec.workflow_ref;
    let engine = Engine::parse(&spec.execution_engine);
    let requested = engine.and_then(|engine| workflow.get(engine.runs()));
    let image = status.image.as_deref().or(requested);
    let (phase, ended) = match event_type {
        EventType::SelectionCompleted => (PeerPhase::Pending, false),
        EventType::WorkflowCompleted => (PeerPhase::Completed, true),
        EventType::WorkflowFailed => (PeerPhase::Failed, true),
        _ => (PeerPhase::Running, false),
    };
    let mut parameters: BTreeMap<_, _> = spec.parameters.clone().into_iter().collect();
    // Data Storage drops the unknown key execution_engine; every parameter survives.
    parameters.insert(
        "KUBERNAUT_EXECUTION_ENGINE".to_owned(),
        spec.execution_engine.clone(),
    );
    let failure = status.failure_details.as_ref();
    let failure = failure.filter(|_| event_type == EventType::WorkflowFailed);
    let cancelled = failure.is_some_and(|it| it.reason == FailureReason::Cancelled);
    let cancelled_by = cancelled.then(|| cancelled_by(wfe)).flatten();
    let requested_by = spec.requested_by.as_ref().map(|it| it.username.as_str());
    for (name, user) in [
        ("KUBERNAUT_REQUESTED_BY", requested_by),
        ("KUBERNAUT_CANCELLED_BY", cancelled_by),
    ] {
        parameters.extend(user.map(|user| (name.to_owned(), user.to_owned())));
    }
    let skip = status.skip_details.as_ref();
    let skip = skip.filter(|_| event_type == EventType::SelectionCompleted);
    let error_details = match (failure, skip) {
        (Some(failure), _) => Some(error_details(
            failure.reason.as_str(),
            &failure.message,
            is_retryable(failure, status),
        )),
        (None, Some(skip)) => Some(error_details(
            skip.reason.as_str(),
            &skip.message,
            !skip.reason.needs_clearance(),
        )),
        (None, None) => None,
    };
    let reference = status.execution_ref.as_ref();
    let reference = reference.filter(|_| event_type != EventType::SelectionCompleted);
    if let Some(it) = reference {
        let execution = format!("{}/{}/{}", it.kind, it.namespace, it.name);
        parameters.insert("KUBERNAUT_EXECUTION".to_owned(), execution);
    }
    ExecutionData {
        event_type,
        event_id: event_id(uid, event_type),
        execution_engine: spec.execution_engine.clone(),
        workflow_id: workflow.workflow_id.clone(),
        workflow_version: workflow.version.clone(),
        workflow_name: workflow.name.clone(),
        target_resource: spec.target_resource.clone(),
        phase,
        container_image: image.unwrap_or_default().to_owned(),
        // Data Storage means the WorkflowExecution, not its Job or PipelineRun.
        execution_name: name.to_owned(),
        started_at: status.start_time.as_ref().map(|time| time.0),
        completed_at: status
            .completion_time
            .as_ref()
            .map(|time| time.0)
            .filter(|_| ended),
        duration: status.duration.clone().filter(|_| ended),
        parameters,
        pipelinerun_name: reference
            .filter(|it| it.kind == Engine::Tekton.runs_as().1)
            .map(|it| it.name.clone()),
        failure_reason: failure.map(|it| it.reason.into()),
        failure_message: failure.map(|it| it.message.clone()),
        failed_task_name: failure.and_then(|it| it.failed_task_name.clone()),
        error_details,
    }
}

/// Whether the same request may succeed later, without a change of the request and without a person
/// who clears the target.
fn is_retryable(failure: &FailureDetails, status: &WorkflowExecutionStatus) -> bool {
    let passes = matches!(
        failure.reason,
        FailureReason::ResourceExhausted
            | FailureReason::ImagePullBackOff
            | FailureReason::UnsupportedEngine
    );
    passes && !failure.was_execution_failure && !status.exhausts_retries()
}

fn error_details(code: &str, message: &str, retry_possible: bool) -> ErrorDetails {
    ErrorDetails {
        message: message.to_owned(),
        code: code.to_owned(),
        component: "workflowexecution".to_owned(),
        retry_possible,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    /// The data of an event of a WorkflowExecution with this status.
    fn data(event_type: EventType, status: Value) -> Value {
        let mut wfe = WorkflowExecution::default();
        wfe.metadata.name = Some("restart-1".to_owned());
        wfe.status = serde_json::from_value(status).expect("a status");
        let events = events(&wfe, event_type.into());
        let [event] = events.try_into().expect("one event");
        serde_json::to_value(event.event_data).expect("JSON")
    }

    const AT: &str = "2026-01-01T00:00:00Z";

    fn skipped(reason: &str) -> Value {
        json!({ "phase": "Skipped", "skipDetails": { "reason": reason, "message": "", "skippedAt": AT } })
    }

    fn failed(reason: &str, ran: bool) -> Value {
        json!({
            "phase": "Failed",
            "executionRef": { "apiVersion": "batch/v1", "kind": "Job", "name": "j", "namespace": "n", "uid": "u" },
            "failureDetails": { "reason": reason, "message": "", "failedAt": AT, "naturalLanguageSummary": "", "wasExecutionFailure": ran },
        })
    }

    fn exhausted() -> Value {
        let mut status = failed("ImagePullBackOff", false);
        status["consecutiveFailures"] = json!(5);
        status
    }

    /// BR-AUDIT-005: a retry is no use while the target waits for a person.
    #[rstest]
    #[case(EventType::SelectionCompleted, skipped("ResourceBusy"), true)]
    #[case(EventType::SelectionCompleted, skipped("BackoffActive"), true)]
    #[case(
        EventType::SelectionCompleted,
        skipped("PreviousExecutionFailed"),
        false
    )]
    #[case(EventType::SelectionCompleted, skipped("ExhaustedRetries"), false)]
    #[case(EventType::WorkflowFailed, failed("ResourceExhausted", false), true)]
    #[case(EventType::WorkflowFailed, failed("ResourceExhausted", true), false)]
    #[case(EventType::WorkflowFailed, failed("TaskFailed", true), false)]
    #[case(EventType::WorkflowFailed, exhausted(), false)]
    fn retry_is_possible_unless_a_person_must_clear_the_target(
        #[case] event_type: EventType,
        #[case] status: Value,
        #[case] possible: bool,
    ) {
        let data = data(event_type, status);
        assert_eq!(data["error_details"]["retry_possible"], possible, "{data}");
    }

    /// BR-AUDIT-005
    #[test]
    fn execution_is_named_once_there_is_one() {
        let skipped = data(EventType::SelectionCompleted, skipped("ResourceBusy"));
        assert_eq!(skipped["execution_name"], "restart-1");
        assert_eq!(skipped["parameters"]["KUBERNAUT_EXECUTION"], Value::Null);
        let failed = data(EventType::WorkflowFailed, failed("TaskFailed", true));
        assert_eq!(failed["execution_name"], "restart-1");
        assert_eq!(failed["parameters"]["KUBERNAUT_EXECUTION"], "Job/n/j");
    }
}
