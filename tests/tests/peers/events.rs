//! Audit events for tests.

use jiff::{SignedDuration, Timestamp};
use wfe_model::audit::{
    AuditEvent, BlockClearedData, ErrorDetails, EventData, EventType, ExecutionData, Outcome,
    PeerFailureReason, PeerPhase, event_id, moment,
};

/// All events of a WorkflowExecution that failed while it ran.
pub fn failed(name: &str) -> Vec<AuditEvent> {
    let types = [
        EventType::SelectionCompleted,
        EventType::ExecutionStarted,
        EventType::WorkflowStarted,
        EventType::WorkflowFailed,
    ];
    types.map(|it| event(name, it)).to_vec()
}

/// An event with a timestamp one minute ago.
pub fn event(name: &str, event_type: EventType) -> AuditEvent {
    let second = Timestamp::now() - SignedDuration::from_mins(1);
    let second = Timestamp::from_second(second.as_second()).expect("a second");
    let failed = event_type == EventType::WorkflowFailed;
    let phase = match event_type {
        EventType::SelectionCompleted => PeerPhase::Pending,
        EventType::WorkflowFailed => PeerPhase::Failed,
        EventType::WorkflowCompleted => PeerPhase::Completed,
        _ => PeerPhase::Running,
    };
    let data = ExecutionData {
        event_type,
        event_id: event_id(name, event_type),
        execution_engine: "job".to_owned(),
        workflow_id: "w".to_owned(),
        workflow_version: "1".to_owned(),
        workflow_name: Some("Restart".to_owned()),
        target_resource: "prod/Deployment/web".to_owned(),
        phase,
        container_image: format!("r.io/w@sha256:{}", "0".repeat(64)),
        execution_name: format!("{name}-01234567"),
        started_at: Some(second),
        completed_at: failed.then_some(second),
        duration: failed.then(|| "3s".to_owned()),
        parameters: [("KUBERNAUT_EXECUTION_ENGINE".to_owned(), "job".to_owned())].into(),
        pipelinerun_name: None,
        failure_reason: failed.then_some(PeerFailureReason::TaskFailed),
        failure_message: failed.then(|| "exit code 3".to_owned()),
        failed_task_name: None,
        error_details: failed.then(|| ErrorDetails {
            message: "exit code 3".to_owned(),
            code: "TaskFailed".to_owned(),
            component: "workflowexecution".to_owned(),
            retry_possible: false,
        }),
    };
    let cleared = event_type == EventType::BlockCleared;
    AuditEvent {
        version: "1.0".to_owned(),
        event_type,
        event_timestamp: moment(name, event_type, second),
        event_category: event_type.category(),
        event_action: event_type.action().to_owned(),
        event_outcome: if failed {
            Outcome::Failure
        } else {
            Outcome::Success
        },
        actor_type: if cleared { "user" } else { "service" }.to_owned(),
        actor_id: "workflowexecution-controller".to_owned(),
        resource_type: "WorkflowExecution".to_owned(),
        resource_id: name.to_owned(),
        namespace: "prod".to_owned(),
        correlation_id: "rr-1".to_owned(),
        event_data: if cleared {
            EventData::BlockCleared(BlockClearedData {
                event_type,
                workflow_name: name.to_owned(),
                clear_reason: "looked at it".to_owned(),
                cleared_at: second,
                previous_state: "Blocked".to_owned(),
                new_state: "Running".to_owned(),
            })
        } else {
            EventData::Execution(Box::new(data))
        },
    }
}
