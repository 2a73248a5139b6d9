//! Two controllers with leader election: one decides, the other takes over.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use serde_json::json;
use wfe_model::audit::EventType;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::system::{Program, Script, System, condition, install_crd};
use wfe_tests::wait;

/// Of these runs, the leader is killed when this many have started.
const RUNS: usize = 60;
const BEFORE: usize = 15;
const SECONDS_30: Duration = Duration::from_secs(30);

const LEASE: &str = "wfe-controller";
/// Less than the duration of the Lease: it was handed over, it has not expired.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(10);

fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
    Some(holder).filter(|it| !it.is_empty())
}

/// Waits until another process than `before` holds the Lease; returns its identity.
async fn next_leader(system: &System, before: Option<&str>, deadline: Duration) -> String {
    let leases = system.programs.api::<Lease>();
    let other = |lease: &Lease| holder(lease).is_some_and(|it| Some(it) != before);
    let lease = wait::until(&leases, LEASE, "another process leads", deadline, other).await;
    holder(&lease.expect("a leader"))
        .expect("a holder")
        .to_owned()
}

/// A leader and a standby.
async fn pair(system: &System) -> (Program, Program, String) {
    let leader = system.launch_controller_number(0).await.expect("started");
    let first = next_leader(system, None, SECONDS_30).await;
    let standby = system
        .launch_controller_number(1)
        .await
        .expect("ready as standby");
    (leader, standby, first)
}

async fn install(prefix: &str) -> (System, Script, FakeNode) {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let workflow = Script::of("led", format!("r.io/led@sha256:{}", "3".repeat(64)), "");
    let mut system = System::install(&cluster, prefix, &[&workflow])
        .await
        .expect("installed");
    system.elect_leader().await.expect("permitted");
    system.start_data_storage().await.expect("started");
    let flags = ["--cooldown=0s", "--data-storage-timeout=3s"];
    system.controller_flags.extend(flags.map(str::to_owned));
    let node = FakeNode::start(&system.execution, |_| Ending::Success);
    (system, workflow, node)
}

/// Each execution has run once, and its trail is complete.
async fn check(system: &System, node: &FakeNode, names: &[String]) {
    for name in names {
        let wfe = system.ended(name).await.expect("ended");
        assert_eq!(condition(&wfe, "Ready"), "True/Ready", "{name}");
        assert_eq!(node.started_for(&wfe.uid().expect("a uid")), 1, "{name}");
    }
    let expected = [
        EventType::SelectionCompleted,
        EventType::ExecutionStarted,
        EventType::WorkflowStarted,
        EventType::WorkflowCompleted,
    ];
    for name in names {
        assert_eq!(system.trail_of(name).expect("a trail"), expected, "{name}");
    }
}

/// BR-WE-009
#[tokio::test]
async fn leader_that_is_killed_or_ends_is_followed_by_the_standby() {
    let (system, workflow, node) = install("leader").await;
    let (leader, standby, first) = pair(&system).await;
    let names: Vec<_> = (0..RUNS).map(|number| format!("run-{number}")).collect();
    let create = async |names: &[String]| {
        for name in names {
            system
                .create(&workflow, name, &json!({}))
                .await
                .expect("stored");
        }
    };
    create(&names).await;
    system
        .until(&names[BEFORE], "ExecutionCreated", "True/ExecutionCreated")
        .await
        .expect("started");
    leader.kill().await.expect("killed");
    let second = next_leader(&system, Some(&first), SECONDS_30).await;
    check(&system, &node, &names).await;

    let third = system.launch_controller_number(0).await.expect("started");
    let status = standby.terminate(SECONDS_30).await.expect("ended");
    assert!(status.success(), "{status}");
    next_leader(&system, Some(&second), HANDED_OVER_WITHIN).await;
    let last = ["last".to_owned()];
    create(&last).await;
    check(&system, &node, &last).await;
    drop(third);
}

/// BR-WE-009
#[tokio::test]
async fn leader_that_was_stopped_writes_nothing_and_ends_when_it_continues() {
    let (system, workflow, node) = install("stopped").await;
    let (leader, standby, first) = pair(&system).await;
    leader.stop().expect("stopped");
    let names = ["meanwhile".to_owned()];
    system
        .create(&workflow, &names[0], &json!({}))
        .await
        .expect("stored");
    next_leader(&system, Some(&first), SECONDS_30).await;
    check(&system, &node, &names).await;
    leader.resume().expect("continued");
    let log = "does not lead";
    let status = leader.wait_for_exit(SECONDS_30).await.expect("ended");
    assert!(!status.success(), "{status}");
    let text = std::fs::read_to_string(system.controller_log()).expect("a log");
    assert!(text.contains(log), "{text}");
    check(&system, &node, &names).await;
    drop(standby);
}
