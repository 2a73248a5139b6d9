//! BR-WE-014: the life of a workflow that runs as a pipeline, from admission to audit.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{ListParams, LogParams};
use serde_json::json;
use wfe_model::audit::{EventData, EventType};
use wfe_tests::system::{Script, System, Task, condition, pipeline, types};

use crate::setup::{cluster, failure, tekton};

/// BR-WE-014: also under PodSecurity `restricted`, which the execution namespace enforces.
#[tokio::test]
async fn pipeline_runs_with_dependencies_and_parameters_and_is_audited() {
    let cluster = cluster().await;
    let print = "printf '%s|' \"$@\"; id -u";
    let first = Task::of("first", &cluster, &[print]).spec(|spec| {
        spec["params"] = json!([{ "name": "text" }, { "name": "mode" }, { "name": "target" }, { "name": "source" }, { "name": "request" }]);
        let args = [print, "sh", "$(params.text)", "$(params.mode)", "$(params.target)", "$(params.source)", "$(params.request)"];
        spec["steps"][0]["args"] = json!(args);
    });
    let first = first.with(json!({ "params": [
        { "name": "text", "value": "$(params.TEXT)" },
        { "name": "mode", "value": "$(params.MODE)" },
        { "name": "target", "value": "$(params.TARGET_RESOURCE)" },
        { "name": "source", "value": "$(params.KUBERNAUT_WORKFLOW_EXECUTION)" },
        { "name": "request", "value": "$(params.KUBERNAUT_REMEDIATION_REQUEST)" },
    ] }));
    let read = "cat $(workspaces.registry.path)/token $(workspaces.limits.path)/max; printf 'all is well' > $(results.outcome.path)";
    let second = Task::of("second", &cluster, &[read]).spec(|spec| {
        spec["workspaces"] = json!([{ "name": "registry" }, { "name": "limits" }]);
        spec["results"] = json!([{ "name": "outcome" }]);
    });
    let second = second.with(json!({ "workspaces": [
        { "name": "registry", "workspace": "secret-registry" },
        { "name": "limits", "workspace": "configmap-limits" },
    ] }));
    let declared = json!({
        "params": [
            { "name": "TEXT" }, { "name": "MODE" }, { "name": "TARGET_RESOURCE" },
            { "name": "KUBERNAUT_WORKFLOW_EXECUTION" }, { "name": "KUBERNAUT_REMEDIATION_REQUEST" },
        ],
        "workspaces": [{ "name": "secret-registry" }, { "name": "configmap-limits" }],
        "results": [{ "name": "summary", "value": "$(tasks.second.results.outcome)" }],
    });
    let more = "dependencies: {secrets: [{name: registry}], configMaps: [{name: limits}]}\nparameters:\n- {name: TEXT, type: string, required: true}\n- {name: MODE, type: string, default: safe}\n";
    let workflow = pipeline(&cluster, "read-all", &[first, second], &declared, more);
    let system = System::start(&cluster, "tkn-life", &[&workflow])
        .await
        .expect("started");
    let data = json!({ "token": "s3cret\n" });
    system.add_secret("registry", data).await.expect("created");
    let data = json!({ "max": "512Mi\n" });
    system
        .add_config_map("limits", data)
        .await
        .expect("created");

    let spec = json!({
        "parameters": { "TEXT": "$HOME \"quoted\"" },
        "remediationRequestRef": { "name": "rr-1" },
        "targetResource": "prod/Deployment/good",
    });
    system
        .create(&workflow, "good", &spec)
        .await
        .expect("admitted");
    let wfe = system.ended("good").await.expect("ended");
    for (kind, expected) in [
        ("WorkflowResolved", "True/Resolved"),
        ("DependenciesReady", "True/Ready"),
        ("ExecutionCreated", "True/ExecutionCreated"),
        ("ExecutionRunning", "True/ExecutionStarted"),
        ("ExecutionComplete", "True/ExecutionSucceeded"),
        ("AuditRecorded", "True/AuditSucceeded"),
        ("Ready", "True/Ready"),
    ] {
        assert_eq!(condition(&wfe, kind), expected, "{kind}");
    }
    let status = wfe.status.as_ref().expect("a status");
    let summary = status.execution_status.as_ref().expect("a summary");
    assert_eq!(
        (summary.completed_tasks, summary.total_tasks),
        (Some(2), Some(2))
    );
    assert_eq!(
        summary.message.as_deref(),
        Some("all is well"),
        "the result `summary`"
    );
    assert_eq!(status.image.as_ref(), Some(&workflow.image));

    let pods = system.execution.api::<Pod>();
    let of_run = format!(
        "kubernaut.ai/workflow-execution-uid={}",
        wfe.uid().expect("a uid")
    );
    let mut listed = pods
        .list(&ListParams::default().labels(&of_run))
        .await
        .expect("listed")
        .items;
    listed.sort_by_key(|pod| pod.labels().get("tekton.dev/pipelineTask").cloned());
    assert_eq!(
        listed.len(),
        2,
        "every pod has the labels that the lock counts on"
    );
    for pod in &listed {
        assert_eq!(pod.labels()["kubernaut.ai/execution-engine"], "tekton");
        assert!(pod.labels().contains_key("kubernaut.ai/target-hash"));
    }
    let mut logs = Vec::new();
    for pod in &listed {
        let step = LogParams {
            container: Some("step-one".to_owned()),
            ..LogParams::default()
        };
        logs.push(pods.logs(&pod.name_any(), &step).await.expect("a log"));
    }
    let source = format!("{}/good", system.namespace.name());
    let printed = format!("$HOME \"quoted\"|safe|prod/Deployment/good|{source}|rr-1|65532\n");
    assert_eq!(logs, [printed, "s3cret\n512Mi\n".to_owned()]);

    let trail = system.audit_trail().expect("a trail");
    let expected = [
        EventType::SelectionCompleted,
        EventType::ExecutionStarted,
        EventType::WorkflowStarted,
        EventType::WorkflowCompleted,
    ];
    assert_eq!(types(&trail, "good"), expected);
    let run = status.execution_ref.as_ref().expect("a PipelineRun");
    for event in &trail[1..] {
        let EventData::Execution(data) = &event.event_data else {
            panic!("no execution data: {event:?}")
        };
        assert_eq!(data.execution_engine, "tekton");
        assert_eq!(data.pipelinerun_name.as_ref(), Some(&run.name));
        assert_eq!(data.container_image, workflow.image);
    }
}

/// BR-WE-014: the digest of the catalog runs, whatever a tag points to meanwhile.
#[tokio::test]
async fn bundle_by_tag_runs_the_digest_of_the_catalog() {
    let cluster = cluster().await;
    let task = Task::of("only", &cluster, &["echo the first"]);
    let workflow = pipeline(&cluster, "tagged", &[task], &json!({}), "");
    let moved = Task::of("only", &cluster, &["exit 7"]);
    let other: Script = pipeline(&cluster, "tagged", &[moved], &json!({}), "");
    assert_ne!(workflow.image, other.image, "the tag has moved");
    let system = System::start(&cluster, "tkn-tag", &[&workflow])
        .await
        .expect("started");
    let (repository, digest) = workflow.image.split_once('@').expect("a digest");
    let spec = json!({ "workflowRef": {
        "workflowId": "tagged", "version": "1.0.0", "bundleRef": format!("oci://{repository}:1"),
    } });
    system
        .create(&workflow, "by-tag", &spec)
        .await
        .expect("admitted");
    let wfe = system.ended("by-tag").await.expect("ended");
    assert_eq!(condition(&wfe, "Ready"), "True/Ready");
    // The tag says where the digest came from, the digest what ran.
    let ran = format!("{repository}:1@{digest}");
    assert_eq!(
        wfe.status.as_ref().and_then(|it| it.image.as_ref()),
        Some(&ran)
    );
    let trail = system.audit_trail().expect("a trail");
    let EventData::Execution(data) = &trail.last().expect("events").event_data else {
        panic!("no execution data")
    };
    assert_eq!(data.container_image, ran);
    let runs = tekton(&cluster, &system.execution, "PipelineRun");
    let run = &runs
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items[0];
    assert_eq!(run.data["spec"]["pipelineRef"]["params"][0]["value"], ran);
}

/// BR-WE-014: the number of ended tasks is stored while the pipeline runs, once per change.
#[tokio::test]
async fn progress_moves_with_each_task() {
    let cluster = cluster().await;
    let first = Task::of("first", &cluster, &["true"]);
    let second = Task::of(
        "second",
        &cluster,
        &["trap 'exit 0' TERM; sleep 300 & wait"],
    );
    let workflow = pipeline(&cluster, "progress", &[first, second], &json!({}), "");
    let system = System::start(&cluster, "tkn-progress", &[&workflow])
        .await
        .expect("started");
    system
        .create(&workflow, "half", &json!({}))
        .await
        .expect("admitted");
    let api = system.namespace.api();
    let half = |wfe: &wfe_model::workflow_execution::WorkflowExecution| {
        let status = wfe
            .status
            .as_ref()
            .and_then(|it| it.execution_status.as_ref());
        status.is_some_and(|it| (it.completed_tasks, it.total_tasks) == (Some(1), Some(2)))
    };
    let deadline = std::time::Duration::from_mins(1);
    wfe_tests::wait::until(&api, "half", "one of two tasks has ended", deadline, half)
        .await
        .expect("half done");
    system.cancel("half", "enough").await.expect("cancelled");
    let details = failure(&system.ended("half").await.expect("ended"));
    assert!(details.was_execution_failure);
    system.unlocked("half").await.expect("unlocked");
}
