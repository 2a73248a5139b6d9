//! Outages of Data Storage: audit events arrive later, complete, and once.

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
use wfe_platform::data_storage::Fault;
use wfe_tests::fakes::node::{Ending, FakeNode};
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

/// The server's deadline of 30 s, the client's margin, and the delivery.
const SETTLED_WITHIN: Duration = Duration::from_mins(2);
/// Deadline of requests to Data Storage where a test waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// When a batch is committed whose sender was killed; before the next one asks.
const COMMITTED_LATE: Duration = Duration::from_secs(3);
const ENDS_WITHIN: Duration = Duration::from_mins(2);

fn workflow() -> Script {
    Script::of(
        "audited",
        format!("r.io/audited@sha256:{}", "6".repeat(64)),
        "",
    )
}

/// Installs a system that audits to Data Storage, without starting its controller. Executions whose
/// name starts with `fail` end in failure.
async fn install(prefix: &str) -> (System, FakeNode) {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let system = System::install(&cluster, prefix, &[&workflow()]).await;
    let mut system = system.expect("installed");
    system.start_data_storage().await.expect("started");
    let fake_node = FakeNode::start(&system.execution, |job| {
        let name = job.labels().get("kubernaut.ai/workflow-execution");
        if name.is_some_and(|name| name.starts_with("fail")) {
            Ending::Failure
        } else {
            Ending::Success
        }
    });
    (system, fake_node)
}

/// The controller waits for less time before it asks for events of an earlier process.
fn set_short_timeout(system: &mut System) {
    let timeout = format!("--data-storage-timeout={}s", TIMEOUT.as_secs());
    system.controller_flags.push(timeout);
}

async fn create(system: &System, name: &str) -> Result<WorkflowExecution> {
    system.create(&workflow(), name, &json!({})).await
}

/// Waits until the phase is final, whether or not the events are delivered.
async fn wait_until_final(system: &System, name: &str) -> Result<()> {
    let is_final = |wfe: &WorkflowExecution| wfe.phase().is_some_and(Phase::is_final);
    let api = system.namespace.api();
    wait::until(&api, name, "the phase is final", ENDS_WITHIN, is_final).await?;
    Ok(())
}

/// Checks that Data Storage has each expected event once, and no others.
fn check_events(system: &System, names: &[String]) -> Result<()> {
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
    ensure!(trails.is_empty(), "unexpected events: {trails:?}");
    Ok(())
}

/// Kills the controller with SIGKILL and starts another one.
async fn crash(system: &System, controller: Program) -> Program {
    controller.kill().await.expect("killed");
    system.launch_controller().await.expect("started again")
}

async fn run_hundred_executions_during_outage(prefix: &str, kills: usize) {
    let (mut system, _fake_node) = install(prefix).await;
    set_short_timeout(&mut system);
    let storage = system.storage().expect("started");
    storage.set_fault(Fault::Answer(503));
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
            // Kills the controller while the second half of the executions runs.
            wait_until_final(&system, &some[some.len() / 2])
                .await
                .expect("ended");
            controller = crash(&system, controller).await;
        }
    }
    for name in &names {
        wait_until_final(&system, name).await.expect("ended");
    }
    system
        .until(&names[0], "AuditRecorded", "False/AuditSinkUnavailable")
        .await
        .expect("outage reported");
    assert_eq!(storage.events().expect("read").len(), 0);
    storage.clear_fault();
    if kills > 0 {
        // Kills the controller during delivery, too: the batch on its way is committed after the
        // next controller has started.
        storage.set_fault_times(Fault::CommitLate(COMMITTED_LATE), 1);
        let (before, _) = storage.requests();
        let sent = async || Ok(storage.requests().0 > before);
        until_effective("a batch", sent).await.expect("sent");
        controller = crash(&system, controller).await;
    }
    for name in &names {
        system.ended(name).await.expect("audited");
    }
    check_events(&system, &names).expect("complete");
    let metrics = system.controller_metrics().await.expect("metrics");
    assert_eq!(metrics.contains("result=\"found\""), kills > 0, "{metrics}");
    drop(controller);
}

/// BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn events_during_sink_outage_are_delivered_once() {
    run_hundred_executions_during_outage("outage", 0).await;
}

/// BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn events_during_sink_outage_and_controller_kills_are_delivered_once() {
    run_hundred_executions_during_outage("killed", 3).await;
}

/// BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn sink_fault_loses_no_event_and_only_late_commit_duplicates() {
    let second = Duration::from_secs(1);
    let faults = [
        (Fault::Slow(2 * second), false),
        // Longer than the client timeout: nothing is stored.
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
    join_all(faults.map(async |(fault, duplicates)| {
        let (system, _fake_node) = install("fault").await;
        let storage = system.storage().expect("started");
        let controller = system.launch_controller().await.expect("started");
        create(&system, "good-before").await.expect("stored");
        system.ended("good-before").await.expect("audited");
        if fault == Fault::DatabaseDown {
            storage.set_fault(fault);
        } else {
            storage.set_fault_times(fault, 1);
        }
        create(&system, "good-in").await.expect("stored");
        if fault == Fault::DatabaseDown {
            let waits = system.until("good-in", "AuditRecorded", "False/AuditSinkUnavailable");
            waits.await.expect("outage reported");
            storage.clear_fault();
        }
        let audited = |wfe: &WorkflowExecution| condition(wfe, "AuditRecorded").starts_with("True");
        let api = system.namespace.api();
        let done = wait::until(&api, "good-in", "audited", SETTLED_WITHIN, audited).await;
        done.unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
        create(&system, "good-after").await.expect("stored");
        system.ended("good-after").await.expect("audited");
        let names = ["good-before", "good-in", "good-after"].map(str::to_owned);
        if duplicates {
            // The late commit adds a second copy of the batch.
            let copies = || anyhow::Ok(storage.trails()?.remove("good-in").unwrap_or_default());
            until_effective("the late commit", async || anyhow::Ok(copies()?.len() > 4))
                .await
                .expect("stored twice");
            let mut trail = copies().expect("read");
            trail.dedup();
            assert_eq!(trail.len(), 4, "{fault:?}: {trail:?}");
            let mut trails = storage.trails().expect("read");
            trails.remove("good-in");
            assert!(trails.values().all(|it| it.len() == 4), "{trails:?}");
        } else {
            check_events(&system, &names).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        }
        drop(controller);
    }))
    .await;
}

/// BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn expired_token_is_renewed_and_all_events_arrive() {
    let (mut system, _fake_node) = install("token").await;
    let token = system.data_storage_token();
    let flag = format!("--data-storage-token-file={}", token.display());
    system.controller_flags.push(flag);
    std::fs::write(system.data_storage_token(), "an expired token").expect("written");
    let controller = system.launch_controller().await.expect("started");
    create(&system, "good-1").await.expect("stored");
    let waits = system
        .until("good-1", "AuditRecorded", "False/AuditSinkUnavailable")
        .await;
    let waits = waits.expect("outage reported");
    let text = message(&waits, "AuditRecorded");
    assert!(text.contains("401 Unauthorized"), "{text}");
    system.renew_data_storage_token().await.expect("renewed");
    system.ended("good-1").await.expect("audited");
    system.allow_data_storage(false).await.expect("revoked");
    create(&system, "good-2").await.expect("stored");
    system
        .until("good-2", "AuditRecorded", "False/AuditSinkUnavailable")
        .await
        .expect("outage reported");
    let says = "403 Forbidden: Insufficient RBAC permissions: system:serviceaccount:";
    let soon = Duration::from_secs(30);
    controller
        .wait_for_log(says, 1, soon)
        .await
        .expect("logged");
    system.allow_data_storage(true).await.expect("granted");
    system.ended("good-2").await.expect("audited");
    let names = ["good-1", "good-2"].map(str::to_owned);
    check_events(&system, &names).expect("complete");
    drop(controller);
}

/// BR-AUDIT-005: the database always fails on one event, another event is too old for the sink.
#[tokio::test(flavor = "multi_thread")]
async fn event_rejected_by_sink_is_set_aside_without_blocking_others() {
    let (system, _fake_node) = install("poison").await;
    let storage = system.storage().expect("started");
    storage.fail_on("good-poison");
    let account = system.controller_client().await.expect("a client");
    let api: Api<WorkflowExecution> = Api::namespaced(account, system.namespace.name());
    let mut old = create(&system, "good-old").await.expect("stored");
    let last_week = Timestamp::now() - SignedDuration::from_hours(8 * 24);
    old.status = Some(serde_json::from_value(succeeded(&rfc3339(last_week))).expect("a status"));
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
    // The controller blames the event, not the sink, when the sink accepts later events.
    for number in names.len()..30 {
        let poison = api.get("good-poison").await.expect("found");
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
        let text = message(&aside.expect("set aside"), "AuditRecorded");
        assert!(
            text.contains("workflow.completed") && text.contains(why),
            "{text}"
        );
        system.delete(name).await.expect("deleted");
        system.gone(name).await.expect("gone without delivery");
    }
    check_events(&system, &names).expect("all other events are stored");
    let metrics = system.controller_metrics().await.expect("metrics");
    let rejected = "{event_type=\"workflowexecution.workflow.completed\",result=\"rejected\"} 2";
    assert!(metrics.contains(rejected), "{metrics}");
    drop(controller);
}

/// BR-AUDIT-005: a client certificate may carry any name, also one that the database cannot store.
#[tokio::test(flavor = "multi_thread")]
async fn clearance_by_overlong_user_name_is_truncated_and_delivered() {
    let (mut system, _fake_node) = install("name").await;
    set_short_timeout(&mut system);
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
        "clearedBy": name, "clearedAt": rfc3339(Timestamp::now()), "clearReason": "looked at the target",
        "clearMethod": "KubernetesAdmissionWebhook",
    } } });
    let api: Api<WorkflowExecution> = Api::namespaced(user, system.namespace.name());
    api.patch_status("fail-1", &PatchParams::default(), &Patch::Merge(clearance))
        .await
        .expect("cleared");
    system
        .until("fail-1", "ClearanceRecorded", "True/AuditSucceeded")
        .await
        .expect("clearance audited");
    create(&system, "good-1").await.expect("stored");
    system.ended("good-1").await.expect("audited");
    let events = system.storage().expect("started").events().expect("read");
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

/// BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn deletion_waits_for_sink_unless_audit_is_abandoned() {
    let (system, _fake_node) = install("waits").await;
    let storage = system.storage().expect("started");
    let controller = system.launch_controller().await.expect("started");
    storage.stop().await;
    for name in ["good-kept", "good-given-up"] {
        create(&system, name).await.expect("stored");
        wait_until_final(&system, name).await.expect("ended");
        system.delete(name).await.expect("deleted");
        let waits = system
            .until(name, "AuditRecorded", "False/AuditSinkUnavailable")
            .await;
        let waits = waits.expect("outage reported");
        assert!(waits.metadata.deletion_timestamp.is_some(), "{name}");
    }
    let annotation = json!({ "metadata": { "annotations": { "kubernaut.ai/abandon-audit": "recorded elsewhere" } } });
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
    let abandoned = events
        .iter()
        .filter(|it| it.reason.as_deref() == Some("AuditAbandoned"));
    let abandoned: Vec<_> = abandoned
        .filter_map(|it| it.regarding.as_ref()?.name.clone())
        .collect();
    assert_eq!(abandoned, ["good-given-up"]);
    let metrics = system.controller_metrics().await.expect("metrics");
    let counter = "workflowexecution_audit_events_total{event_type=\"workflowexecution.workflow.completed\",result=\"abandoned\"} 1";
    assert!(metrics.contains(counter), "{metrics}");
    assert!(
        metrics.contains("workflowexecution_audit_pending 4"),
        "{metrics}"
    );
    let kept = api.get("good-kept").await.expect("not deleted");
    assert!(
        kept.finalizers()
            .iter()
            .any(|it| it.contains("kubernaut.ai"))
    );
    storage.resume().await.expect("resumed");
    system.gone("good-kept").await.expect("gone");
    check_events(&system, &["good-kept".to_owned()]).expect("complete");
    drop(controller);
}

/// Executions with 5,000 events together.
const EXECUTIONS: usize = 1250;
/// Tolerated growth: allocators do not return all freed memory to the kernel.
const SLACK_KIB: u64 = 3 << 10;

fn memory(controller: &Program, key: &str) -> u64 {
    memory_kib(controller.pid().expect("running"), key).expect("known")
}

/// BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn pending_events_do_not_grow_controller_memory() {
    let (system, _fake_node) = install("memory").await;
    let storage = system.storage().expect("started");
    let account = system.controller_client().await.expect("a client");
    let api: Api<WorkflowExecution> = Api::namespaced(account, system.namespace.name());
    let ended = stream::iter(0..EXECUTIONS).map(async |number| {
        let created = create(&system, &format!("good-{number}")).await?;
        let mut ended = created.clone();
        ended.status = Some(serde_json::from_value(succeeded(&rfc3339(
            Timestamp::now(),
        )))?);
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
    let reported =
        |wfe: &WorkflowExecution| condition(wfe, "AuditRecorded") == "False/AuditSinkUnavailable";
    for name in &names {
        let what = "the outage is reported";
        wait::until(&system.namespace.api(), name, what, ENDS_WITHIN, reported)
            .await
            .expect("outage reported");
    }
    let metrics = system.controller_metrics().await.expect("metrics");
    assert!(
        metrics.contains("workflowexecution_audit_pending 5000"),
        "{metrics}"
    );
    let first = memory(&controller, "VmRSS:");
    let (failed, tries) = ("audit delivery failed, retrying", 8);
    let before = controller.log_count(failed).expect("a log");
    controller
        .wait_for_log(failed, before + tries, Duration::from_mins(2))
        .await
        .expect("retried");
    let later = memory(&controller, "VmRSS:");
    storage.resume().await.expect("resumed");
    for name in &names {
        system.ended(name).await.expect("audited");
    }
    check_events(&system, &names).expect("complete");
    let delivered = memory(&controller, "VmRSS:");
    println!(
        "5,000 events: {first} KiB while pending, {later} KiB after {tries} retries, {delivered} KiB after delivery"
    );
    assert!(later <= first + SLACK_KIB, "{first} KiB, then {later} KiB");
    assert!(
        delivered <= first + 2 * SLACK_KIB,
        "{first} KiB, then {delivered} KiB"
    );
}

fn rfc3339(moment: Timestamp) -> String {
    let second = Timestamp::from_second(moment.as_second());
    second.expect("a second").to_string()
}

/// Status of a succeeded execution, as the controller writes it.
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
