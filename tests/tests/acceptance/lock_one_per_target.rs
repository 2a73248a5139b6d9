//! BR-WE-009: one execution per target at a time.

use kube::api::PostParams;
use serde_json::json;
use wfe_model::workflow_execution::{Phase, SkipReason, WorkflowExecution};
use wfe_tests::system::{Script, System, condition};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster};

/// BR-WE-009
#[tokio::test]
async fn second_execution_on_busy_target_is_skipped_or_waits() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "nap", "sleep 12", "");
    let mut system = System::install(&cluster, "lock", &[&workflow])
        .await
        .expect("installed");
    system.controller_flags = vec!["--cooldown=0s".to_owned()];
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let api = system.namespace.api::<WorkflowExecution>();
    let create = async |name: &str, spec| {
        api.create(&PostParams::default(), &workflow.request(name, &spec))
            .await
            .expect("admitted");
    };
    create("first", json!({ "targetResource": "prod/Deployment/web" })).await;
    let running = |wfe: &WorkflowExecution| {
        wfe.status
            .as_ref()
            .is_some_and(|status| status.phase == Some(Phase::Running))
    };
    wait::until(&api, "first", "the phase is Running", SECONDS_30, running)
        .await
        .expect("running");
    // The kind in lower case names the same target.
    create("second", json!({ "targetResource": "prod/deployment/web" })).await;
    create("third", json!({ "targetResource": "prod/Deployment/web", "executionConfig": { "whenBlocked": "Wait" } })).await;

    let waits = |wfe: &WorkflowExecution| condition(wfe, "Blocked") == "True/ResourceBusy";
    wait::until(&api, "third", "the target is locked", SECONDS_30, waits)
        .await
        .expect("waiting");

    let second = system
        .ended("second")
        .await
        .expect("ended")
        .status
        .expect("a status");
    let details = second.skip_details.expect("details");
    assert_eq!(
        (second.phase, details.reason),
        (Some(Phase::Skipped), SkipReason::ResourceBusy)
    );
    assert_eq!(
        details.conflicting_workflow.map(|it| it.name).as_deref(),
        Some("first")
    );
    let first = system
        .ended("first")
        .await
        .expect("ended")
        .status
        .expect("a status");
    let third = system.ended("third").await.expect("ended");
    assert_eq!(condition(&third, "Blocked"), "False/Clear");
    let third = third.status.expect("a status");
    assert_eq!(
        (first.phase, third.phase),
        (Some(Phase::Succeeded), Some(Phase::Succeeded))
    );
    assert!(
        third.start_time.expect("started").0 >= first.completion_time.expect("completed").0,
        "executions on one target do not overlap"
    );
}
