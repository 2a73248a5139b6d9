//! What becomes of the audit trail while Data Storage is in trouble: it comes late, whole, once.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::fakes::data_storage::Fault;
use wfe_tests::fakes::node::{Ending, StandIn};
use wfe_tests::system::{
    Program, Script, System, condition, install_crd, memory_kib, message, until_effective,
};
use wfe_tests::{Cluster, wait};

const SUCCEEDED: [&str; 4] = [
    "selection.completed",
    "execution.started",
    "workflow.started",
    "workflow.completed",
];
const FAILED: [&str; 4] = [
    "selection.completed",
    "execution.started",
    "workflow.started",
    "workflow.failed",
];

/// The server's 30 s, what the client waits longer, and the work itself.
const SETTLED_WITHIN: Duration = Duration::from_mins(2);
const ENDS_WITHIN: Duration = Duration::from_mins(2);

fn workflow() -> Script {
    Script::of(
        "audited",
        format!("r.io/audited@sha256:{}", "6".repeat(64)),
        "",
    )
}

/// A system whose audit trail goes to Data Storage; its controller does not run yet. Workflows that
/// are for a failure end so.
async fn install(prefix: &str) -> (System, StandIn) {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let system = System::install(&cluster, prefix, &[&workflow()]).await;
    let mut system = system.expect("installed");
    system.put_data_storage_beside().await.expect("beside");
    let stand_in = StandIn::start(&system.execution, |job| {
        let name = job.labels().get("kubernaut.ai/workflow-execution");
        if name.is_some_and(|name| name.starts_with("fail")) {
            Ending::Failure
        } else {
            Ending::Success
        }
    });
    (system, stand_in)
}

async fn create(system: &System, name: &str) -> Result<WorkflowExecution> {
    system.create(&workflow(), name, &json!({})).await
}

/// Until the workflow has come to its end, audited or not.
async fn over(system: &System, name: &str) -> Result<()> {
    let over = |wfe: &WorkflowExecution| wfe.phase().is_some_and(Phase::is_final);
    let api = system.namespace.api();
    wait::until(&api, name, "it has ended", ENDS_WITHIN, over).await?;
    Ok(())
}

/// What Data Storage has, is what happened: each event once.
fn each_event_once(system: &System, names: &[String]) -> Result<()> {
    let mut trails: HashMap<_, _> = system.storage()?.trails()?;
    for name in names {
        let last = if name.starts_with("fail") {
            FAILED
        } else {
            SUCCEEDED
        };
        let expected: Vec<_> = last
            .iter()
            .map(|it| format!("workflowexecution.{it}"))
            .collect();
        let trail = trails.remove(name).unwrap_or_default();
        ensure!(trail == expected, "{name}: {trail:?}");
    }
    ensure!(trails.is_empty(), "of nobody: {trails:?}");
    Ok(())
}

/// SIGKILL, and a new one.
async fn crash(system: &System, controller: Program) -> Program {
    controller.kill().await.expect("killed");
    system.launch_controller().await.expect("started again")
}

async fn a_hundred_while_the_sink_refuses(prefix: &str, kills: usize) {
    let (system, _stand_in) = install(prefix).await;
    let storage = system.storage().expect("beside");
    storage.break_with(Fault::Answer(503));
    let mut controller = system.launch_controller().await.expect("started");
    let names: Vec<_> = (0..100)
        .map(|number| format!("{}-{number}", if number % 5 == 0 { "fail" } else { "good" }))
        .collect();
    let every = names.len().div_ceil(kills + 1);
    for (round, some) in names.chunks(every).enumerate() {
        join_all(
            some.iter()
                .map(async |name| create(&system, name).await.expect("stored")),
        )
        .await;
        if round < kills {
            // In the middle of it: the last of them has not ended yet.
            over(&system, &some[some.len() / 2]).await.expect("ended");
            controller = crash(&system, controller).await;
        }
    }
    for name in &names {
        over(&system, name).await.expect("ended");
    }
    system
        .until(&names[0], "AuditRecorded", "False/AuditSinkUnavailable")
        .await
        .expect("it says why it waits");
    assert_eq!(storage.events().expect("read").len(), 0);
    storage.mend();
    if kills > 0 {
        // In the middle of the delivery, too: some are there, and nobody knows which.
        let some = async || Ok(!storage.events()?.is_empty());
        until_effective("the first batch", some)
            .await
            .expect("delivered");
        controller = crash(&system, controller).await;
    }
    for name in &names {
        system.ended(name).await.expect("audited");
    }
    each_event_once(&system, &names).expect("all are there");
    let metrics = system.controller_metrics().await.expect("metrics");
    assert_eq!(metrics.contains("result=\"found\""), kills > 0, "{metrics}");
    drop(controller);
}

#[tokio::test(flavor = "multi_thread")]
async fn br_audit_005_what_ended_while_the_sink_refused_is_told_once() {
    a_hundred_while_the_sink_refuses("outage", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn br_audit_005_what_ended_while_the_sink_refused_and_the_controller_was_killed_is_told_once()
{
    a_hundred_while_the_sink_refuses("killed", 3).await;
}

/// Each fault strikes once; what it leaves, and how many copies there may be.
#[tokio::test(flavor = "multi_thread")]
async fn br_audit_005_whatever_goes_wrong_nothing_is_lost_and_only_a_late_commit_comes_twice() {
    let second = Duration::from_secs(1);
    let faults = [
        (Fault::Slow(2 * second), false),
        // Longer than the client waits: nothing of it is stored.
        (Fault::Slow(60 * second), false),
        (Fault::Answer(401), false),
        (Fault::Answer(403), false),
        (Fault::Answer(429), false),
        (Fault::Answer(500), false),
        (Fault::Answer(502), false),
        (Fault::DatabaseDown, false),
        (Fault::LoseAnswer, false),
        (Fault::CommitLate(3 * second), false),
        (Fault::CommitLate(45 * second), true),
    ];
    join_all(faults.map(async |(fault, twice)| {
        let (system, _stand_in) = install("fault").await;
        let storage = system.storage().expect("beside");
        let controller = system.launch_controller().await.expect("started");
        create(&system, "good-before").await.expect("stored");
        system.ended("good-before").await.expect("audited");
        if fault == Fault::DatabaseDown {
            storage.break_with(fault);
        } else {
            storage.break_times(fault, 1);
        }
        create(&system, "good-in").await.expect("stored");
        if fault == Fault::DatabaseDown {
            let waits = system.until("good-in", "AuditRecorded", "False/AuditSinkUnavailable");
            waits.await.expect("an outage");
            storage.mend();
        }
        let audited = |wfe: &WorkflowExecution| condition(wfe, "AuditRecorded").starts_with("True");
        let api = system.namespace.api();
        let done = wait::until(&api, "good-in", "it is audited", SETTLED_WITHIN, audited).await;
        done.unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
        create(&system, "good-after").await.expect("stored");
        system.ended("good-after").await.expect("audited");
        let names = ["good-before", "good-in", "good-after"].map(str::to_owned);
        if twice {
            // What was committed late comes after all.
            let copies = || anyhow::Ok(storage.trails()?.remove("good-in").unwrap_or_default());
            until_effective("the late commit", async || anyhow::Ok(copies()?.len() > 4))
                .await
                .expect("it comes twice");
            let mut trail = copies().expect("read");
            trail.dedup();
            assert_eq!(trail.len(), 4, "{fault:?}: {trail:?}");
            let mut trails = storage.trails().expect("read");
            trails.remove("good-in");
            assert!(trails.values().all(|it| it.len() == 4), "{trails:?}");
        } else {
            each_event_once(&system, &names).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        }
        drop(controller);
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn br_audit_005_a_token_that_has_run_out_is_replaced_and_everything_arrives() {
    let (system, _stand_in) = install("token").await;
    std::fs::write(system.data_storage_token(), "of another time").expect("written");
    let controller = system.launch_controller().await.expect("started");
    create(&system, "good-1").await.expect("stored");
    let waits = system
        .until("good-1", "AuditRecorded", "False/AuditSinkUnavailable")
        .await;
    let waits = waits.expect("it waits");
    let said = message(&waits, "AuditRecorded");
    assert!(said.contains("401 Unauthorized"), "{said}");
    system.renew_data_storage_token().await.expect("renewed");
    system.ended("good-1").await.expect("audited");
    system.allow_data_storage(false).await.expect("right taken");
    create(&system, "good-2").await.expect("stored");
    system
        .until("good-2", "AuditRecorded", "False/AuditSinkUnavailable")
        .await
        .expect("it waits");
    let says = "403 Forbidden: Insufficient RBAC permissions: system:serviceaccount:";
    let soon = Duration::from_secs(30);
    controller
        .logged(says, 1, soon)
        .await
        .expect("what is missing");
    system.allow_data_storage(true).await.expect("right given");
    system.ended("good-2").await.expect("audited");
    let names = ["good-1", "good-2"].map(str::to_owned);
    each_event_once(&system, &names).expect("there");
    drop(controller);
}

/// The database fails on one WorkflowExecution, for ever, and another one happened too long ago.
#[tokio::test(flavor = "multi_thread")]
async fn br_audit_005_what_the_sink_never_takes_is_set_aside_alone_and_holds_nothing_up() {
    let (system, _stand_in) = install("poison").await;
    let storage = system.storage().expect("beside");
    storage.poison("good-poison");
    let account = system.controller_client().await.expect("a client");
    let api: Api<WorkflowExecution> = Api::namespaced(account, system.namespace.name());
    let mut old = create(&system, "good-old").await.expect("stored");
    let last_week = Timestamp::now() - SignedDuration::from_hours(8 * 24);
    old.status = Some(serde_json::from_value(succeeded(&second(last_week))).expect("a status"));
    api.replace_status("good-old", &PostParams::default(), &old)
        .await
        .expect("stored");
    let controller = system.launch_controller().await.expect("started");
    let mut names: Vec<_> = (0..10).map(|number| format!("good-{number}")).collect();
    create(&system, "good-poison").await.expect("stored");
    join_all(
        names
            .iter()
            .map(async |name| create(&system, name).await.expect("stored")),
    )
    .await;
    for name in &names {
        system.ended(name).await.expect("audited");
    }
    // That it is the event is known when the sink takes others after it.
    for number in names.len()..30 {
        let poison = api.get("good-poison").await.expect("there");
        if condition(&poison, "AuditRecorded").ends_with("AuditEventRejected") {
            break;
        }
        let name = format!("good-{number}");
        create(&system, &name).await.expect("stored");
        system.ended(&name).await.expect("audited");
        names.push(name);
    }
    for (name, why) in [
        ("good-old", "invalid timestamp"),
        ("good-poison", "500 Internal Server Error"),
    ] {
        let aside = system
            .until(name, "AuditRecorded", "False/AuditEventRejected")
            .await;
        let said = message(&aside.expect("set aside"), "AuditRecorded");
        assert!(
            said.contains("workflow.completed") && said.contains(why),
            "{said}"
        );
        system.delete(name).await.expect("deleted");
        system.gone(name).await.expect("it waits for nothing");
    }
    each_event_once(&system, &names).expect("all others are there");
    let metrics = system.controller_metrics().await.expect("metrics");
    let rejected = "{event_type=\"workflowexecution.workflow.completed\",result=\"rejected\"} 2";
    assert!(metrics.contains(rejected), "{metrics}");
    drop(controller);
}

/// A certificate may say any name: the database would fail on this one for ever.
#[tokio::test(flavor = "multi_thread")]
async fn br_audit_005_a_clearing_by_a_name_that_no_column_holds_stops_nothing() {
    let (system, _stand_in) = install("name").await;
    let controller = system.launch_controller().await.expect("started");
    create(&system, "fail-1").await.expect("stored");
    system.ended("fail-1").await.expect("audited");
    let name = format!("jane\0{}", "x".repeat(300));
    let user = system
        .cluster
        .user(&name, Some("system:masters"))
        .await
        .expect("a user");
    let clearance = json!({ "status": { "blockClearance": {
        "clearedBy": name, "clearedAt": second(Timestamp::now()), "clearReason": "looked at the target",
        "clearMethod": "KubernetesAdmissionWebhook",
    } } });
    let api: Api<WorkflowExecution> = Api::namespaced(user, system.namespace.name());
    api.patch_status("fail-1", &PatchParams::default(), &Patch::Merge(clearance))
        .await
        .expect("cleared");
    system
        .until("fail-1", "ClearanceRecorded", "True/AuditSucceeded")
        .await
        .expect("told");
    create(&system, "good-1").await.expect("stored");
    system.ended("good-1").await.expect("audited");
    let events = system.storage().expect("beside").events().expect("read");
    let cleared = events
        .iter()
        .filter(|it| it.event_type.ends_with("block.cleared"));
    let actors: Vec<_> = cleared.map(|it| it.actor_id.as_str()).collect();
    assert_eq!(actors.len(), 1);
    assert!(
        actors[0].starts_with("janexxx") && actors[0].chars().count() == 255,
        "{actors:?}"
    );
    drop(controller);
}

#[tokio::test(flavor = "multi_thread")]
async fn br_audit_005_a_deletion_waits_for_the_sink_unless_somebody_says_otherwise() {
    let (system, _stand_in) = install("waits").await;
    let storage = system.storage().expect("beside");
    let controller = system.launch_controller().await.expect("started");
    storage.stop().await;
    for name in ["good-kept", "good-given-up"] {
        create(&system, name).await.expect("stored");
        over(&system, name).await.expect("ended");
        system.delete(name).await.expect("deleted");
        let waits = system
            .until(name, "AuditRecorded", "False/AuditSinkUnavailable")
            .await;
        let waits = waits.expect("it says why");
        assert!(waits.metadata.deletion_timestamp.is_some(), "{name}");
    }
    let annotation = json!({ "metadata": { "annotations": { "kubernaut.ai/abandon-audit": "the trail is in the other one" } } });
    let api = system.namespace.api::<WorkflowExecution>();
    api.patch(
        "good-given-up",
        &PatchParams::default(),
        &Patch::Merge(annotation),
    )
    .await
    .expect("allowed");
    system.gone("good-given-up").await.expect("gone");
    let events: Api<Event> = system.namespace.api();
    let events = events.list(&ListParams::default()).await.expect("listed");
    let told = events
        .iter()
        .filter(|it| it.reason.as_deref() == Some("AuditAbandoned"));
    let told: Vec<_> = told
        .filter_map(|it| it.regarding.as_ref()?.name.clone())
        .collect();
    assert_eq!(told, ["good-given-up"]);
    let metrics = system.controller_metrics().await.expect("metrics");
    let abandoned = "workflowexecution_audit_events_total{event_type=\"workflowexecution.workflow.completed\",result=\"abandoned\"} 1";
    assert!(metrics.contains(abandoned), "{metrics}");
    assert!(
        metrics.contains("workflowexecution_audit_pending 4"),
        "{metrics}"
    );
    let kept = api.get("good-kept").await.expect("it waits");
    assert!(
        kept.finalizers()
            .iter()
            .any(|it| it.contains("kubernaut.ai"))
    );
    storage.resume().await.expect("up again");
    system.gone("good-kept").await.expect("gone");
    each_event_once(&system, &["good-kept".to_owned()]).expect("whole");
    drop(controller);
}

/// As many as have 5,000 events.
const MANY: usize = 1250;
/// What may be kept of what has been read and dropped: allocators do not give back all.
const SLACK_KIB: u64 = 3 << 10;

fn memory(controller: &Program, key: &str) -> u64 {
    memory_kib(controller.pid().expect("it runs"), key).expect("known")
}

#[tokio::test(flavor = "multi_thread")]
async fn br_audit_005_memory_does_not_grow_with_what_waits() {
    let (system, _stand_in) = install("memory").await;
    let storage = system.storage().expect("beside");
    let account = system.controller_client().await.expect("a client");
    let api: Api<WorkflowExecution> = Api::namespaced(account, system.namespace.name());
    let ended = stream::iter(0..MANY).map(async |number| {
        let created = create(&system, &format!("good-{number}")).await?;
        let mut ended = created.clone();
        ended.status = Some(serde_json::from_value(succeeded(
            &second(Timestamp::now()),
        ))?);
        let name = created.name_any();
        api.replace_status(&name, &PostParams::default(), &ended)
            .await?;
        anyhow::Ok(name)
    });
    let names: Vec<_> = ended
        .buffer_unordered(16)
        .try_collect()
        .await
        .expect("stored");
    storage.stop().await;
    let controller = system.launch_controller().await.expect("started");
    let told =
        |wfe: &WorkflowExecution| condition(wfe, "AuditRecorded") == "False/AuditSinkUnavailable";
    for name in &names {
        let what = "it says that it waits";
        wait::until(&system.namespace.api(), name, what, ENDS_WITHIN, told)
            .await
            .expect("it waits");
    }
    let metrics = system.controller_metrics().await.expect("metrics");
    assert!(
        metrics.contains("workflowexecution_audit_pending 5000"),
        "{metrics}"
    );
    let first = memory(&controller, "VmRSS:");
    let (failed, tries) = ("the audit sink did not take", 8);
    let before = controller.logs(failed).expect("a log");
    controller
        .logged(failed, before + tries, Duration::from_mins(2))
        .await
        .expect("it tries again and again");
    let later = memory(&controller, "VmRSS:");
    storage.resume().await.expect("up again");
    for name in &names {
        system.ended(name).await.expect("audited");
    }
    each_event_once(&system, &names).expect("all are there");
    let delivered = memory(&controller, "VmRSS:");
    println!(
        "5,000 events: {first} KiB while they wait, {later} KiB after {tries} tries, {delivered} KiB when they are delivered"
    );
    assert!(later <= first + SLACK_KIB, "{first} KiB, then {later} KiB");
    assert!(
        delivered <= first + 2 * SLACK_KIB,
        "{first} KiB, then {delivered} KiB"
    );
}

fn second(moment: Timestamp) -> String {
    let second = Timestamp::from_second(moment.as_second());
    second.expect("a second").to_string()
}

/// A status as the controller stores it.
fn succeeded(at: &str) -> Value {
    let conditions = [
        "WorkflowResolved",
        "ExecutionCreated",
        "ExecutionRunning",
        "ExecutionComplete",
    ];
    let conditions = conditions.map(|it| json!({ "type": it, "status": "True", "reason": "Done", "message": "", "lastTransitionTime": at }));
    let job = json!({ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "namespace": "n", "uid": "j" });
    json!({ "phase": "Succeeded", "startTime": at, "completionTime": at, "duration": "1s", "executionRef": job, "conditions": conditions })
}
