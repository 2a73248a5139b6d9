//! A controller that is newer than the CRD: the API server would prune fields of its status.

use std::time::Duration;

use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::condition;
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
