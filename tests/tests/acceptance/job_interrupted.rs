//! Executions that are interrupted from outside: a suspended Job, a pod that is deleted by force, a
//! process that ignores SIGTERM. Each is told as what it was.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use wfe_model::audit::EventType::{
    ExecutionStarted, SelectionCompleted, WorkflowFailed, WorkflowStarted,
};
use wfe_model::workflow_execution::{FailureReason, WorkflowExecution};
use wfe_tests::system::{Script, System, condition, types};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster, kubectl, no_quota, quota};

/// Fails on SIGTERM: a process that exits with 0 counts as a success.
const SLEEP: &str = "trap 'exit 143' TERM; sleep 300 & wait";

/// The Job of a WorkflowExecution whose container runs.
async fn running_job(system: &System, name: &str) -> String {
    let running = system.until(name, "ExecutionRunning", "True/ExecutionStarted");
    let running = running.await.expect("running");
    running.execution_ref().expect("a Job").name.clone()
}

async fn patch_suspend(jobs: &Api<Job>, name: &str, suspend: bool) {
    let change = Patch::Merge(json!({ "spec": { "suspend": suspend } }));
    jobs.patch(name, &PatchParams::default(), &change)
        .await
        .expect("patched");
}

/// BR-WE-012, BR-WE-013
#[tokio::test]
async fn interrupted_execution_reports_true_reason_and_runs_once() {
    let cluster = cluster().await;
    let slow = Script::push(&cluster, "interrupted", SLEEP, "");
    let system = System::start(&cluster, "interrupt", &[&slow]).await;
    let system = system.expect("started");
    for name in ["suspended", "killed"] {
        system
            .create(&slow, name, &json!({}))
            .await
            .expect("admitted");
    }
    let jobs = system.execution.api::<Job>();
    patch_suspend(&jobs, &running_job(&system, "suspended").await, true).await;

    running_job(&system, "killed").await;
    let pods = system.execution.api::<Pod>();
    let of = ListParams::default().labels("kubernaut.ai/workflow-execution=killed");
    let by_force = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    pods.delete_collection(&by_force, &of)
        .await
        .expect("deleted");

    let ran = [
        SelectionCompleted,
        ExecutionStarted,
        WorkflowStarted,
        WorkflowFailed,
    ];
    for (name, reason, says) in [
        (
            "suspended",
            FailureReason::ResourceExhausted,
            "suspended after it had started",
        ),
        (
            "killed",
            FailureReason::ExecutionDeleted,
            "the pod was deleted before its container ended",
        ),
    ] {
        let wfe = system.ended(name).await.expect("ended");
        let status = wfe.status.as_ref().expect("a status");
        let details = status.failure_details.as_ref().expect("details");
        assert_eq!(
            (details.reason, details.was_execution_failure),
            (reason, true),
            "{name}"
        );
        assert!(
            details.message.contains(says),
            "{name}: {}",
            details.message
        );
        let stalled = format!("True/{reason:?}");
        assert_eq!(condition(&wfe, "Stalled"), stalled, "{name}");
        let summary = status
            .execution_status
            .as_ref()
            .and_then(|it| it.message.as_ref());
        assert_eq!(summary, Some(&details.message), "{name}");
        let trail = system.audit_trail().expect("a trail");
        assert_eq!(types(&trail, name), ran, "{name}");
    }
    let suspended = system
        .namespace
        .api::<WorkflowExecution>()
        .get("suspended")
        .await;
    let suspended = suspended.expect("found");
    let job = &suspended.execution_ref().expect("a Job").name;
    wait::gone(&jobs, job, SECONDS_30)
        .await
        .expect("deleted, so that nobody resumes it");
    let arguments = [
        "-n",
        system.namespace.name(),
        "get",
        "wfe",
        "suspended",
        "-o",
        "wide",
    ];
    let (_, columns) = kubectl(&arguments).await;
    assert!(
        columns.contains("ResourceExhausted") && columns.contains("RAN"),
        "{columns}"
    );
}

/// BR-WE-003: a queueing system suspends the Job before it starts, and admits it later.
#[tokio::test]
async fn job_suspended_before_start_waits_and_runs_once_when_it_is_resumed() {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "queued", "exit 0", "");
    let system = System::start(&cluster, "queued", &[&quick])
        .await
        .expect("started");
    // No pod starts before the Job is suspended.
    quota(&system, "pods").await;
    let spec = json!({});
    system
        .create(&quick, "queued", &spec)
        .await
        .expect("admitted");
    let created = system.until("queued", "ExecutionCreated", "True/ExecutionCreated");
    let job = created
        .await
        .expect("created")
        .execution_ref()
        .expect("a Job")
        .name
        .clone();
    let jobs = system.execution.api::<Job>();
    let queued = json!({
        "metadata": { "labels": { "kueue.x-k8s.io/queue-name": "q" } }, "spec": { "suspend": true },
    });
    jobs.patch(&job, &PatchParams::default(), &Patch::Merge(queued))
        .await
        .expect("patched");
    let api = system.namespace.api::<WorkflowExecution>();
    let waits = |wfe: &WorkflowExecution| {
        let summary = wfe
            .status
            .as_ref()
            .and_then(|it| it.execution_status.as_ref());
        summary.and_then(|it| it.reason.as_deref()) == Some("Suspended")
    };
    wait::until(&api, "queued", "the suspension is told", SECONDS_30, waits)
        .await
        .expect("waiting");
    no_quota(&system).await;
    patch_suspend(&jobs, &job, false).await;
    let wfe = system.ended("queued").await.expect("ended");
    assert_eq!(condition(&wfe, "Ready"), "True/Ready");
}

/// BR-WE-003: the pod gets its grace period of 30 s after the timeout.
#[tokio::test]
async fn process_that_ignores_sigterm_is_reported_as_stopping() {
    let cluster = cluster().await;
    let stubborn = "trap '' TERM; while true; do sleep 300; done";
    let stubborn = Script::push(&cluster, "stubborn", stubborn, "");
    let system = System::start(&cluster, "stubborn", &[&stubborn]).await;
    let system = system.expect("started");
    let spec = json!({ "executionConfig": { "timeout": "4s" } });
    system
        .create(&stubborn, "stubborn", &spec)
        .await
        .expect("admitted");
    let api = system.namespace.api::<WorkflowExecution>();
    let stops = |wfe: &WorkflowExecution| {
        let summary = wfe
            .status
            .as_ref()
            .and_then(|it| it.execution_status.as_ref());
        let message = summary
            .and_then(|it| it.message.as_deref())
            .unwrap_or_default();
        message.contains("the timeout of 4s is exceeded, waiting for the pod to end")
    };
    wait::until(
        &api,
        "stubborn",
        "the exceeded timeout is told",
        SECONDS_30,
        stops,
    )
    .await
    .expect("told");
    let by_force = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    let pods = system.execution.api::<Pod>();
    pods.delete_collection(&by_force, &ListParams::default())
        .await
        .expect("deleted");
    let wfe = system.ended("stubborn").await.expect("ended");
    assert_eq!(
        condition(&wfe, "ExecutionComplete"),
        "False/DeadlineExceeded"
    );
}
