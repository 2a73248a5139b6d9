use serde_json::json;

use super::*;

fn timestamp(text: &str) -> Timestamp {
    text.parse().expect("a timestamp")
}

fn event(event_type: EventType, event_data: EventData) -> AuditEvent {
    AuditEvent {
        version: "1.0".to_owned(),
        event_type,
        event_timestamp: timestamp("2026-01-01T00:00:00.123456Z"),
        event_category: event_type.category(),
        event_action: event_type.action().to_owned(),
        event_outcome: Outcome::Success,
        actor_type: "service".to_owned(),
        actor_id: "workflowexecution-controller".to_owned(),
        resource_type: "WorkflowExecution".to_owned(),
        resource_id: "we-1".to_owned(),
        namespace: "prod".to_owned(),
        correlation_id: "rr-1".to_owned(),
        event_data,
    }
}

/// BR-AUDIT-005
#[test]
fn event_serialized_has_keys_of_data_storage_and_no_nulls() {
    let data = ExecutionData {
        event_type: EventType::WorkflowFailed,
        event_id: event_id("uid", EventType::WorkflowFailed),
        execution_engine: "job".to_owned(),
        workflow_id: "restart".to_owned(),
        workflow_version: "1.0.0".to_owned(),
        workflow_name: None,
        target_resource: "prod/Deployment/web".to_owned(),
        phase: PeerPhase::Failed,
        container_image: "r.io/a@sha256:0".to_owned(),
        execution_name: "we-1-0a1b2c3d".to_owned(),
        started_at: None,
        completed_at: None,
        duration: None,
        parameters: BTreeMap::from([("KUBERNAUT_EXECUTION_ENGINE".to_owned(), "job".to_owned())]),
        pipelinerun_name: None,
        failure_reason: Some(FailureReason::ExecutionDeleted.into()),
        failure_message: Some("the Job was deleted".to_owned()),
        failed_task_name: None,
        error_details: Some(ErrorDetails {
            message: "the Job was deleted".to_owned(),
            code: "ExecutionDeleted".to_owned(),
            component: "workflowexecution".to_owned(),
            retry_possible: false,
        }),
    };
    let sent = serde_json::to_value(event(
        EventType::WorkflowFailed,
        EventData::Execution(Box::new(data)),
    ))
    .expect("JSON");
    assert_eq!(
        sent,
        json!({
            "version": "1.0",
            "event_type": "workflowexecution.workflow.failed",
            "event_timestamp": "2026-01-01T00:00:00.123456Z",
            "event_category": "workflowexecution",
            "event_action": "failed",
            "event_outcome": "success",
            "actor_type": "service",
            "actor_id": "workflowexecution-controller",
            "resource_type": "WorkflowExecution",
            "resource_id": "we-1",
            "namespace": "prod",
            "correlation_id": "rr-1",
            "event_data": {
                "event_type": "workflowexecution.workflow.failed",
                "event_id": event_id("uid", EventType::WorkflowFailed).to_string(),
                "execution_engine": "job",
                "workflow_id": "restart",
                "workflow_version": "1.0.0",
                "target_resource": "prod/Deployment/web",
                "phase": "Failed",
                "container_image": "r.io/a@sha256:0",
                "execution_name": "we-1-0a1b2c3d",
                "parameters": { "KUBERNAUT_EXECUTION_ENGINE": "job" },
                "failure_reason": "Unknown",
                "failure_message": "the Job was deleted",
                "error_details": {
                    "message": "the Job was deleted", "code": "ExecutionDeleted",
                    "component": "workflowexecution", "retry_possible": false,
                },
            },
        })
    );
    let read: AuditEvent = serde_json::from_value(sent).expect("deserialized");
    assert!(matches!(read.event_data, EventData::Execution(_)));
}

/// BR-AUDIT-005
#[test]
fn block_cleared_event_has_six_data_keys_and_category_webhook() {
    let data = EventData::BlockCleared(BlockClearedData {
        event_type: EventType::BlockCleared,
        workflow_name: "we-1".to_owned(),
        clear_reason: "looked at it, safe".to_owned(),
        cleared_at: timestamp("2026-01-01T00:00:00Z"),
        previous_state: "Blocked".to_owned(),
        new_state: "Running".to_owned(),
    });
    let event = event(EventType::BlockCleared, data);
    let sent = serde_json::to_value(&event).expect("JSON");
    assert_eq!(sent["event_category"], "webhook");
    assert_eq!(sent["event_action"], "block_cleared");
    assert_eq!(
        sent["event_data"].as_object().map(serde_json::Map::len),
        Some(6)
    );
    assert_eq!(
        serde_json::from_value::<AuditEvent>(sent).expect("deserialized"),
        event
    );
}

/// BR-AUDIT-005
#[test]
fn event_id_is_stable_and_unique_per_uid_and_type() {
    let id = event_id("uid", EventType::WorkflowStarted);
    assert_eq!(id, event_id("uid", EventType::WorkflowStarted));
    assert_ne!(id, event_id("uid", EventType::ExecutionStarted));
    assert_ne!(id, event_id("other", EventType::WorkflowStarted));
    assert_eq!(id.get_version_num(), 5);
}

/// BR-AUDIT-005
#[test]
fn moments_within_one_second_are_ordered_by_type_and_differ_by_uid() {
    let second = timestamp("2026-01-01T12:00:00Z");
    let at = |uid: &str| {
        EnumSet::all()
            .iter()
            .map(|it| moment(uid, it, second))
            .collect()
    };
    let (a, b): (Vec<Timestamp>, Vec<Timestamp>) = (at("a"), at("b"));
    assert!(a.is_sorted() && a.first() < a.last(), "{a:?}");
    assert_ne!(a, b);
    assert_eq!(a, at("a"), "stable");
    for moment in a.into_iter().chain(b) {
        assert_eq!(moment.as_second(), second.as_second());
        assert_eq!(moment.as_nanosecond() % 1000, 0, "whole microseconds");
    }
}

#[test]
fn event_types_as_str_equal_serialized_names() {
    for event_type in [
        EventType::SelectionCompleted,
        EventType::ExecutionStarted,
        EventType::WorkflowStarted,
        EventType::WorkflowCompleted,
        EventType::WorkflowFailed,
        EventType::BlockCleared,
    ] {
        assert_eq!(
            serde_json::to_value(event_type).expect("JSON"),
            event_type.as_str()
        );
        assert!(event_type.as_str().len() <= 100 && event_type.action().len() <= 50);
    }
}
