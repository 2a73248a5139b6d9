//! BR-WE-012: failures of real pods are reported with their reason, exit code and summary.

use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use wfe_model::audit::EventType::{
    ExecutionStarted, SelectionCompleted, WorkflowFailed, WorkflowStarted,
};
use wfe_model::workflow_execution::{FailureReason, Phase, WorkflowExecution};
use wfe_tests::system::{Script, System, condition, types};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster};

const SLEEP: &str = "trap 'exit 0' TERM; sleep 300 & wait";

/// BR-WE-012
#[tokio::test]
async fn failed_execution_reports_reason_exit_code_and_summary() {
    let cluster = cluster().await;
    let registry = cluster.registry().expect("a registry");
    let missing = format!(
        "{}/workflows/never-pushed@sha256:{}",
        registry.address(),
        "0".repeat(64)
    );
    let exits = Script::push(
        &cluster,
        "exits",
        "echo why >/dev/termination-log; exit 3",
        "",
    );
    let mut hungry = Script::push(&cluster, "hungry", "tail /dev/zero", "");
    hungry.yaml = hungry.yaml.replace(
        "engine: job,",
        "engine: job, resources: {limits: {memory: 16Mi}},",
    );
    let slow = Script::push(&cluster, "slow", SLEEP, "");
    let absent = Script::of("absent", missing, "");
    let system = System::start(&cluster, "fails", &[&exits, &hungry, &slow, &absent])
        .await
        .expect("started");
    let api = system.namespace.api::<WorkflowExecution>();
    let create = async |name: &str, script: &Script, spec| {
        api.create(&PostParams::default(), &script.request(name, &spec))
            .await
            .expect("admitted");
    };
    create("exits", &exits, json!({})).await;
    create("oom", &hungry, json!({})).await;
    create(
        "deadline",
        &slow,
        json!({ "executionConfig": { "timeout": "15s" } }),
    )
    .await;
    create(
        "no-image",
        &absent,
        json!({ "executionConfig": { "timeout": "25s" } }),
    )
    .await;
    create("by-hand", &slow, json!({})).await;
    let began =
        |wfe: &WorkflowExecution| condition(wfe, "ExecutionRunning") == "True/ExecutionStarted";
    let running = wait::until(&api, "by-hand", "the container runs", SECONDS_30, began)
        .await
        .expect("running");
    let job = running
        .status
        .and_then(|status| status.execution_ref)
        .expect("a Job")
        .name;
    system
        .execution
        .api::<Job>()
        .delete(&job, &DeleteParams::background())
        .await
        .expect("deleted");

    let ran = [
        SelectionCompleted,
        ExecutionStarted,
        WorkflowStarted,
        WorkflowFailed,
    ];
    let never_ran = [SelectionCompleted, ExecutionStarted, WorkflowFailed];
    for (name, reason, exit_code, was_execution_failure, complete, says) in [
        (
            "exits",
            FailureReason::TaskFailed,
            Some(3),
            true,
            "False/TaskFailed",
            "failed with exit code 3",
        ),
        (
            "oom",
            FailureReason::OOMKilled,
            Some(137),
            true,
            "False/OOMKilled",
            "ran out of memory",
        ),
        (
            "deadline",
            FailureReason::DeadlineExceeded,
            None,
            true,
            "False/DeadlineExceeded",
            "did not end within its timeout",
        ),
        (
            "no-image",
            FailureReason::ImagePullBackOff,
            None,
            false,
            "False/ExecutionFailed",
            "its image or bundle cannot be pulled",
        ),
        (
            "by-hand",
            FailureReason::ExecutionDeleted,
            None,
            true,
            "False/ExecutionDeleted",
            "its execution or its pod was deleted",
        ),
    ] {
        let wfe = system.ended(name).await.expect("ended");
        let status = wfe.status.as_ref().expect("a status");
        let details = status
            .failure_details
            .as_ref()
            .unwrap_or_else(|| panic!("{name}: {status:?}"));
        assert_eq!(status.phase, Some(Phase::Failed), "{name}");
        assert_eq!(
            (
                details.reason,
                details.exit_code,
                details.was_execution_failure
            ),
            (reason, exit_code, was_execution_failure),
            "{name}: {details:?}"
        );
        assert_eq!(condition(&wfe, "ExecutionComplete"), complete, "{name}");
        assert_eq!(condition(&wfe, "Ready"), "False/NotReady", "{name}");
        assert!(
            details.natural_language_summary.contains(says),
            "{name}: {}",
            details.natural_language_summary
        );
        let trail = system.audit_trail().expect("a trail");
        let expected = if was_execution_failure {
            ran.as_slice()
        } else {
            never_ran.as_slice()
        };
        assert_eq!(types(&trail, name), expected, "{name}");
    }
    let exits = api
        .get("exits")
        .await
        .expect("found")
        .status
        .and_then(|status| status.failure_details)
        .expect("details");
    assert_eq!(exits.message, "the container ended with exit code 3: why");
}

/// BR-WE-003: the webhook denies the request; without the webhook the controller fails it.
#[tokio::test]
async fn engine_not_installed_is_denied_or_fails_as_unsupported() {
    let cluster = cluster().await;
    let image = format!("r.io/pipeline@sha256:{}", "2".repeat(64));
    let pipeline = Script::pipeline("pipeline", image, "");
    let mut system = System::start(&cluster, "engine", &[&pipeline])
        .await
        .expect("started");
    let request = pipeline.request("tekton", &json!({
        "executionEngine": "tekton",
        "workflowRef": { "workflowId": "pipeline", "version": "1.0.0", "bundleRef": "oci://r.io/pipeline" },
    }));
    let api = system.namespace.api::<WorkflowExecution>();
    let create = async || api.create(&PostParams::default(), &request).await;
    let refused = create().await.expect_err("not installed").to_string();
    let says = "spec.executionEngine: executionEngine tekton is not installed: the cluster does not serve PipelineRun of tekton.dev/v1: install the engine";
    assert!(refused.contains(says), "{refused}");
    system.remove_webhook().await.expect("webhook removed");
    create().await.expect("accepted by the schema");
    let wfe = system.ended("tekton").await.expect("ended");
    let details = wfe
        .status
        .as_ref()
        .and_then(|status| status.failure_details.clone())
        .expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::UnsupportedEngine, false)
    );
    assert_eq!(
        condition(&wfe, "ExecutionCreated"),
        "False/UnsupportedEngine"
    );
    assert!(refused.contains(&details.message), "messages must be equal");
}
