//! Restarts of the controller: SIGKILL at the worst moment, and SIGTERM.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::PostParams;
use serde_json::json;
use sha2::{Digest, Sha256};
use wfe_model::audit::EventType;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::system::{Script, System, types};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster};

/// BR-WE-014
#[tokio::test]
async fn controller_killed_between_job_create_and_status_write_runs_one_job() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "quick", "true", "");
    let mut system = System::install(&cluster, "restart", &[&workflow])
        .await
        .expect("installed");
    // The controller can create Jobs, but each of its status writes is denied until it is killed.
    system
        .allow_status_writes(false)
        .await
        .expect("permission revoked");
    system.start_controller().await.expect("started");
    let api = system.namespace.api::<WorkflowExecution>();
    let created = api
        .create(
            &PostParams::default(),
            &workflow.request("once", &json!({})),
        )
        .await
        .expect("stored");
    let name = format!(
        "once-{}",
        &hex::encode(Sha256::digest(created.uid().expect("a uid")))[..8]
    );
    let suspended = |job: &Job| {
        let conditions = job.status.as_ref().and_then(|it| it.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "Suspended"))
    };
    wait::until(
        &system.execution.api::<Job>(),
        &name,
        "the Job is suspended",
        SECONDS_30,
        suspended,
    )
    .await
    .expect("suspended");
    let pods = system.live_pods().await.expect("listed");
    assert!(
        pods.is_empty(),
        "a pod runs before the status names its Job: {pods:?}"
    );
    let unchanged = api.get("once").await.expect("found");
    assert_eq!(
        unchanged.status.and_then(|status| status.phase),
        None,
        "the status is not written"
    );

    system.kill_controller().await.expect("killed");
    system.allow_status_writes(true).await.expect("permitted");
    system.start_controller().await.expect("started again");
    let wfe = system.ended("once").await.expect("ended");
    assert_eq!(
        wfe.status.and_then(|status| status.phase),
        Some(Phase::Succeeded)
    );
    let jobs = system.jobs().await.expect("listed");
    assert_eq!(
        jobs.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
        [name]
    );
    let expected = [
        EventType::SelectionCompleted,
        EventType::ExecutionStarted,
        EventType::WorkflowStarted,
        EventType::WorkflowCompleted,
    ];
    assert_eq!(
        types(&system.audit_trail().expect("a trail"), "once"),
        expected
    );
}

/// BR-WE-014
#[tokio::test]
async fn controller_receiving_sigterm_exits_promptly_with_zero() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "stop", &[])
        .await
        .expect("installed");
    let controller = system.launch_controller().await.expect("started");
    let ended = controller
        .terminate(Duration::from_secs(10))
        .await
        .expect("ended");
    assert_eq!(ended.code(), Some(0));
}
