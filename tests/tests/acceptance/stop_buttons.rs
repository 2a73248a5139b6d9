//! BR-WE-009, BR-WE-003: pausing stops new executions; cancellation, start deadline and start
//! timeout end executions that have not started.

use kube::api::PostParams;
use serde_json::json;
use wfe_model::audit::EventType;
use wfe_model::workflow_execution::{FailureReason, Phase, SkipReason, WorkflowExecution};
use wfe_tests::system::{Script, System, condition};

use crate::setup::{cluster, pause};

/// BR-WE-009
#[tokio::test]
async fn paused_execution_does_not_start_and_can_be_cancelled_or_expire() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "paused", "true", "");
    let mut system = System::install(&cluster, "pause", &[&workflow])
        .await
        .expect("installed");
    let api = system.namespace.api::<WorkflowExecution>();
    pause(&system, json!("true")).await;
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let stale = json!({ "executionConfig": { "timeout": "10s" } });
    for (name, spec) in [
        ("patient", json!({})),
        ("cancelled", json!({})),
        ("stale", stale),
    ] {
        let request = workflow.request(name, &spec);
        api.create(&PostParams::default(), &request)
            .await
            .expect("admitted");
    }
    system
        .until("patient", "Blocked", "True/Paused")
        .await
        .expect("blocked");
    system
        .until("cancelled", "Blocked", "True/Paused")
        .await
        .expect("blocked");

    let stale = system
        .ended("stale")
        .await
        .expect("ended")
        .status
        .expect("a status");
    assert_eq!(stale.phase, Some(Phase::Skipped));
    let details = stale.skip_details.expect("details");
    assert_eq!(details.reason, SkipReason::StartDeadlineExceeded);
    assert!(
        details.message.contains("kubernaut.ai/paused"),
        "the message does not name the obstacle: {}",
        details.message
    );

    let why = "not needed any more";
    system.cancel("cancelled", why).await.expect("annotated");
    let cancelled = system
        .ended("cancelled")
        .await
        .expect("ended")
        .status
        .expect("a status");
    assert_eq!(
        cancelled.consecutive_failures, None,
        "a cancellation is not a failure of the target"
    );
    let details = cancelled.failure_details.expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::Cancelled, false)
    );
    assert!(
        details.message.contains("not needed any more"),
        "{}",
        details.message
    );
    assert_eq!(
        system.trail_of("cancelled").expect("a trail"),
        [EventType::SelectionCompleted, EventType::WorkflowFailed]
    );
    assert!(
        system.jobs().await.expect("listed").is_empty(),
        "nothing was started"
    );

    pause(&system, json!(null)).await;
    let patient = system.ended("patient").await.expect("ended");
    assert_eq!(condition(&patient, "Ready"), "True/Ready");
    assert_eq!(condition(&patient, "Blocked"), "False/Clear");
}

/// BR-WE-003
#[tokio::test]
async fn execution_not_started_in_time_fails_with_observed_reason() {
    let cluster = cluster().await;
    let registry = cluster.registry().expect("a registry").address().to_owned();
    let image = format!(
        "{registry}/workflows/never-pushed@sha256:{}",
        "2".repeat(64)
    );
    let workflow = Script::of("unpullable", image, "");
    let mut system = System::install(&cluster, "start-timeout", &[&workflow])
        .await
        .expect("installed");
    system.controller_flags = vec!["--start-timeout=20s".to_owned()];
    system.start_controller().await.expect("started");
    let api = system.namespace.api::<WorkflowExecution>();
    let request = workflow.request("stuck", &json!({}));
    api.create(&PostParams::default(), &request)
        .await
        .expect("stored");

    let stuck = system.ended("stuck").await.expect("ended");
    assert_eq!(condition(&stuck, "ExecutionRunning"), "False/NotStarted");
    let status = stuck.status.expect("a status");
    let details = status.failure_details.expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::ImagePullBackOff, false)
    );
    assert!(
        details.message.contains("no container started within 20s"),
        "{}",
        details.message
    );
    assert_eq!(status.consecutive_failures, Some(1));
    assert!(system.jobs().await.expect("listed").is_empty());
    assert!(system.live_pods().await.expect("listed").is_empty());
    assert!(system.holders().await.expect("listed").is_empty());
    assert_eq!(
        system.trail_of("stuck").expect("a trail"),
        [
            EventType::SelectionCompleted,
            EventType::ExecutionStarted,
            EventType::WorkflowFailed
        ]
    );
}
