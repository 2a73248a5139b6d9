//! A controller that is newer than the CRD: what it stores would be lost in part.

use std::time::Duration;

use kube::api::PostParams;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::condition;
use wfe_tests::{system, wait};

use crate::scenario::{Stage, Trail};

const SOON: Duration = Duration::from_secs(30);
/// It is tried every 30 s whether a newer one has come.
const TRIED_AGAIN: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn br_we_014_with_an_older_crd_it_is_not_ready_and_goes_on_when_the_newer_one_comes() {
    let stage = Stage::set("older", Trail::File).await;
    // Waits for nobody: it is only there to try the CRD on.
    let mut probe = stage.request("probe");
    probe.spec.target_resource = "prod/Gadget/probe".to_owned();
    let api = stage.system.namespace.api::<WorkflowExecution>();
    api.create(&PostParams::default(), &probe)
        .await
        .expect("stored");
    stage.system.ended("probe").await.expect("ended");
    stage
        .system
        .serve_older_crd("startTime", "probe")
        .await
        .expect("served");

    let request = stage.request("late");
    api.create(&PostParams::default(), &request)
        .await
        .expect("stored");
    stage.controller_says(false, SOON).await.expect("not ready");
    stage.proxy().arm(None);
    let halted = api.get("late").await.expect("there");
    assert_eq!(
        condition(&halted, "AuditRecorded"),
        "absent",
        "nothing more is written"
    );

    system::install_crd(&stage.system.cluster)
        .await
        .expect("the newer one");
    stage
        .controller_says(true, TRIED_AGAIN)
        .await
        .expect("ready again");
    let succeeded = |wfe: &WorkflowExecution| condition(wfe, "Ready") == "True/Ready";
    wait::until(&api, "late", "it has succeeded", SOON, succeeded)
        .await
        .expect("it goes on");
}
