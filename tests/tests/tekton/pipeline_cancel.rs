//! BR-WE-014: a cancelled or deleted WorkflowExecution ends its pipeline with its `finally` tasks.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use wfe_model::workflow_execution::{FailureReason, Phase};
use wfe_tests::Cluster;
use wfe_tests::system::{Script, System, Task, condition, pipeline, pod_is_alive};

use crate::setup::{cluster, failure, pipeline_runs, tekton};

/// A pipeline that runs until it is cancelled, with a `finally` task that takes two seconds.
fn with_finally(cluster: &Cluster, id: &'static str) -> Script {
    let slow = Task::of("slow", cluster, &["trap 'exit 0' TERM; sleep 300 & wait"]);
    let last = Task::of("last", cluster, &["sleep 2; echo cleaned up"]).push(cluster);
    pipeline(cluster, id, &[slow], &json!({ "finally": [last] }), "")
}

/// BR-WE-014
#[tokio::test]
async fn cancelled_pipeline_runs_finally_before_target_is_free() {
    let cluster = cluster().await;
    let workflow = with_finally(&cluster, "finally-cancel");
    let mut system = System::install(&cluster, "tkn-cancel", &[&workflow])
        .await
        .expect("installed");
    system.controller_flags = vec!["--cooldown=0s".to_owned()];
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let on_web = json!({ "targetResource": "prod/Deployment/web" });
    system
        .create(&workflow, "first", &on_web)
        .await
        .expect("admitted");
    system
        .until("first", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("running");
    system.cancel("first", "enough").await.expect("cancelled");
    let first = system.ended("first").await.expect("ended");
    assert_eq!(condition(&first, "ExecutionComplete"), "False/Cancelled");
    assert_eq!(failure(&first).reason, FailureReason::Cancelled);
    // While the last task runs, nobody else gets the target.
    assert!(
        !system.holders().await.expect("listed").is_empty(),
        "the lock is held"
    );
    system.unlocked("first").await.expect("unlocked");
    let task_runs = tekton(&cluster, &system.execution, "TaskRun");
    let task_runs = task_runs
        .list(&ListParams::default())
        .await
        .expect("listed");
    let last = task_runs
        .items
        .iter()
        .find(|it| it.labels()["tekton.dev/pipelineTask"] == "last");
    let last = last.expect("the finally task ran");
    assert_eq!(
        last.data["status"]["conditions"][0]["status"], "True",
        "{:?}",
        last.data["status"]
    );
    assert_eq!(system.live_pods().await.expect("listed").len(), 0);
    assert_eq!(pipeline_runs(&system).await.len(), 1, "kept as evidence");
}

/// BR-WE-014
#[tokio::test]
async fn deleted_execution_runs_finally_and_leaves_nothing() {
    let cluster = cluster().await;
    let workflow = with_finally(&cluster, "finally-delete");
    let system = System::start(&cluster, "tkn-delete", &[&workflow])
        .await
        .expect("started");
    system
        .create(&workflow, "gone", &json!({}))
        .await
        .expect("admitted");
    system
        .until("gone", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("running");
    system.delete("gone").await.expect("deleted");
    let cancelled = system.ended("gone").await.expect("ended");
    assert_eq!(cancelled.phase(), Some(Phase::Failed));
    system.unlocked("gone").await.expect("unlocked");
    let pods = system.execution.api::<Pod>();
    let pods = pods
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items;
    let last = pods
        .iter()
        .find(|pod| pod.labels()["tekton.dev/pipelineTask"] == "last");
    assert!(
        last.is_some_and(|pod| !pod_is_alive(pod)),
        "the finally task ran to its end"
    );
    system.clear("gone").await.expect("cleared");
    system.gone("gone").await.expect("gone");
    assert_eq!(pipeline_runs(&system).await, [] as [&str; 0]);
}
