//! BR-WE-009: a target is unlocked when the last pod of its execution has ended, not when the Job
//! is gone.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, PropagationPolicy};
use serde_json::json;
use wfe_model::workflow_execution::{FailureReason, Phase, WorkflowExecution};
use wfe_tests::system::{Overlap, Script, System, condition, until_effective};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster};

/// Ignores SIGTERM: the kubelet kills the pod after the grace period of 30 s.
const STUBBORN: &str =
    "if [ \"$FAST\" = true ]; then exit 0; fi; trap '' TERM; while true; do sleep 1; done";
const PARAMETERS: &str = "parameters:\n- {name: FAST, type: boolean, default: 'false'}\n";

/// Runs an execution whose pod ignores SIGTERM, ends the execution by `end`, and checks that a
/// second execution on the target starts when the pod has ended.
async fn second_starts_after_pod_ends(
    prefix: &str,
    reason: FailureReason,
    end: impl AsyncFnOnce(&System),
) {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "stubborn", STUBBORN, PARAMETERS);
    let system = System::start(&cluster, prefix, &[&workflow])
        .await
        .expect("started");
    let overlap = Overlap::watch(&system.execution);
    let api = system.namespace.api::<WorkflowExecution>();
    let on_web = |more: serde_json::Value| {
        let mut spec = json!({ "targetResource": "prod/Deployment/web" });
        spec.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        spec
    };
    let first = workflow.request("first", &on_web(json!({})));
    api.create(&PostParams::default(), &first)
        .await
        .expect("admitted");
    let began = |wfe: &WorkflowExecution| condition(wfe, "ExecutionRunning").starts_with("True");
    wait::until(&api, "first", "the container runs", SECONDS_30, began)
        .await
        .expect("running");
    let second = workflow.request(
        "second",
        &on_web(json!({ "parameters": { "FAST": "true" }, "executionConfig": { "whenBlocked": "Wait" } })),
    );
    api.create(&PostParams::default(), &second)
        .await
        .expect("admitted");
    let waits = |wfe: &WorkflowExecution| condition(wfe, "Blocked") == "True/ResourceBusy";
    wait::until(&api, "second", "the target is locked", SECONDS_30, waits)
        .await
        .expect("waiting");

    end(&system).await;
    let failed = |wfe: &WorkflowExecution| wfe.phase() == Some(Phase::Failed);
    let first = wait::until(&api, "first", "the phase is Failed", SECONDS_30, failed)
        .await
        .expect("failed");
    let details = first
        .status
        .as_ref()
        .and_then(|it| it.failure_details.clone())
        .expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (reason, true)
    );
    // The pod is terminating; the block can be cleared in the meantime.
    assert_eq!(
        system.live_pods().await.expect("listed").len(),
        1,
        "the pod is terminating"
    );
    assert_eq!(
        system.holders().await.expect("listed").len(),
        1,
        "the target is locked"
    );
    system.clear("first").await.expect("cleared");

    let second = system.ended("second").await.expect("ended");
    assert_eq!(condition(&second, "Ready"), "True/Ready");
    assert_eq!(overlap.end(), 2, "pods on one target do not overlap");
    assert!(
        system.holders().await.expect("listed").is_empty(),
        "the target is unlocked"
    );
}

/// BR-WE-009
#[tokio::test]
async fn next_execution_after_cancel_starts_when_pod_has_ended() {
    second_starts_after_pod_ends("pod-cancel", FailureReason::Cancelled, async |system| {
        system
            .cancel("first", "wrong target")
            .await
            .expect("cancelled");
    })
    .await;
}

/// BR-WE-009
#[tokio::test]
async fn next_execution_after_delete_starts_when_pod_has_ended() {
    second_starts_after_pod_ends("pod-delete", FailureReason::Cancelled, async |system| {
        system.delete("first").await.expect("deleted");
    })
    .await;
}

/// BR-WE-009
#[tokio::test]
async fn next_execution_after_manual_job_delete_starts_when_pod_has_ended() {
    second_starts_after_pod_ends(
        "pod-hand",
        FailureReason::ExecutionDeleted,
        async |system| {
            let jobs = system.jobs().await.expect("listed");
            let name = jobs[0].metadata.name.clone().expect("a name");
            let api = system.execution.api::<Job>();
            api.delete(&name, &DeleteParams::background())
                .await
                .expect("deleted");
        },
    )
    .await;
}

/// BR-WE-009: a pod that has lost its Job runs on.
#[tokio::test]
async fn next_execution_after_orphaning_delete_starts_when_pod_has_ended() {
    second_starts_after_pod_ends(
        "pod-orphan",
        FailureReason::ExecutionDeleted,
        async |system| {
            let jobs = system.jobs().await.expect("listed");
            let name = jobs[0].metadata.name.clone().expect("a name");
            let api = system.execution.api::<Job>();
            let orphan = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Orphan),
                ..DeleteParams::default()
            };
            api.delete(&name, &orphan).await.expect("deleted");
            let gone = async || Ok(api.get_opt(&name).await?.is_none());
            until_effective("the deletion of the Job", gone)
                .await
                .expect("gone");
            let pods = system.live_pods().await.expect("listed");
            assert!(pods[0].metadata.owner_references.is_none());
            let pod = pods[0].metadata.name.clone().expect("a name");
            let api = system.execution.api::<Pod>();
            api.delete(&pod, &DeleteParams::default())
                .await
                .expect("deleted");
        },
    )
    .await;
}
