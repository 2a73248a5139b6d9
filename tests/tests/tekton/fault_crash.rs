//! BR-WE-009, BR-AUDIT-005: a controller that crashes at any request runs each pipeline once, and
//! audits it once. Requests are lost, answered to nobody or delivered late by a proxy; Tekton and
//! the node are real.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use itertools::iproduct;
use kube::ResourceExt;
use serde_json::json;
use wfe_model::audit::EventType;
use wfe_tests::Cluster;
use wfe_tests::fakes::proxy::{Fault, Proxy};
use wfe_tests::system::{Overlap, Program, Script, System, Task, condition, pipeline};

use crate::setup::cluster;

/// More are not faster on two cores.
const SETUPS: usize = 4;
/// Delivers the request after a restarted controller has continued.
const LATE: Fault = Fault::Delay(Duration::from_secs(2));

#[derive(Clone, Copy, Debug)]
enum Scenario {
    Success,
    Cancel,
}

#[derive(Clone, Debug)]
struct Case {
    number: usize,
    scenario: Scenario,
    request: String,
    fault: Fault,
}

/// A system whose controller reaches the API server through a proxy.
struct Setup {
    // Dropped first: the controller would add its finalizers again.
    controller: Mutex<Option<Program>>,
    system: System,
    overlap: Overlap,
    brief: Script,
    endless: Script,
}

impl Setup {
    async fn start(cluster: &Cluster) -> Self {
        let brief = Task::of("only", cluster, &["true"]);
        let brief = pipeline(cluster, "crash-brief", &[brief], &json!({}), "");
        let endless = Task::of("only", cluster, &["trap 'exit 0' TERM; sleep 300 & wait"]);
        let endless = pipeline(cluster, "crash-endless", &[endless], &json!({}), "");
        let mut system = System::install(cluster, "tkn-crash", &[&brief, &endless])
            .await
            .expect("installed");
        let overlap = Overlap::watch(&system.execution);
        system.start_proxy().await.expect("a proxy");
        let controller = system.launch_controller().await.expect("started");
        Self {
            controller: Mutex::new(Some(controller)),
            system,
            overlap,
            brief,
            endless,
        }
    }

    fn proxy(&self) -> &Proxy {
        self.system.proxy.as_ref().expect("a proxy")
    }

    /// Kills the controller with SIGKILL and starts another one.
    async fn crash(&self) -> Result<()> {
        let controller = self.controller.lock().take();
        controller.context("no controller runs")?.kill().await?;
        let controller = self.system.launch_controller().await?;
        *self.controller.lock() = Some(controller);
        Ok(())
    }

    /// Runs a scenario from the create to the end of the deletion, and checks the outcome.
    async fn run(&self, scenario: Scenario, name: &str) -> Result<()> {
        let system = &self.system;
        let (workflow, end, last) = match scenario {
            Scenario::Success => (
                &self.brief,
                "True/ExecutionSucceeded",
                EventType::WorkflowCompleted,
            ),
            Scenario::Cancel => (&self.endless, "False/Cancelled", EventType::WorkflowFailed),
        };
        system.create(workflow, name, &json!({})).await?;
        if matches!(scenario, Scenario::Cancel) {
            let started = "True/ExecutionStarted";
            system.until(name, "ExecutionRunning", started).await?;
            system.cancel(name, "enough").await?;
        }
        let wfe = system.ended(name).await?;
        let complete = condition(&wfe, "ExecutionComplete");
        ensure!(complete == end, "{name} is {complete}, not {end}");
        system.unlocked(name).await?;
        let mut expected = vec![
            EventType::SelectionCompleted,
            EventType::ExecutionStarted,
            EventType::WorkflowStarted,
            last,
        ];
        if matches!(scenario, Scenario::Cancel) {
            system.clear(name).await?;
            expected.push(EventType::BlockCleared);
        }
        system.delete(name).await?;
        system.gone(name).await?;
        let trail = system.trail_of(name)?;
        ensure!(trail == expected, "{name}: {trail:?}, not {expected:?}");
        let pods = self.overlap.pods_of(&wfe.uid().context("no uid")?);
        ensure!(pods == 1, "{name}: {pods} pods ran, not 1");
        Ok(())
    }

    /// Runs a case; returns whether the request came to which the fault applies.
    async fn run_case(&self, case: &Case) -> Result<bool> {
        let name = format!("run-{}", case.number);
        let fault = self.proxy().next_fault();
        self.proxy().arm(Some((case.request.clone(), case.fault)));
        let running = self.run(case.scenario, &name);
        tokio::pin!(running, fault);
        tokio::select! {
            biased;
            () = &mut fault => {}
            result = &mut running => return result.map(|()| false),
        }
        self.crash().await?;
        running.await.map(|()| true)
    }
}

/// BR-WE-009, BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn controller_crash_at_any_request_runs_pipeline_once() {
    let cluster = cluster().await;
    let setups = join_all((0..SETUPS).map(|_| Setup::start(&cluster))).await;
    let mut cases = VecDeque::new();
    for (scenario, setup) in [Scenario::Success, Scenario::Cancel].iter().zip(&setups) {
        setup.proxy().arm(None);
        let name = format!("{scenario:?}").to_lowercase();
        setup.run(*scenario, &name).await.expect("no fault");
        let requests = setup.proxy().mutations();
        for request in ["create pipelineruns #1", "create resolutionrequests #1"] {
            assert!(requests.iter().any(|it| it == request), "{requests:?}");
        }
        for (request, fault) in iproduct!(requests, [Fault::Drop, Fault::DropAnswer, LATE]) {
            let (number, scenario) = (cases.len(), *scenario);
            cases.push_back(Case {
                number,
                scenario,
                request,
                fault,
            });
        }
    }
    let count = cases.len();
    let (queue, failures) = (Mutex::new(cases), Mutex::new(String::new()));
    let (next, missed) = (|| queue.lock().pop_front(), Mutex::new(Vec::new()));
    let workers = setups.iter().map(async |setup| {
        while let Some(case) = next() {
            match setup.run_case(&case).await {
                Ok(true) => {}
                // Which writes are coalesced depends on timing.
                Ok(false) => missed.lock().push(case),
                Err(error) => {
                    writeln!(failures.lock(), "{case:?}: {error:#}").expect("memory");
                }
            }
        }
    });
    join_all(workers).await;
    let (failures, missed) = (failures.into_inner(), missed.into_inner());
    println!(
        "{count} cases, the request did not come in {}",
        missed.len()
    );
    assert!(failures.is_empty(), "{failures}");
    assert!(missed.len() * 10 <= count, "requests missed: {missed:?}");
    for setup in setups {
        setup.overlap.end();
    }
}
