//! Which audit events a stored status stands for. Pure: the same status gives the same events,
//! timestamps included, so nothing depends on memory.

use std::collections::BTreeMap;

use jiff::Timestamp;
use wfe_model::audit::{
    AuditEvent, ErrorDetails, EventData, EventType, ExecutionData, Outcome, PeerPhase, event_id,
};
use wfe_model::workflow_execution::{
    FailureReason, Phase, WorkflowExecution, WorkflowExecutionStatus,
};

use super::status::{condition, holds, stored};

const ACTOR: &str = "workflowexecution-controller";

/// Every event that has happened by now, in order.
pub fn events(wfe: &WorkflowExecution) -> Vec<AuditEvent> {
    let Some(status) = &wfe.status else {
        return Vec::new();
    };
    let Some(phase) = status.phase.filter(|phase| *phase != Phase::Pending) else {
        return Vec::new();
    };
    let mut events = Vec::new();
    let started = status.start_time.as_ref().map(|time| time.0);
    let failed_at = status
        .failure_details
        .as_ref()
        .map(|details| details.failed_at.0);
    let resolved = holds(wfe, condition::WORKFLOW_RESOLVED);
    if let Some(skipped) = &status.skip_details {
        let mut event = event(
            wfe,
            status,
            EventType::SelectionCompleted,
            skipped.skipped_at.0,
            PeerPhase::Pending,
        );
        event.event_outcome = Outcome::Failure;
        explain(
            &mut event,
            &format!("{:?}", skipped.reason),
            &skipped.message,
            true,
        );
        events.push(event);
    } else if let Some(at) = started.or(failed_at.filter(|_| resolved)) {
        events.push(event(
            wfe,
            status,
            EventType::SelectionCompleted,
            at,
            PeerPhase::Pending,
        ));
    }
    if let Some(at) = started.filter(|_| status.execution_ref.is_some()) {
        events.push(event(
            wfe,
            status,
            EventType::ExecutionStarted,
            at,
            PeerPhase::Running,
        ));
    }
    if let Some(began) = stored(wfe, condition::EXECUTION_RUNNING).filter(|it| it.status == "True")
    {
        events.push(event(
            wfe,
            status,
            EventType::WorkflowStarted,
            began.last_transition_time.0,
            PeerPhase::Running,
        ));
    }
    let completed_at = status.completion_time.as_ref().map(|time| time.0);
    match (phase, completed_at) {
        (Phase::Succeeded, Some(at)) => events.push(event(
            wfe,
            status,
            EventType::WorkflowCompleted,
            at,
            PeerPhase::Completed,
        )),
        (Phase::Failed, _) => events.extend(failed(wfe, status)),
        _ => {}
    }
    events
}

fn failed(wfe: &WorkflowExecution, status: &WorkflowExecutionStatus) -> Option<AuditEvent> {
    let details = status.failure_details.as_ref()?;
    let mut event = event(
        wfe,
        status,
        EventType::WorkflowFailed,
        details.failed_at.0,
        PeerPhase::Failed,
    );
    event.event_outcome = Outcome::Failure;
    // Of these the same request may find a better world.
    let may_pass = matches!(
        details.reason,
        FailureReason::ResourceExhausted
            | FailureReason::ImagePullBackOff
            | FailureReason::UnsupportedEngine
    );
    explain(
        &mut event,
        &format!("{:?}", details.reason),
        &details.message,
        may_pass,
    );
    if let EventData::Execution(data) = &mut event.event_data {
        data.failure_reason = Some(details.reason.into());
        data.failure_message = Some(details.message.clone());
        data.failed_task_name.clone_from(&details.failed_task_name);
    }
    Some(event)
}

fn explain(event: &mut AuditEvent, code: &str, message: &str, retry_possible: bool) {
    if let EventData::Execution(data) = &mut event.event_data {
        data.error_details = Some(ErrorDetails {
            message: message.to_owned(),
            code: code.to_owned(),
            component: "workflowexecution".to_owned(),
            retry_possible,
        });
    }
}

fn event(
    wfe: &WorkflowExecution,
    status: &WorkflowExecutionStatus,
    event_type: EventType,
    at: Timestamp,
    phase: PeerPhase,
) -> AuditEvent {
    let (spec, metadata) = (&wfe.spec, &wfe.metadata);
    let name = metadata.name.clone().unwrap_or_default();
    let workflow = &spec.workflow_ref;
    let ended = matches!(
        event_type,
        EventType::WorkflowCompleted | EventType::WorkflowFailed
    );
    let mut parameters = spec.parameters.clone();
    // Where the peer drops execution_engine, this survives.
    parameters.insert(
        "KUBERNAUT_EXECUTION_ENGINE".to_owned(),
        spec.execution_engine.clone(),
    );
    let data = ExecutionData {
        event_type,
        event_id: event_id(metadata.uid.as_deref().unwrap_or_default(), event_type),
        execution_engine: spec.execution_engine.clone(),
        workflow_id: workflow.workflow_id.clone(),
        workflow_version: workflow.version.clone(),
        workflow_name: workflow.name.clone(),
        target_resource: spec.target_resource.clone(),
        phase,
        container_image: workflow
            .container_image
            .clone()
            .or_else(|| workflow.bundle_ref.clone())
            .unwrap_or_default(),
        execution_name: status
            .execution_ref
            .as_ref()
            .map(|reference| reference.name.clone()),
        started_at: status.start_time.as_ref().map(|time| time.0),
        completed_at: status
            .completion_time
            .as_ref()
            .map(|time| time.0)
            .filter(|_| ended),
        duration: status.duration.clone().filter(|_| ended),
        parameters: parameters.into_iter().collect::<BTreeMap<_, _>>(),
        pipelinerun_name: None,
        failure_reason: None,
        failure_message: None,
        failed_task_name: None,
        error_details: None,
    };
    AuditEvent {
        version: "1.0".to_owned(),
        event_type,
        event_timestamp: at,
        event_category: event_type.category(),
        event_action: event_type.action().to_owned(),
        event_outcome: Outcome::Success,
        actor_type: "service".to_owned(),
        actor_id: ACTOR.to_owned(),
        resource_type: "WorkflowExecution".to_owned(),
        resource_id: name.clone(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        correlation_id: spec
            .remediation_request_ref
            .as_ref()
            .map_or(name, |request| request.name.clone()),
        event_data: EventData::Execution(Box::new(data)),
    }
}
