//! BR-WE-003: Tekton may be installed and removed while the controller runs. Its CRDs stand in for
//! it: nothing runs a PipelineRun here.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use wfe_core::names::execution_name;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::system::{Script, System, condition, install_crd};
use wfe_tests::{Cluster, wait};

const SOON: Duration = Duration::from_secs(30);

fn crd(group: &str, version: &str, kind: &str) -> CustomResourceDefinition {
    let plural = format!("{}s", kind.to_lowercase());
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let crd = json!({
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group, "scope": "Namespaced", "names": { "kind": kind, "plural": plural },
            "versions": [{ "name": version, "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
        },
    });
    serde_json::from_value(crd).expect("a CRD")
}

/// BR-WE-003
#[tokio::test(flavor = "multi_thread")]
async fn tekton_installed_and_removed_is_noticed_without_restart() {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let job = Script::of("job", format!("r.io/w@sha256:{}", "1".repeat(64)), "");
    let bundle = format!("r.io/p@sha256:{}", "2".repeat(64));
    let pipeline = Script::pipeline("pipeline", bundle, "");
    let system = System::install(&cluster, "optional", &[&job, &pipeline])
        .await
        .expect("installed");
    let controller = system.launch_controller().await.expect("started");
    let _node = FakeNode::start(&system.execution, |_| Ending::Success);
    let unsupported = async |name: &str| {
        system
            .create(&pipeline, name, &json!({}))
            .await
            .expect("stored");
        let wfe = system.ended(name).await.expect("ended");
        let created = condition(&wfe, "ExecutionCreated");
        assert_eq!(created, "False/UnsupportedEngine");
    };
    unsupported("before").await;

    let crds: Api<CustomResourceDefinition> = Api::all(cluster.admin());
    let tekton = [
        crd("tekton.dev", "v1", "PipelineRun"),
        crd("tekton.dev", "v1", "TaskRun"),
        crd("resolution.tekton.dev", "v1beta1", "ResolutionRequest"),
    ];
    // The CRD that the controller watches is the last.
    for crd in tekton.iter().rev() {
        let created = crds.create(&PostParams::default(), crd).await;
        created.expect("created");
    }
    controller
        .wait_for_log("\"served\":true", 1, SOON)
        .await
        .expect("noticed");
    system
        .create(&pipeline, "during", &json!({}))
        .await
        .expect("stored");
    let runs = GroupVersionKind::gvk("tekton.dev", "v1", "PipelineRun");
    let runs: Api<DynamicObject> = Api::namespaced_with(
        cluster.admin(),
        system.execution.name(),
        &ApiResource::from_gvk(&runs),
    );
    let api = system.namespace.api::<WorkflowExecution>();
    let uid = api.get("during").await.expect("stored").uid();
    let name = execution_name("during", &uid.expect("a uid"));
    let pending = |it: &DynamicObject| it.data["spec"]["status"] == "PipelineRunPending";
    wait::until(
        &runs,
        &name,
        "a PipelineRun is created, pending",
        SOON,
        pending,
    )
    .await
    .expect("created");
    system
        .create(&job, "beside", &json!({}))
        .await
        .expect("stored");
    let beside = system.ended("beside").await.expect("ended");
    assert_eq!(condition(&beside, "Ready"), "True/Ready");

    for crd in &tekton {
        let name = crd.name_any();
        let deleted = crds.delete(&name, &DeleteParams::default()).await;
        deleted.expect("deleted");
    }
    controller
        .wait_for_log("\"served\":false", 2, SOON)
        .await
        .expect("noticed");
    unsupported("after").await;
    let during = system.ended("during").await.expect("ended");
    assert_eq!(
        condition(&during, "ExecutionCreated"),
        "False/UnsupportedEngine"
    );
    let warnings = controller.log_count("watch failed, retrying");
    assert!(
        warnings.expect("a log") <= 6,
        "the log is spammed while Tekton is absent"
    );
}
