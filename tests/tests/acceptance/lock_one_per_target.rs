//! BR-WE-009: one execution per target at a time.

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use wfe_core::names::{TargetHash, lock_name};
use wfe_model::target::Target;
use wfe_model::workflow_execution::{Phase, SkipReason, WorkflowExecution};
use wfe_tests::system::{Script, System, condition, message};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster};

/// BR-WE-009
#[tokio::test]
async fn second_execution_on_busy_target_is_skipped_or_waits() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "nap", "sleep 12", "");
    let mut system = System::install(&cluster, "lock", &[&workflow])
        .await
        .expect("installed");
    system.controller_flags = vec!["--cooldown=0s".to_owned()];
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let api = system.namespace.api::<WorkflowExecution>();
    let create = async |name: &str, spec| {
        api.create(&PostParams::default(), &workflow.request(name, &spec))
            .await
            .expect("admitted");
    };
    create("first", json!({ "targetResource": "prod/Deployment/web" })).await;
    let running = |wfe: &WorkflowExecution| {
        wfe.status
            .as_ref()
            .is_some_and(|status| status.phase == Some(Phase::Running))
    };
    wait::until(&api, "first", "the phase is Running", SECONDS_30, running)
        .await
        .expect("running");
    // The kind in lower case names the same target.
    create("second", json!({ "targetResource": "prod/deployment/web" })).await;
    create("third", json!({ "targetResource": "prod/Deployment/web", "executionConfig": { "whenBlocked": "Wait" } })).await;

    let waits = |wfe: &WorkflowExecution| condition(wfe, "Blocked") == "True/ResourceBusy";
    wait::until(&api, "third", "the target is locked", SECONDS_30, waits)
        .await
        .expect("waiting");

    let second = system
        .ended("second")
        .await
        .expect("ended")
        .status
        .expect("a status");
    let details = second.skip_details.expect("details");
    assert_eq!(
        (second.phase, details.reason),
        (Some(Phase::Skipped), SkipReason::ResourceBusy)
    );
    let conflicting = details.conflicting_workflow.expect("a conflict");
    assert_eq!(
        (
            conflicting.name.as_str(),
            conflicting.target_resource.as_str()
        ),
        ("first", "prod/Deployment/web"),
        "as the holder spells the target"
    );
    let first = system
        .ended("first")
        .await
        .expect("ended")
        .status
        .expect("a status");
    let third = system.ended("third").await.expect("ended");
    assert_eq!(condition(&third, "Blocked"), "False/Clear");
    let third = third.status.expect("a status");
    assert_eq!(
        (first.phase, third.phase),
        (Some(Phase::Succeeded), Some(Phase::Succeeded))
    );
    assert!(
        third.start_time.expect("started").0 >= first.completion_time.expect("completed").0,
        "executions on one target do not overlap"
    );
}

/// BR-WE-009: a Lease that a user has created has no labels, so that no watch shows it.
#[tokio::test]
async fn lease_made_by_hand_is_freed_when_its_holder_is_gone_or_removed() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "by-hand", "true", "");
    let mut system = System::install(&cluster, "by-hand", &[&workflow])
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    let leases = system.execution.api::<Lease>();
    let lock = |name: &str| {
        let target = Target::parse(&format!("prod/Deployment/{name}")).expect("a target");
        lock_name(&TargetHash::of(&target))
    };
    for (name, holder) in [("ghost", "prod/gone/uid-1"), ("manual", "ops")] {
        let lease: Lease = serde_json::from_value(json!({
            "metadata": { "name": lock(name) }, "spec": { "holderIdentity": holder },
        }))
        .expect("a Lease");
        let created = leases.create(&PostParams::default(), &lease).await;
        created.expect("created");
        let waits = json!({ "executionConfig": { "whenBlocked": "Wait" } });
        system
            .create(&workflow, name, &waits)
            .await
            .expect("stored");
    }
    let blocked = system.until("manual", "Blocked", "True/ResourceBusy").await;
    let text = message(&blocked.expect("waits"), "Blocked");
    let says = "has the holder \"ops\"; remove spec.holderIdentity";
    assert!(text.contains(says), "{text}");
    let ghost = system.ended("ghost").await.expect("ended");
    assert_eq!(condition(&ghost, "Ready"), "True/Ready");
    let free = Patch::Merge(json!({ "spec": { "holderIdentity": null } }));
    leases
        .patch(&lock("manual"), &PatchParams::default(), &free)
        .await
        .expect("freed");
    let manual = system.ended("manual").await.expect("ended");
    assert_eq!(condition(&manual, "Ready"), "True/Ready");
}
