//! A controller that is newer than the CRD: the API server would prune fields of its status.

use std::time::Duration;

use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::json;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{System, condition};
use wfe_tests::{system, wait};

use crate::scenario::{AuditTarget, Setup};

const SOON: Duration = Duration::from_secs(30);
/// The controller checks the CRD every 30 s.
const CHECKED_WITHIN: Duration = Duration::from_mins(1);

/// BR-WE-014
#[tokio::test(flavor = "multi_thread")]
async fn older_crd_makes_controller_unready_until_newer_crd_is_served() {
    let setup = Setup::start("older", AuditTarget::File).await;
    // Fails at once: the execution only serves to probe the CRD.
    let mut probe = setup.request("probe");
    probe.spec.target_resource = "prod/Gadget/probe".to_owned();
    let api = setup.system.namespace.api::<WorkflowExecution>();
    api.create(&PostParams::default(), &probe)
        .await
        .expect("stored");
    setup.system.ended("probe").await.expect("ended");
    setup
        .system
        .serve_older_crd("startTime", "probe")
        .await
        .expect("served");

    let request = setup.request("late");
    api.create(&PostParams::default(), &request)
        .await
        .expect("stored");
    setup
        .wait_for_controller_readiness(false, SOON)
        .await
        .expect("not ready");
    let report = setup.controller_readiness().await.expect("asked");
    let says = "crd-has-rules (apply the CRD of this version; missing: .spec: ";
    assert!(report.contains(says), "{report}");
    setup.proxy().arm(None);
    // What was checked at the create is what runs, also without the rule of the CRD.
    let other =
        Patch::Merge(json!({ "spec": { "targetResource": "kube-system/Deployment/coredns" } }));
    let refused = api.patch("late", &PatchParams::default(), &other).await;
    let text = refused.expect_err("refused").to_string();
    assert!(
        text.contains("ValidatingAdmissionPolicy 'workflowexecution-spec"),
        "{text}"
    );
    let halted = api.get("late").await.expect("found");
    assert_eq!(
        condition(&halted, "AuditRecorded"),
        "absent",
        "the controller writes no status"
    );

    system::install_crd(&setup.system.cluster)
        .await
        .expect("newer CRD");
    setup
        .wait_for_controller_readiness(true, CHECKED_WITHIN)
        .await
        .expect("ready again");
    let succeeded = |wfe: &WorkflowExecution| condition(wfe, "Ready") == "True/Ready";
    wait::until(&api, "late", "the execution has succeeded", SOON, succeeded)
        .await
        .expect("succeeded");
}

/// BR-WE-014: the field's older CRD has the same name; its executions have no engine.
#[tokio::test(flavor = "multi_thread")]
async fn controller_does_not_start_beside_living_executions_of_the_older_crd() {
    let cluster = system::cluster().await;
    let mut system = System::install(&cluster, "shape", &[])
        .await
        .expect("installed");
    // The rules of this version would refuse them.
    system.serve_crd_without_rules().await.expect("served");
    let older = |name: &str| {
        let older = json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution", "metadata": { "name": name },
            "spec": { "targetResource": "prod/Deployment/web", "workflowRef": { "workflowId": "w", "version": "1" } },
        });
        serde_json::from_value::<DynamicObject>(older).expect("an object")
    };
    let kind = ApiResource::erase::<WorkflowExecution>(&());
    let namespace = system.namespace.name();
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.admin(), namespace, &kind);
    let controller = system.controller_client().await.expect("the controller");
    let controller: Api<DynamicObject> = Api::namespaced_with(controller, namespace, &kind);
    let create = PostParams::default();
    for (name, phase) in [("runs", "Running"), ("is-over", "Completed")] {
        api.create(&create, &older(name)).await.expect("stored");
        let mut object = api.get(name).await.expect("found");
        object.data["status"] = json!({ "phase": phase });
        let written = controller.replace_status(name, &create, &object);
        written.await.expect("stored");
    }
    system::install_crd(&cluster).await.expect("this version's");
    let refused = system.launch_controller().await.err().expect("refused");
    let says = format!("1 WorkflowExecutions of an older CRD have not ended, as {namespace}/runs");
    assert!(format!("{refused:#}").contains(&says), "{refused:#}");
    api.delete("runs", &DeleteParams::default())
        .await
        .expect("deleted");
    system.start_controller().await.expect("started");
    let metrics = system.controller_metrics().await.expect("metrics");
    assert!(
        metrics.contains("workflowexecution_unreadable"),
        "{metrics}"
    );
}
