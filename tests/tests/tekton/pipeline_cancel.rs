//! BR-WE-014: a cancelled or deleted WorkflowExecution ends its pipeline with its `finally` tasks.

use std::time::Duration;

use kube::api::DynamicObject;
use serde_json::json;
use wfe_model::workflow_execution::{FailureReason, Phase};
use wfe_tests::system::{Script, System, Task, condition, pipeline};
use wfe_tests::{Cluster, wait};

use crate::setup::{cluster, failure, pipeline_runs, tekton};

const LAST_TASK_WITHIN: Duration = Duration::from_mins(1);

/// A pipeline that runs until it is cancelled, with a `finally` task that takes two seconds.
fn with_finally(cluster: &Cluster, id: &'static str) -> Script {
    let slow = Task::of("slow", cluster, &["trap 'exit 0' TERM; sleep 300 & wait"]);
    let last = Task::of("last", cluster, &["sleep 2; echo cleaned up"]).push(cluster);
    pipeline(cluster, id, &[slow], &json!({ "finally": [last] }), "")
}

/// Waits until the `finally` task of a run is in this state, by its condition `Succeeded`.
async fn last_task_is(system: &System, run: &str, state: &str) {
    let api = tekton(&system.cluster, &system.execution, "TaskRun");
    let is = |it: &DynamicObject| {
        let condition = it.data.pointer("/status/conditions/0/status");
        condition.is_some_and(|it| it == state)
    };
    let what = format!("the finally task's condition is {state}");
    wait::until(&api, &format!("{run}-last"), &what, LAST_TASK_WITHIN, is)
        .await
        .expect("the finally task runs");
}

/// Starts a WorkflowExecution; returns its PipelineRun's name when a step runs.
async fn running(system: &System, workflow: &Script, name: &str) -> String {
    system
        .create(workflow, name, &json!({}))
        .await
        .expect("admitted");
    let wfe = system
        .until(name, "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("running");
    wfe.execution_ref().expect("a PipelineRun").name.clone()
}

/// BR-WE-014
#[tokio::test]
async fn cancelled_pipeline_runs_finally_before_target_is_free() {
    let cluster = cluster().await;
    let workflow = with_finally(&cluster, "finally-cancel");
    let system = System::start(&cluster, "tkn-cancel", &[&workflow])
        .await
        .expect("started");
    let run = running(&system, &workflow, "first").await;
    system.cancel("first", "enough").await.expect("cancelled");
    last_task_is(&system, &run, "Unknown").await;
    assert_eq!(
        system.holders().await.expect("listed").len(),
        1,
        "while the last task runs, nobody else gets the target"
    );
    last_task_is(&system, &run, "True").await;
    let first = system.ended("first").await.expect("ended");
    assert_eq!(condition(&first, "ExecutionComplete"), "False/Cancelled");
    assert_eq!(failure(&first).reason, FailureReason::Cancelled);
    system.unlocked("first").await.expect("unlocked");
    assert_eq!(system.live_pods().await.expect("listed").len(), 0);
    assert_eq!(pipeline_runs(&system).await, [run], "kept as evidence");
}

/// BR-WE-014
#[tokio::test]
async fn deleted_execution_runs_finally_and_leaves_nothing() {
    let cluster = cluster().await;
    let workflow = with_finally(&cluster, "finally-delete");
    let system = System::start(&cluster, "tkn-delete", &[&workflow])
        .await
        .expect("started");
    let run = running(&system, &workflow, "gone").await;
    system.delete("gone").await.expect("deleted");
    last_task_is(&system, &run, "True").await;
    let cancelled = system.ended("gone").await.expect("ended");
    assert_eq!(cancelled.phase(), Some(Phase::Failed));
    system.unlocked("gone").await.expect("unlocked");
    system.clear("gone").await.expect("cleared");
    system.gone("gone").await.expect("gone");
    assert_eq!(pipeline_runs(&system).await, [] as [&str; 0]);
}
