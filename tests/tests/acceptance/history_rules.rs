//! BR-WE-010, BR-WE-012, BR-WE-013: earlier executions on a target decide whether another one may
//! run, also after restarts of the controller and deletion of those executions.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use wfe_model::workflow_execution::{
    Phase, SkipReason, WorkflowExecution, WorkflowExecutionStatus,
};
use wfe_tests::system::{Script, System, condition};
use wfe_tests::{Cluster, wait};

use crate::setup::{SECONDS_30, cluster};

/// A system with short cooldown and backoff, and no webhook: the controller evaluates the history.
async fn system(cluster: &Cluster, prefix: &str, workflows: &[&Script], flags: &[&str]) -> System {
    let mut system = System::install(cluster, prefix, workflows)
        .await
        .expect("installed");
    system.controller_flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    system.start_controller().await.expect("started");
    system
}

async fn restart(system: &mut System) {
    system.kill_controller().await.expect("killed");
    system.start_controller().await.expect("started again");
}

/// Runs a workflow on `prod/Deployment/web`; returns the final status.
async fn run(
    system: &System,
    workflow: &Script,
    name: &str,
    config: Value,
) -> WorkflowExecutionStatus {
    let spec = json!({ "targetResource": "prod/Deployment/web", "executionConfig": config });
    let api = system.namespace.api::<WorkflowExecution>();
    let request = workflow.request(name, &spec);
    api.create(&PostParams::default(), &request)
        .await
        .expect("stored");
    system
        .ended(name)
        .await
        .expect("ended")
        .status
        .expect("a status")
}

fn skipped(status: &WorkflowExecutionStatus) -> Option<SkipReason> {
    assert_eq!(status.phase, Some(Phase::Skipped), "{status:?}");
    status.skip_details.as_ref().map(|details| details.reason)
}

async fn delete(system: &System, name: &str) {
    let api = system.namespace.api::<WorkflowExecution>();
    api.delete(name, &DeleteParams::default())
        .await
        .expect("deleted");
    wait::gone(&api, name, SECONDS_30).await.expect("gone");
}

/// BR-WE-010
#[tokio::test]
async fn same_workflow_is_skipped_during_cooldown_and_other_workflow_runs() {
    let cluster = cluster().await;
    let (first, other) = (
        Script::push(&cluster, "cool", "true", ""),
        Script::push(&cluster, "other", "true", ""),
    );
    let mut system = system(&cluster, "cooldown", &[&first, &other], &["--cooldown=60s"]).await;
    let done = run(&system, &first, "done", json!({})).await;
    assert_eq!(done.phase, Some(Phase::Succeeded));
    let completed = done.completion_time.expect("a time").0;
    let until = completed + Duration::from_mins(1);

    let status = run(&system, &first, "too-soon", json!({})).await;
    assert_eq!(skipped(&status), Some(SkipReason::RecentlyRemediated));
    let details = status.skip_details.expect("details");
    let recent = details.recent_remediation.expect("the earlier execution");
    assert_eq!(
        (
            recent.name.as_str(),
            recent.workflow_id.as_str(),
            recent.outcome.as_str()
        ),
        ("done", "cool", "Succeeded")
    );
    assert_eq!(details.retry_at.map(|it| it.0), Some(until));
    assert!(recent.cooldown_remaining.is_some(), "remaining cooldown");

    restart(&mut system).await;
    assert_eq!(
        run(&system, &other, "another", json!({})).await.phase,
        Some(Phase::Succeeded)
    );
    delete(&system, "done").await;
    restart(&mut system).await;
    let status = run(&system, &first, "after-delete", json!({})).await;
    assert_eq!(
        skipped(&status),
        Some(SkipReason::RecentlyRemediated),
        "the lock keeps the history of the deleted execution"
    );
    let status = run(&system, &first, "patient", json!({ "whenBlocked": "Wait" })).await;
    assert_eq!(status.phase, Some(Phase::Succeeded), "{status:?}");
    assert!(
        status.start_time.expect("a start").0 >= until,
        "the execution waited for the end of the cooldown"
    );
}

/// BR-WE-012
#[tokio::test]
async fn failures_before_execution_back_off_until_retries_are_exhausted() {
    let cluster = cluster().await;
    let workflow = Script::push(
        &cluster,
        "needy",
        "true",
        "dependencies: {secrets: [{name: needed}]}\n",
    );
    let flags = ["--cooldown=0s", "--backoff-base=5s", "--backoff-max=20s"];
    let mut system = system(&cluster, "backoff", &[&workflow], &flags).await;
    let secrets = system.execution.api::<Secret>();
    let wait = json!({ "whenBlocked": "Wait" });
    let backoff = |status: &WorkflowExecutionStatus| {
        let next = status.next_allowed_execution.as_ref()?.0;
        Some(
            next.duration_since(status.completion_time.as_ref()?.0)
                .as_secs(),
        )
    };

    let status = run(&system, &workflow, "f1", json!({})).await;
    assert_eq!(
        (status.consecutive_failures, backoff(&status)),
        (Some(1), Some(5))
    );
    let status = run(&system, &workflow, "f2", wait.clone()).await;
    assert_eq!(
        (status.consecutive_failures, backoff(&status)),
        (Some(2), Some(10))
    );

    // A success resets the failure count.
    let secret: Secret = serde_json::from_value(
        json!({ "metadata": { "name": "needed" }, "stringData": { "a": "b" } }),
    )
    .expect("a Secret");
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .expect("created");
    let status = run(&system, &workflow, "s", wait.clone()).await;
    assert_eq!(status.phase, Some(Phase::Succeeded));
    secrets
        .delete("needed", &DeleteParams::default())
        .await
        .expect("deleted");

    restart(&mut system).await;
    let mut next = None;
    for (name, failures, seconds) in [("g1", 1, Some(5)), ("g2", 2, Some(10)), ("g3", 3, Some(20))]
    {
        let status = run(&system, &workflow, name, wait.clone()).await;
        next.clone_from(&status.next_allowed_execution);
        assert_eq!(
            (status.consecutive_failures, backoff(&status)),
            (Some(failures), seconds),
            "{name}"
        );
    }
    let status = run(&system, &workflow, "impatient", json!({})).await;
    assert_eq!(skipped(&status), Some(SkipReason::BackoffActive));
    let details = status.skip_details.expect("details");
    assert_eq!(
        details.recent_remediation.map(|it| it.name).as_deref(),
        Some("g3")
    );
    assert_eq!(details.retry_at, next);

    // The history survives restart and deletion.
    delete(&system, "g3").await;
    restart(&mut system).await;
    let status = run(&system, &workflow, "still-impatient", json!({})).await;
    assert_eq!(skipped(&status), Some(SkipReason::BackoffActive));
    for (name, failures, seconds) in [("g4", 4, Some(20)), ("g5", 5, None)] {
        let status = run(&system, &workflow, name, wait.clone()).await;
        assert_eq!(
            (status.consecutive_failures, backoff(&status)),
            (Some(failures), seconds),
            "{name}"
        );
    }
    restart(&mut system).await;
    let status = run(&system, &workflow, "exhausted", wait.clone()).await;
    assert_eq!(
        skipped(&status),
        Some(SkipReason::ExhaustedRetries),
        "whenBlocked Wait does not wait: only a clearance helps"
    );
    let message = status.skip_details.expect("details").message;
    assert!(message.contains("patch workflowexecution g5"), "{message}");

    system.clear("g5").await.expect("cleared");
    let status = run(&system, &workflow, "h1", json!({})).await;
    assert_eq!(status.consecutive_failures, Some(1), "reset by clearance");
}

/// BR-WE-013
#[tokio::test]
async fn failure_during_execution_blocks_target_until_cleared() {
    let cluster = cluster().await;
    let (bad, good) = (
        Script::push(&cluster, "bad", "exit 3", ""),
        Script::push(&cluster, "good", "true", ""),
    );
    let pipeline = Script::pipeline(
        "pipeline",
        format!("r.io/pipeline@sha256:{}", "2".repeat(64)),
        "",
    );
    let flags = ["--cooldown=0s", "--backoff-base=1s"];
    let mut system = system(&cluster, "block", &[&bad, &good, &pipeline], &flags).await;
    let api = system.namespace.api::<WorkflowExecution>();
    let status = run(&system, &bad, "broken", json!({})).await;
    assert_eq!(status.phase, Some(Phase::Failed));
    assert_eq!(
        status.consecutive_failures, None,
        "only failures before execution are counted"
    );

    let status = run(&system, &good, "blocked", json!({ "whenBlocked": "Wait" })).await;
    assert_eq!(skipped(&status), Some(SkipReason::PreviousExecutionFailed));
    let details = status.skip_details.expect("details");
    assert!(
        details.message.contains("patch workflowexecution broken"),
        "{}",
        details.message
    );
    assert_eq!(
        details.recent_remediation.map(|it| (it.name, it.outcome)),
        Some(("broken".to_owned(), "Failed".to_owned()))
    );

    // The block survives a failure before execution, deletion and restart.
    let on_web = json!({
        "executionEngine": "tekton", "targetResource": "prod/Deployment/web",
        "workflowRef": { "workflowId": "pipeline", "version": "1.0.0", "bundleRef": "oci://r.io/pipeline" },
    });
    let not_installed = pipeline.request("not-installed", &on_web);
    api.create(&PostParams::default(), &not_installed)
        .await
        .expect("stored");
    let status = system
        .ended("not-installed")
        .await
        .expect("ended")
        .status
        .expect("a status");
    assert_eq!(status.consecutive_failures, Some(1));
    api.delete("broken", &DeleteParams::default())
        .await
        .expect("deletion requested");
    restart(&mut system).await;
    let status = run(&system, &good, "still-blocked", json!({})).await;
    assert_eq!(skipped(&status), Some(SkipReason::PreviousExecutionFailed));
    let broken = api.get("broken").await.expect("kept until cleared");
    assert!(broken.metadata.deletion_timestamp.is_some());
    assert_eq!(condition(&broken, "AuditRecorded"), "True/AuditSucceeded");

    system.clear("broken").await.expect("cleared");
    wait::gone(&api, "broken", SECONDS_30)
        .await
        .expect("gone after clearance");
    restart(&mut system).await;
    let status = run(&system, &good, "free", json!({})).await;
    assert_eq!(status.phase, Some(Phase::Succeeded), "{status:?}");
}
