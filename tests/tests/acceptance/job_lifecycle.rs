//! BR-WE-014: the life of a workflow that runs as a Job, from admission to audit and deletion.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use wfe_model::audit::{EventData, EventType};
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{Script, System, condition, types};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster, kubectl, pod_and_log};

/// BR-WE-014
#[tokio::test]
async fn workflow_runs_with_dependencies_and_parameters_and_is_audited() {
    let cluster = cluster().await;
    let script = "set -e\necho target=$TARGET_RESOURCE wfe=$KUBERNAUT_WORKFLOW_EXECUTION rr=$KUBERNAUT_REMEDIATION_REQUEST\necho trace=$TRACEPARENT\necho kubectl -n $TARGET_RESOURCE_NAMESPACE rollout restart $TARGET_RESOURCE_KIND/$TARGET_RESOURCE_NAME of $TARGET_RESOURCE_API_VERSION\nprintf 'text=%s\\n' \"$TEXT\"\necho mode=$MODE user=$(id -u)\ncat /run/kubernaut/secrets/registry/token /run/kubernaut/configmaps/limits/max\ntouch /tmp/x\nif touch /x 2>/dev/null; then echo root is writable; fi\n";
    let more = "dependencies: {secrets: [{name: registry}], configMaps: [{name: limits}]}\nparameters:\n- {name: TARGET_RESOURCE_NAMESPACE, type: string, required: true}\n- {name: TARGET_RESOURCE_KIND, type: string, required: true}\n- {name: TARGET_RESOURCE_NAME, type: string, required: true}\n- {name: TEXT, type: string, required: true}\n- {name: MODE, type: string, default: safe}\n";
    let workflow = Script::push(&cluster, "read-all", script, more);
    let system = System::start(&cluster, "life", &[&workflow])
        .await
        .expect("started");
    let create = PostParams::default();
    let data = json!({ "token": "s3cret\n" });
    system.add_secret("registry", data).await.expect("created");
    let data = json!({ "max": "512Mi\n" });
    system
        .add_config_map("limits", data)
        .await
        .expect("created");

    let api = system.namespace.api::<WorkflowExecution>();
    let request = workflow.request(
        "good",
        &json!({
            "parameters": { "TEXT": "$(TARGET_RESOURCE) $HOME" },
            "remediationRequestRef": { "name": "rr-1" },
        }),
    );
    api.create(&create, &request).await.expect("admitted");
    let (success, text) = kubectl(&[
        "-n",
        system.namespace.name(),
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "wfe/good",
        "--timeout=60s",
    ])
    .await;
    assert!(success, "{text}");
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
    assert_eq!(status.observed_generation, wfe.metadata.generation);
    assert!(
        status.start_time.is_some()
            && status.completion_time.is_some()
            && status.duration.is_some()
    );

    let (_, log) = pod_and_log(&system.execution).await;
    let uid = wfe.metadata.uid.as_deref().expect("a uid").replace('-', "");
    let expected = format!(
        "target=prod/Deployment/good wfe={}/good rr=rr-1\ntrace=00-{uid}-{}-01\nkubectl -n prod rollout restart Deployment/good of apps/v1\ntext=$(TARGET_RESOURCE) $HOME\nmode=safe user=65532\ns3cret\n512Mi\n",
        system.namespace.name(),
        &uid[16..]
    );
    assert_eq!(log, expected);

    let trail = system.audit_trail().expect("a trail");
    let expected = [
        EventType::SelectionCompleted,
        EventType::ExecutionStarted,
        EventType::WorkflowStarted,
        EventType::WorkflowCompleted,
    ];
    assert_eq!(types(&trail, "good"), expected);
    for event in &trail {
        assert_eq!(event.correlation_id, "rr-1");
        let EventData::Execution(data) = &event.event_data else {
            panic!("no execution data: {event:?}")
        };
        assert_eq!(data.execution_engine, "job");
    }

    let leases = system
        .execution
        .api::<Lease>()
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items;
    assert_eq!(leases.len(), 1);
    assert_eq!(
        leases[0]
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_ref()),
        None,
        "the lock is free"
    );

    let events = system
        .namespace
        .api::<Event>()
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items;
    let reasons: Vec<_> = events
        .iter()
        .filter_map(|event| event.reason.as_deref())
        .collect();
    assert_eq!(reasons, ["ExecutionCreated", "ExecutionSucceeded"]);
    let (_, text) = kubectl(&["-n", system.namespace.name(), "describe", "wfe/good"]).await;
    assert!(
        text.contains("ExecutionSucceeded") && text.contains("The workflow succeeded after"),
        "{text}"
    );
}

/// BR-WE-014
#[tokio::test]
async fn running_execution_deleted_is_cancelled_audited_and_removed() {
    let cluster = cluster().await;
    let workflow = Script::push(
        &cluster,
        "sleeper",
        "trap 'exit 0' TERM; sleep 300 & wait",
        "",
    );
    let system = System::start(&cluster, "cancel", &[&workflow])
        .await
        .expect("started");
    let api = system.namespace.api::<WorkflowExecution>();
    api.create(
        &PostParams::default(),
        &workflow.request("gone", &json!({})),
    )
    .await
    .expect("admitted");
    let began =
        |wfe: &WorkflowExecution| condition(wfe, "ExecutionRunning") == "True/ExecutionStarted";
    wait::until(&api, "gone", "the container runs", SECONDS_30, began)
        .await
        .expect("running");
    api.delete("gone", &DeleteParams::default())
        .await
        .expect("deleted");
    // The execution ran, so it is kept until its block is cleared.
    let cancelled = system.ended("gone").await.expect("ended");
    assert_eq!(
        condition(&cancelled, "ExecutionComplete"),
        "False/Cancelled"
    );
    system.clear("gone").await.expect("cleared");
    wait::gone(&api, "gone", SECONDS_30).await.expect("gone");
    assert_eq!(system.jobs().await.expect("listed").len(), 0);
    let pods = system
        .execution
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items;
    assert!(
        pods.iter()
            .all(|pod| pod.status.as_ref().and_then(|it| it.phase.as_deref()) != Some("Running")),
        "{pods:?}"
    );
    let trail = system.audit_trail().expect("a trail");
    let expected = [
        EventType::SelectionCompleted,
        EventType::ExecutionStarted,
        EventType::WorkflowStarted,
        EventType::WorkflowFailed,
        EventType::BlockCleared,
    ];
    assert_eq!(types(&trail, "gone"), expected);
    let leases = system
        .execution
        .api::<Lease>()
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items;
    assert_eq!(
        leases[0]
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_ref()),
        None,
        "the lock is free"
    );
}

/// BR-WE-014
#[tokio::test]
async fn succeeded_job_is_deleted_after_retention_and_execution_stays() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "brief", "true", "");
    let mut system = System::install(&cluster, "retention", &[&workflow])
        .await
        .expect("installed");
    system.controller_flags = vec!["--retention=2s".to_owned()];
    system.start_controller().await.expect("started");
    let api = system.namespace.api::<WorkflowExecution>();
    let request = workflow.request("kept", &json!({}));
    api.create(&PostParams::default(), &request)
        .await
        .expect("stored");
    let wfe = system.ended("kept").await.expect("ended");
    let job = wfe
        .status
        .and_then(|status| status.execution_ref)
        .expect("a Job");
    wait::gone(&system.execution.api::<Job>(), &job.name, SECONDS_30)
        .await
        .expect("deleted");
    let kept = api.get("kept").await.expect("not deleted");
    assert_eq!(condition(&kept, "Ready"), "True/Ready");
}
