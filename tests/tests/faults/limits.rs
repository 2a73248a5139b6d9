//! How many executions run at the same time, and how long ended ones are kept.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use parking_lot::Mutex;
use serde_json::{Value, json};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::fakes::node::{Ending, FakeNode, touch};
use wfe_tests::system::{Program, Script, System, install_crd, message};
use wfe_tests::{Cluster, wait};

const HAPPENS_WITHIN: Duration = Duration::from_mins(1);

struct Setup {
    system: System,
    workflow: Script,
    controller: Program,
    ending: Arc<Mutex<Ending>>,
    node: FakeNode,
}

async fn start(prefix: &str, flags: &[&str], ttl: Option<&str>) -> Setup {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let workflow = Script::of("w", format!("r.io/w@sha256:{}", "8".repeat(64)), "");
    let mut system = System::install(&cluster, prefix, &[&workflow])
        .await
        .expect("installed");
    if let Some(ttl) = ttl {
        system.expire_after(ttl).await.expect("permitted");
    }
    let flags = flags.iter().map(|it| (*it).to_owned());
    system.controller_flags.extend(flags);
    let controller = system.launch_controller().await.expect("started");
    let ending = Arc::new(Mutex::new(Ending::Never));
    let current = ending.clone();
    let node = FakeNode::start(&system.execution, move |_| *current.lock());
    Setup {
        system,
        workflow,
        controller,
        ending,
        node,
    }
}

impl Setup {
    async fn create(&self, name: &str, spec: &Value) {
        let created = self.system.create(&self.workflow, name, spec).await;
        created.expect("stored");
    }

    async fn phase(&self, name: &str, phase: Phase) -> WorkflowExecution {
        let api = self.system.namespace.api::<WorkflowExecution>();
        let is = |it: &WorkflowExecution| it.phase() == Some(phase);
        let reached = wait::until(&api, name, phase.as_str(), HAPPENS_WITHIN, is).await;
        reached.expect("the phase")
    }

    /// Lets all running executions end.
    async fn end_all(&self, ending: Ending) {
        *self.ending.lock() = ending;
        let jobs = self.system.execution.api::<Job>();
        for job in self.system.jobs().await.expect("listed") {
            let name = job.metadata.name.unwrap_or_default();
            // It may be gone already.
            let _ = touch(&jobs, &name).await;
        }
    }
}

/// BR-WE-009
#[tokio::test(flavor = "multi_thread")]
async fn executions_beyond_max_running_wait_for_a_slot_or_are_skipped() {
    let setup = start("slots", &["--max-running=2"], None).await;
    let wait = json!({ "executionConfig": { "whenBlocked": "Wait" } });
    for name in ["first", "second"] {
        setup.create(name, &wait).await;
        setup.phase(name, Phase::Running).await;
    }
    setup.create("skipped", &json!({})).await;
    let skipped = setup.phase("skipped", Phase::Skipped).await;
    let details = skipped.status.and_then(|it| it.skip_details);
    let says = "2 executions run, as many as may at the same time (--max-running)";
    let text = details.expect("details").message;
    assert!(text.starts_with(says), "{text}");
    for name in ["third", "fourth", "fifth"] {
        setup.create(name, &wait).await;
        let waits = setup
            .system
            .until(name, "Blocked", "True/ResourceBusy")
            .await;
        let waits = waits.expect("waits");
        assert!(message(&waits, "Blocked").starts_with(says), "{waits:?}");
    }
    let holders = setup.system.holders().await.expect("listed");
    assert_eq!(holders.len(), 2, "{holders:?}");
    setup.end_all(Ending::Success).await;
    for name in ["first", "second", "third", "fourth", "fifth"] {
        setup.system.ended(name).await.expect("ended");
        setup.phase(name, Phase::Succeeded).await;
    }
    drop((setup.controller, setup.node));
}

/// BR-WE-009, BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn ended_execution_expires_unless_it_blocks_its_target() {
    let setup = start("expiry", &[], Some("1s")).await;
    setup.create("failed", &json!({})).await;
    setup.phase("failed", Phase::Running).await;
    setup.end_all(Ending::Failure).await;
    let failed = setup.system.ended("failed").await.expect("ended");
    assert_eq!(failed.phase(), Some(Phase::Failed));

    *setup.ending.lock() = Ending::Success;
    setup.create("succeeded", &json!({})).await;
    setup.system.gone("succeeded").await.expect("expired");
    let trail = setup.system.trail_of("succeeded").expect("a trail");
    assert_eq!(trail.len(), 4, "{trail:?}");
    let jobs = setup.system.jobs().await.expect("listed");
    assert_eq!(
        jobs.len(),
        1,
        "the Job of the expired one is deleted with it"
    );

    setup.phase("failed", Phase::Failed).await;
    setup.system.clear("failed").await.expect("cleared");
    setup.system.gone("failed").await.expect("expired");
    drop((setup.controller, setup.node));
}
