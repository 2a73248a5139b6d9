//! Scenarios of the fault tests: what a user does with a WorkflowExecution, and the outcome.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use wfe_model::audit::EventType::{
    self, BlockCleared, SelectionCompleted, WorkflowCompleted, WorkflowFailed, WorkflowStarted,
};
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode, touch};
use wfe_tests::fakes::proxy::Proxy;
use wfe_tests::system::{Program, Script, System, condition};
use wfe_tests::wait;

/// The controller garbage-collects Jobs every 30 s.
const JOB_GONE_WITHIN: Duration = Duration::from_mins(1);

const SUCCEEDED: &str = "True/ExecutionSucceeded";

/// What happens to an execution.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scenario {
    /// The execution succeeds.
    Success,
    /// The execution fails while running, and its block is cleared.
    Failure,
    /// The execution is cancelled while running, and its block is cleared.
    Cancel,
    /// The execution is cancelled before its container starts.
    CancelEarly,
    /// Another client suspends the running Job, and the block is cleared.
    Suspend,
    /// The execution is skipped: the same workflow has just succeeded on the target.
    Skip,
    /// The execution waits for another one on the target, then succeeds.
    Wait,
}

impl Scenario {
    /// Mutating requests that every run of the scenario sends.
    pub fn changes(self) -> &'static [&'static str] {
        match self {
            Self::Skip => &[
                "patch workflowexecutions",
                "update workflowexecutions/status",
            ],
            _ => &[
                "patch workflowexecutions",
                "create leases",
                "create jobs",
                "update workflowexecutions/status",
                "update leases",
                "delete jobs",
            ],
        }
    }

    pub const ALL: [Self; 7] = [
        Self::Success,
        Self::Failure,
        Self::Cancel,
        Self::CancelEarly,
        Self::Suspend,
        Self::Skip,
        Self::Wait,
    ];
}

/// When the API server receives a create that the proxy has held back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moment {
    /// The execution has ended, its Job exists.
    Ended,
    /// The execution was cancelled, its Job is deleted.
    JobDeleted,
    /// The next execution on the target runs, the Job of the first was deleted by hand.
    NextRuns,
    /// The WorkflowExecution is gone.
    Gone,
}

/// Where the audit trail goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AuditTarget {
    File,
    DataStorage,
}

/// A system whose controller reaches the API server through a proxy, and a fake node.
pub struct Setup {
    // Dropped first: the controller would add its finalizers again.
    controller: Mutex<Option<Program>>,
    pub system: System,
    fake_node: FakeNode,
    workflow: Script,
    /// Workflow of the execution that another one waits for.
    blocker: Script,
    endings: Arc<Mutex<HashMap<String, Ending>>>,
    /// When the proxy delivers the request it holds.
    moment: Mutex<Option<Moment>>,
}

impl Setup {
    /// Installs a system with its own namespaces and starts its controller.
    pub async fn start(prefix: &str, audit_target: AuditTarget) -> Self {
        let cluster = Cluster::connect().await;
        wfe_tests::system::install_crd(&cluster)
            .await
            .expect("the CRD");
        let workflow = Script::of("w", format!("r.io/w@sha256:{}", "1".repeat(64)), "");
        let blocker = Script::of("v", format!("r.io/v@sha256:{}", "2".repeat(64)), "");
        let mut system = System::install(&cluster, prefix, &[&workflow, &blocker])
            .await
            .expect("installed");
        system.start_proxy().await.expect("a proxy");
        if audit_target == AuditTarget::DataStorage {
            system.start_data_storage().await.expect("started");
            // Each crash lets the next controller wait for this long before it asks Data Storage.
            let timeout = "--data-storage-timeout=2s".to_owned();
            system.controller_flags.push(timeout);
        }
        let controller = system.launch_controller().await.expect("started");
        let endings: Arc<Mutex<HashMap<String, Ending>>> = Arc::default();
        let node_endings = endings.clone();
        let fake_node = FakeNode::start(&system.execution, move |job| {
            let endings = node_endings.lock();
            let label = job.labels().get("kubernaut.ai/workflow-execution");
            label
                .and_then(|name| endings.get(name))
                .copied()
                .unwrap_or(Ending::Success)
        });
        Self {
            system,
            fake_node,
            controller: Mutex::new(Some(controller)),
            workflow,
            blocker,
            endings,
            moment: Mutex::default(),
        }
    }

    /// Kills the controller with SIGKILL and starts another one.
    pub async fn crash(&self) -> Result<()> {
        let controller = self.controller.lock().take();
        if let Some(controller) = controller {
            controller.kill().await?;
        }
        let controller = self.system.launch_controller().await?;
        *self.controller.lock() = Some(controller);
        Ok(())
    }

    pub fn proxy(&self) -> &Proxy {
        self.system.proxy.as_ref().expect("a proxy")
    }

    /// Waits until the controller is ready, or not ready.
    pub async fn wait_for_controller_readiness(
        &self,
        ready: bool,
        deadline: Duration,
    ) -> Result<()> {
        let controller = self.controller.lock().take();
        let controller = controller.context("no controller runs")?;
        let result = controller.wait_for_readiness(ready, deadline).await;
        *self.controller.lock() = Some(controller);
        result
    }

    /// What the controller says of its readiness.
    pub async fn controller_readiness(&self) -> Result<String> {
        let controller = self.controller.lock().take();
        let controller = controller.context("no controller runs")?;
        let report = controller.readiness().await;
        *self.controller.lock() = Some(controller);
        report
    }

    /// Delivers the held create at this moment of the next run.
    pub fn deliver_at(&self, moment: Moment) {
        *self.moment.lock() = Some(moment);
    }

    /// Delivers the held create if it is due at this moment.
    async fn reach(&self, moment: Moment) -> Result<()> {
        let due = {
            let mut planned = self.moment.lock();
            planned.take_if(|it| *it == moment)
        };
        if due.is_some() {
            let codes = self.proxy().deliver().await?;
            ensure!(codes.len() == 1, "the proxy held no request: {codes:?}");
        }
        Ok(())
    }

    /// A WorkflowExecution on its own target.
    pub fn request(&self, name: &str) -> WorkflowExecution {
        self.workflow.request(name, &json!({}))
    }

    /// Sets how the Job of an execution ends.
    fn set_ending(&self, name: &str, ending: Ending) {
        let mut endings = self.endings.lock();
        endings.insert(name.to_owned(), ending);
    }

    async fn create(
        &self,
        workflow: &Script,
        name: &str,
        target: &str,
        when_blocked: &str,
    ) -> Result<WorkflowExecution> {
        let spec = json!({ "targetResource": format!("prod/Deployment/{target}"), "executionConfig": { "whenBlocked": when_blocked } });
        self.system.create(workflow, name, &spec).await
    }

    /// Runs the executions that precede the scenario.
    pub async fn prepare(&self, scenario: Scenario, name: &str) -> Result<()> {
        if scenario == Scenario::Skip {
            let before = format!("{name}-before");
            self.create(&self.workflow, &before, name, "Skip").await?;
            self.system.ended(&before).await?;
        }
        Ok(())
    }

    /// Runs a scenario from the create to the end of the deletion, and checks the outcome.
    pub async fn run(&self, scenario: Scenario, name: &str) -> Result<()> {
        match scenario {
            Scenario::Success => {
                self.create(&self.workflow, name, name, "Skip").await?;
                self.conclude(name, SUCCEEDED, WorkflowCompleted).await
            }
            Scenario::Failure => {
                self.set_ending(name, Ending::Failure);
                self.create(&self.workflow, name, name, "Skip").await?;
                self.conclude(name, "False/TaskFailed", WorkflowFailed)
                    .await
            }
            Scenario::Cancel => self.cancel(name).await,
            Scenario::CancelEarly => self.cancel_early(name).await,
            Scenario::Suspend => self.suspend(name).await,
            Scenario::Skip => {
                self.create(&self.workflow, name, name, "Skip").await?;
                self.system.ended(name).await?;
                self.system
                    .until(name, "Stalled", "True/RecentlyRemediated")
                    .await?;
                self.verify(name, &[SelectionCompleted], 0).await
            }
            Scenario::Wait => self.wait(name).await,
        }
    }

    /// Waits for the end, checks the condition `ExecutionComplete`, and verifies the outcome.
    async fn conclude(&self, name: &str, end: &str, last: EventType) -> Result<()> {
        self.check_end(name, end).await?;
        let ran = [
            SelectionCompleted,
            EventType::ExecutionStarted,
            WorkflowStarted,
            last,
        ];
        self.verify(name, &ran, 1).await
    }

    async fn check_end(&self, name: &str, end: &str) -> Result<()> {
        let wfe = self.system.ended(name).await?;
        self.reach(Moment::Ended).await?;
        let complete = condition(&wfe, "ExecutionComplete");
        ensure!(complete == end, "{name} is {complete}, not {end}");
        Ok(())
    }

    /// Creates an execution and waits until its container runs; returns the name of its Job.
    async fn start_running(&self, name: &str) -> Result<String> {
        self.set_ending(name, Ending::Never);
        self.create(&self.workflow, name, name, "Skip").await?;
        self.system
            .until(name, "ExecutionRunning", "True/ExecutionStarted")
            .await?;
        self.job_of(name).await
    }

    async fn cancel(&self, name: &str) -> Result<()> {
        let job = self.start_running(name).await?;
        self.system.cancel(name, "enough").await?;
        self.job_gone(&job).await?;
        self.reach(Moment::JobDeleted).await?;
        self.conclude(name, "False/Cancelled", WorkflowFailed).await
    }

    async fn cancel_early(&self, name: &str) -> Result<()> {
        self.set_ending(name, Ending::NotStarted);
        self.create(&self.workflow, name, name, "Skip").await?;
        self.system
            .until(name, "ExecutionCreated", "True/ExecutionCreated")
            .await?;
        self.system.cancel(name, "enough").await?;
        self.check_end(name, "False/Cancelled").await?;
        let trail = [
            SelectionCompleted,
            EventType::ExecutionStarted,
            WorkflowFailed,
        ];
        let wfe = self
            .system
            .namespace
            .api::<WorkflowExecution>()
            .get(name)
            .await?;
        let started = self.fake_node.started_for(&wfe.uid().unwrap_or_default());
        self.verify(name, &trail, started.min(1)).await
    }

    async fn suspend(&self, name: &str) -> Result<()> {
        let job = self.start_running(name).await?;
        let jobs = self.system.execution.api::<Job>();
        let suspended = Patch::Merge(json!({ "spec": { "suspend": true } }));
        jobs.patch(&job, &PatchParams::default(), &suspended)
            .await?;
        self.conclude(name, "False/ExecutionFailed", WorkflowFailed)
            .await
    }

    async fn wait(&self, name: &str) -> Result<()> {
        let first = format!("{name}-first");
        self.set_ending(&first, Ending::Never);
        self.create(&self.blocker, &first, name, "Skip").await?;
        self.system
            .until(&first, "ExecutionRunning", "True/ExecutionStarted")
            .await?;
        self.create(&self.workflow, name, name, "Wait").await?;
        self.system
            .until(name, "Blocked", "True/ResourceBusy")
            .await?;
        self.set_ending(name, Ending::Never);
        self.finish(&first).await?;
        self.system
            .until(name, "ExecutionRunning", "True/ExecutionStarted")
            .await?;
        if *self.moment.lock() == Some(Moment::NextRuns) {
            let job = self.job_of(&first).await?;
            let jobs = self.system.execution.api::<Job>();
            jobs.delete(&job, &DeleteParams::background()).await?;
            self.job_gone(&job).await?;
        }
        self.reach(Moment::NextRuns).await?;
        self.finish(name).await?;
        self.conclude(name, SUCCEEDED, WorkflowCompleted).await?;
        self.conclude(&first, SUCCEEDED, WorkflowCompleted).await
    }

    /// Makes the running Job of an execution succeed.
    async fn finish(&self, name: &str) -> Result<()> {
        self.set_ending(name, Ending::Success);
        let job = self.job_of(name).await?;
        touch(&self.system.execution.api::<Job>(), &job).await
    }

    async fn job_gone(&self, job: &str) -> Result<()> {
        wait::gone(&self.system.execution.api::<Job>(), job, JOB_GONE_WITHIN).await
    }

    async fn job_of(&self, name: &str) -> Result<String> {
        let api = self.system.namespace.api::<WorkflowExecution>();
        let reference = api.get(name).await?.execution_ref().cloned();
        Ok(reference.context("the status names no Job")?.name)
    }

    /// Deletes the execution and checks: number of Jobs started, each audit event once, target
    /// unlocked, no object left.
    async fn verify(&self, name: &str, trail: &[EventType], executions: usize) -> Result<()> {
        let api = self.system.namespace.api::<WorkflowExecution>();
        let wfe = api.get(name).await?;
        let uid = wfe.uid().context("no uid")?;
        let mut trail = trail.to_vec();
        if condition(&api.get(name).await?, "Ready") == "False/NotReady" && executions > 0 {
            self.system.clear(name).await?;
            trail.push(BlockCleared);
        }
        self.system.delete(name).await?;
        self.system.gone(name).await?;
        self.reach(Moment::Gone).await?;
        let found = self.system.trail_of(name)?;
        ensure!(found == trail, "{name}: {found:?}, not {trail:?}");
        let holders = self.system.holders().await?;
        ensure!(
            !holders.iter().any(|it| it.contains(&uid)),
            "{name} still holds its lock: {holders:?}"
        );
        // A Job that was created late has no owner: the controller garbage-collects it.
        if let Some(reference) = wfe.execution_ref() {
            self.job_gone(&reference.name).await?;
        }
        let jobs = self.system.jobs().await?;
        let left = jobs
            .iter()
            .any(|job| job.labels().values().any(|value: &String| *value == uid));
        ensure!(!left, "the Job of {name} is left");
        let started = self.fake_node.started_for(&uid);
        ensure!(
            started == executions,
            "{name}: {started} Jobs were started, not {executions}"
        );
        Ok(())
    }
}
