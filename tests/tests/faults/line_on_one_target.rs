//! Many requests wait for one target.

use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::system::{Script, System, condition, install_crd};

const WAITING: usize = 100;
const DEADLINE: Duration = Duration::from_mins(3);

/// BR-WE-009: they run in the order of their creation, and nobody is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn many_waiting_for_one_target_run_in_order() {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let workflow = Script::of("line", format!("r.io/line@sha256:{}", "4".repeat(64)), "");
    let mut system = System::install(&cluster, "line", &[&workflow])
        .await
        .expect("installed");
    let flags = ["--cooldown=0s", "--max-waiting-per-target=0"];
    system.controller_flags.extend(flags.map(str::to_owned));
    let controller = system.launch_controller().await.expect("started");
    // No execution ends before all wait.
    let spec = json!({
        "targetResource": "prod/Deployment/line", "executionConfig": { "whenBlocked": "Wait" },
    });
    let mut created = Vec::new();
    for number in 0..WAITING {
        let name = format!("line-{number}");
        created.push(
            system
                .create(&workflow, &name, &spec)
                .await
                .expect("stored"),
        );
    }
    let last = format!("line-{}", WAITING - 1);
    let waits = system.until(&last, "Blocked", "True/ResourceBusy").await;
    waits.expect("the last one waits");
    // Times have whole seconds; within one, the uid decides.
    created.sort_by_key(|wfe| {
        let at = wfe.creation_timestamp().map(|it| it.0);
        (at, wfe.uid())
    });
    let expected: Vec<_> = created.iter().map(ResourceExt::name_any).collect();

    let api = system.namespace.api::<WorkflowExecution>();
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = events.applied_objects().boxed();
    let node = FakeNode::start(&system.execution, |_| Ending::Success);
    let (mut started, mut audited) = (Vec::new(), Vec::new());
    let watching = async {
        while audited.len() < WAITING {
            let Some(Ok(wfe)) = events.next().await else {
                continue;
            };
            let name = wfe.name_any();
            let runs = wfe.phase().is_some_and(|it| it != Phase::Pending);
            if runs && !started.contains(&name) {
                started.push(name.clone());
            }
            let ended = condition(&wfe, "AuditRecorded").starts_with("True");
            if ended && !audited.contains(&name) {
                assert_eq!(wfe.phase(), Some(Phase::Succeeded), "{name}");
                audited.push(name);
            }
        }
    };
    let drained = tokio::time::timeout(DEADLINE, watching).await;
    assert!(
        drained.is_ok(),
        "only {} of {WAITING} have ended",
        audited.len()
    );
    // The first one was running before the others were created.
    let first = started.first().cloned().expect("a start");
    let rest = |names: &[String]| -> Vec<String> {
        names.iter().filter(|it| **it != first).cloned().collect()
    };
    assert_eq!(rest(&started), rest(&expected));
    drop((controller, node));
}
