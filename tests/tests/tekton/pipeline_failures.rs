//! BR-WE-012: why pipelines fail, from facts.

use kube::Api;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use serde_json::json;
use wfe_model::workflow_execution::{FailureReason, WorkflowExecution};
use wfe_tests::system::{Script, System, Task, condition, dry_run, pipeline, until_effective};

use crate::setup::{cluster, failure, pipeline_runs, tekton};

/// BR-WE-012
#[tokio::test]
async fn failed_step_is_named_with_task_index_and_exit_code() {
    let cluster = cluster().await;
    let first = Task::of("first", &cluster, &["true"]);
    let second = Task::of("second", &cluster, &["true", "exit 3", "true"]);
    let workflow = pipeline(&cluster, "exit-3", &[first, second], &json!({}), "");
    let system = System::start(&cluster, "tkn-exit", &[&workflow])
        .await
        .expect("started");
    system
        .create(&workflow, "a", &json!({}))
        .await
        .expect("admitted");
    let wfe = system.ended("a").await.expect("ended");
    let details = failure(&wfe);
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::TaskFailed, true)
    );
    assert_eq!(details.exit_code, Some(3));
    let task = (
        details.failed_task_index,
        details.failed_task_name.as_deref(),
        details.failed_step_name.as_deref(),
    );
    assert_eq!(task, (Some(1), Some("second"), Some("two")));
    assert_eq!(
        details.message,
        "step two of task second ended with exit code 3"
    );
    assert_eq!(condition(&wfe, "ExecutionComplete"), "False/TaskFailed");
}

/// BR-WE-012: a step over its memory limit, and a pipeline over its timeout.
#[tokio::test]
async fn memory_limit_and_timeout_are_told_apart_from_a_failed_step() {
    let cluster = cluster().await;
    let hungry =
        Task::of("hungry", &cluster, &["head -c 200000000 /dev/zero | tail"]).spec(|spec| {
            spec["steps"][0]["computeResources"] = json!({ "limits": { "memory": "32Mi" } });
        });
    let hungry = pipeline(&cluster, "hungry", &[hungry], &json!({}), "");
    let slow = Task::of("slow", &cluster, &["trap 'exit 0' TERM; sleep 300 & wait"]);
    let slow = pipeline(&cluster, "slow", &[slow], &json!({}), "");
    let system = System::start(&cluster, "tkn-limits", &[&hungry, &slow])
        .await
        .expect("started");
    system
        .create(&hungry, "hungry", &json!({}))
        .await
        .expect("admitted");
    let timeout = json!({ "executionConfig": { "timeout": "8s" } });
    system
        .create(&slow, "slow", &timeout)
        .await
        .expect("admitted");
    for (name, reason) in [
        ("hungry", FailureReason::OOMKilled),
        ("slow", FailureReason::DeadlineExceeded),
    ] {
        let details = failure(&system.ended(name).await.expect("ended"));
        assert_eq!(
            (details.reason, details.was_execution_failure),
            (reason, true),
            "{details:?}"
        );
    }
}

/// BR-WE-012: pipelines that never start a step.
#[tokio::test]
async fn pipeline_that_cannot_start_fails_without_having_run() {
    let cluster = cluster().await;
    let registry = cluster.registry().expect("a registry");
    let task = || Task::of("only", &cluster, &["true"]);
    let wants = json!({ "workspaces": [{ "name": "nobody-binds-it" }] });
    let unbound = pipeline(&cluster, "unbound", &[task()], &wants, "");
    let pull = Task::of("only", &cluster, &["true"]).spec(|spec| {
        spec["steps"][0]["image"] = json!(format!("{}/no-such-image:1", registry.address()));
    });
    let image = pipeline(&cluster, "no-image", &[pull], &json!({}), "");
    let undeclared = pipeline(
        &cluster,
        "undeclared",
        &[task()],
        &json!({}),
        "parameters: [{name: SIZE, type: integer, default: 3}]",
    );
    let missing = format!(
        "{}/no-such-bundle@sha256:{}",
        registry.address(),
        "0".repeat(64)
    );
    let missing = Script::pipeline("missing", missing, "");
    let busybox = Script::push(&cluster, "not-a-bundle", "true", "");
    let not_a_bundle = Script::pipeline("not-a-bundle", busybox.image, "");
    // Nothing listens on this port.
    let host = registry.address().replace(":5000", ":5999");
    let down = format!("{host}/pipelines/unbound@sha256:{}", "0".repeat(64));
    let down = Script::pipeline("registry-down", down, "");
    let all = [
        &unbound,
        &image,
        &undeclared,
        &missing,
        &not_a_bundle,
        &down,
    ];
    let system = System::start(&cluster, "tkn-start", &all)
        .await
        .expect("started");
    for workflow in all {
        system
            .create(workflow, workflow.id, &json!({}))
            .await
            .expect("admitted");
    }
    let (configuration, pull) = (
        FailureReason::ConfigurationError,
        FailureReason::ImagePullBackOff,
    );
    for (name, reason, words) in [
        ("unbound", configuration, "InvalidWorkspaceBindings"),
        ("no-image", pull, "no-such-image"),
        ("undeclared", configuration, "declare SIZE"),
        ("missing", pull, "no-such-bundle"),
        ("not-a-bundle", pull, "Tekton cannot read the bundle"),
        ("registry-down", pull, "connection refused"),
    ] {
        let wfe = system.ended(name).await.expect("ended");
        let details = failure(&wfe);
        assert_eq!(
            (details.reason, details.was_execution_failure),
            (reason, false),
            "{name}: {details:?}"
        );
        assert!(
            details.message.contains(words),
            "{name}: {}",
            details.message
        );
        assert!(
            details.natural_language_summary.contains("Nothing ran"),
            "{name}: {}",
            details.natural_language_summary
        );
    }
}

/// BR-WE-014: Tekton would silently leave the Secret out.
#[tokio::test]
async fn undeclared_workspace_fails_before_anything_runs() {
    let cluster = cluster().await;
    let task = Task::of("only", &cluster, &["true"]);
    let more = "dependencies: {secrets: [{name: token}]}";
    let workflow = pipeline(&cluster, "no-workspace", &[task], &json!({}), more);
    let system = System::start(&cluster, "tkn-workspace", &[&workflow])
        .await
        .expect("started");
    let secret = json!({ "metadata": { "name": "token" }, "stringData": { "a": "b" } });
    let secret: k8s_openapi::api::core::v1::Secret =
        serde_json::from_value(secret).expect("a Secret");
    system
        .execution
        .api()
        .create(&PostParams::default(), &secret)
        .await
        .expect("created");
    system
        .create(&workflow, "a", &json!({}))
        .await
        .expect("admitted");
    let wfe = system.ended("a").await.expect("ended");
    assert_eq!(
        condition(&wfe, "DependenciesReady"),
        "False/WorkspaceNotDeclared"
    );
    let details = failure(&wfe);
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::ConfigurationError, false)
    );
    assert!(
        details.message.contains("declare secret-token"),
        "{}",
        details.message
    );
    assert_eq!(
        pipeline_runs(&system).await,
        [] as [&str; 0],
        "the PipelineRun is gone"
    );
}

/// BR-WE-012: what other clients do to a running PipelineRun.
#[tokio::test]
async fn run_cancelled_or_deleted_by_another_client_is_told_apart() {
    let cluster = cluster().await;
    let slow = Task::of("slow", &cluster, &["trap 'exit 0' TERM; sleep 300 & wait"]);
    let workflow = pipeline(&cluster, "foreign", &[slow], &json!({}), "");
    let system = System::start(&cluster, "tkn-foreign", &[&workflow])
        .await
        .expect("started");
    let runs = tekton(&cluster, &system.execution, "PipelineRun");
    for name in ["cancelled", "deleted"] {
        system
            .create(&workflow, name, &json!({}))
            .await
            .expect("admitted");
    }
    let run_of = |wfe: &WorkflowExecution| wfe.execution_ref().expect("a PipelineRun").name.clone();
    for name in ["cancelled", "deleted"] {
        let wfe = system
            .until(name, "ExecutionRunning", "True/ExecutionStarted")
            .await
            .expect("running");
        if name == "deleted" {
            runs.delete(&run_of(&wfe), &DeleteParams::default())
                .await
                .expect("deleted");
        } else {
            let cancel = Patch::Merge(json!({ "spec": { "status": "Cancelled" } }));
            runs.patch(&run_of(&wfe), &PatchParams::default(), &cancel)
                .await
                .expect("patched");
        }
    }
    let details = failure(&system.ended("cancelled").await.expect("ended"));
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::Cancelled, true)
    );
    assert!(
        details.message.starts_with("cancelled by another client"),
        "{}",
        details.message
    );
    let details = failure(&system.ended("deleted").await.expect("ended"));
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::ExecutionDeleted, true)
    );
    assert!(
        details.message.contains("PipelineRun"),
        "{}",
        details.message
    );
    system.unlocked("deleted").await.expect("unlocked");
}

/// Makes every PipelineRun of a namespace invalid, so that Tekton's webhook denies it.
async fn invalidate_pipeline_runs(system: &System) {
    let namespace = system.execution.name();
    let name = format!("invalid-{namespace}");
    let policy = json!({
        "metadata": { "name": name },
        "spec": {
            "matchConstraints": {
                "resourceRules": [{
                    "apiGroups": ["tekton.dev"], "apiVersions": ["v1"], "resources": ["pipelineruns"], "operations": ["CREATE"],
                }],
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
            },
            "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression":
                "[JSONPatch{op: 'replace', path: '/spec/timeouts/pipeline', value: '-1h'}]" } }],
        },
    });
    let binding = json!({ "metadata": { "name": name }, "spec": { "policyName": name } });
    for (kind, object) in [
        ("MutatingAdmissionPolicy", policy),
        ("MutatingAdmissionPolicyBinding", binding),
    ] {
        let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        let resource = ApiResource::from_gvk(&gvk);
        let api: Api<DynamicObject> = Api::all_with(system.cluster.admin(), &resource);
        let mut typed = object;
        typed["apiVersion"] = json!("admissionregistration.k8s.io/v1");
        typed["kind"] = json!(kind);
        let object: DynamicObject = serde_json::from_value(typed).expect("an object");
        let created = api.create(&PostParams::default(), &object).await;
        created.expect("created");
    }
    let runs = tekton(&system.cluster, &system.execution, "PipelineRun");
    let probe: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "metadata": { "name": "probe" },
        "spec": { "pipelineRef": { "name": "x" }, "timeouts": { "pipeline": "1h0m0s" } },
    }))
    .expect("a PipelineRun");
    let effective = until_effective("the policy", async || {
        Ok(runs.create(&dry_run(), &probe).await.is_err())
    });
    effective.await.expect("in effect");
}

/// BR-WE-012
#[tokio::test]
async fn pipeline_run_denied_by_tekton_fails_with_its_words() {
    let cluster = cluster().await;
    let task = Task::of("only", &cluster, &["true"]);
    let workflow = pipeline(&cluster, "denied", &[task], &json!({}), "");
    let system = System::start(&cluster, "tkn-denied", &[&workflow])
        .await
        .expect("started");
    invalidate_pipeline_runs(&system).await;
    system
        .create(&workflow, "a", &json!({}))
        .await
        .expect("admitted");
    let wfe = system.ended("a").await.expect("ended");
    let details = failure(&wfe);
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::ConfigurationError, false)
    );
    assert!(
        details.message.contains("webhook.pipeline.tekton.dev"),
        "{}",
        details.message
    );
    assert_eq!(
        condition(&wfe, "ExecutionCreated"),
        "False/ExecutionCreationFailed"
    );
}
