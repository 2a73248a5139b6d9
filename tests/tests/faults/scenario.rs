//! Short lives of WorkflowExecutions, told from outside: what is asked for, and how it must end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;
use wfe_model::audit::EventType::{
    self, BlockCleared, SelectionCompleted, WorkflowCompleted, WorkflowFailed, WorkflowStarted,
};
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, StandIn, again};
use wfe_tests::fakes::proxy::Proxy;
use wfe_tests::system::{Program, Script, System, condition};
use wfe_tests::wait;

/// A sweep looks every 30 s at the latest.
const JOB_GONE_WITHIN: Duration = Duration::from_mins(1);

const SUCCEEDED: &str = "True/ExecutionSucceeded";

/// What happens in a run.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scenario {
    /// It succeeds.
    Success,
    /// It fails midway, and is cleared.
    Failure,
    /// It is cancelled while it runs, and is cleared.
    Cancel,
    /// It is skipped: the same workflow has just succeeded there.
    Skip,
    /// It waits for another one, then succeeds.
    Wait,
}

impl Scenario {
    /// What changes something in any case.
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

    pub const ALL: [Self; 5] = [
        Self::Success,
        Self::Failure,
        Self::Cancel,
        Self::Skip,
        Self::Wait,
    ];
}

/// When a create is committed that was held on its way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moment {
    /// The execution has ended, its Job is there.
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
pub enum Trail {
    File,
    DataStorage,
}

/// A system whose controller sees the API server through a proxy, and a stand-in for the node.
pub struct Stage {
    // Ends first: it would put its finalizers back on.
    controller: Mutex<Option<Program>>,
    pub system: System,
    stand_in: StandIn,
    workflow: Script,
    another: Script,
    endings: Arc<Mutex<HashMap<String, Ending>>>,
    /// When what was held is to arrive.
    late: Mutex<Option<Moment>>,
}

impl Stage {
    /// With an audit trail in a file, or in Data Storage.
    pub async fn set(prefix: &str, trail: Trail) -> Self {
        let cluster = Cluster::connect().await;
        wfe_tests::system::install_crd(&cluster)
            .await
            .expect("the CRD");
        let workflow = Script::of("w", format!("r.io/w@sha256:{}", "1".repeat(64)), "");
        let another = Script::of("v", format!("r.io/v@sha256:{}", "2".repeat(64)), "");
        let mut system = System::install(&cluster, prefix, &[&workflow, &another])
            .await
            .expect("installed");
        system.put_proxy_between().await.expect("a proxy");
        if trail == Trail::DataStorage {
            system.put_data_storage_beside().await.expect("beside");
        }
        let controller = system.launch_controller().await.expect("started");
        let endings: Arc<Mutex<HashMap<String, Ending>>> = Arc::default();
        let told = endings.clone();
        let stand_in = StandIn::start(&system.execution, move |job| {
            let endings = told.lock().unwrap_or_else(PoisonError::into_inner);
            let label = job.labels().get("kubernaut.ai/workflow-execution");
            label
                .and_then(|name| endings.get(name))
                .copied()
                .unwrap_or(Ending::Success)
        });
        Self {
            system,
            stand_in,
            controller: Mutex::new(Some(controller)),
            workflow,
            another,
            endings,
            late: Mutex::default(),
        }
    }

    /// SIGKILL, and a new one.
    pub async fn crash(&self) -> Result<()> {
        let controller = self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(controller) = controller {
            controller.kill().await?;
        }
        let controller = self.system.launch_controller().await?;
        *self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(controller);
        Ok(())
    }

    pub fn proxy(&self) -> &Proxy {
        self.system.proxy.as_ref().expect("a proxy")
    }

    /// Until the controller says that it is ready, or that it is not.
    pub async fn controller_says(&self, ready: bool, deadline: Duration) -> Result<()> {
        let controller = self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let controller = controller.context("a controller runs")?;
        let said = controller.says(ready, deadline).await;
        *self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(controller);
        said
    }

    /// Has the create that is held arrive at a moment of the next play.
    pub fn deliver_at(&self, moment: Moment) {
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = Some(moment);
    }

    /// It is this moment now.
    async fn comes(&self, moment: Moment) -> Result<()> {
        let due = {
            let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
            late.take_if(|it| *it == moment)
        };
        if due.is_some() {
            let codes = self.proxy().deliver().await?;
            ensure!(codes.len() == 1, "nothing was held: {codes:?}");
        }
        Ok(())
    }

    /// A request on a target of its own.
    pub fn request(&self, name: &str) -> WorkflowExecution {
        self.workflow.request(name, &json!({}))
    }

    /// How the workflow of a request ends, from now on.
    fn ends(&self, name: &str, ending: Ending) {
        let mut endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Prepares what has happened before `scenario` begins.
    pub async fn prepare(&self, scenario: Scenario, name: &str) -> Result<()> {
        if scenario == Scenario::Skip {
            let before = format!("{name}-before");
            self.create(&self.workflow, &before, name, "Skip").await?;
            self.system.ended(&before).await?;
        }
        Ok(())
    }

    /// Plays it from the create to the end of the deletion, and looks at what came of it.
    pub async fn play(&self, scenario: Scenario, name: &str) -> Result<()> {
        match scenario {
            Scenario::Success => {
                self.create(&self.workflow, name, name, "Skip").await?;
                self.ended_as(name, SUCCEEDED, WorkflowCompleted).await
            }
            Scenario::Failure => {
                self.ends(name, Ending::Failure);
                self.create(&self.workflow, name, name, "Skip").await?;
                self.ended_as(name, "False/TaskFailed", WorkflowFailed)
                    .await
            }
            Scenario::Cancel => self.cancel(name).await,
            Scenario::Skip => {
                self.create(&self.workflow, name, name, "Skip").await?;
                self.system.ended(name).await?;
                self.system
                    .until(name, "Blocked", "True/RecentlyRemediated")
                    .await?;
                self.came_to(name, &[SelectionCompleted], 0).await
            }
            Scenario::Wait => self.wait(name).await,
        }
    }

    async fn ended_as(&self, name: &str, end: &str, last: EventType) -> Result<()> {
        let wfe = self.system.ended(name).await?;
        self.comes(Moment::Ended).await?;
        let complete = condition(&wfe, "ExecutionComplete");
        ensure!(complete == end, "{name} is {complete}, not {end}");
        let ran = [
            SelectionCompleted,
            EventType::ExecutionStarted,
            WorkflowStarted,
            last,
        ];
        self.came_to(name, &ran, 1).await
    }

    async fn cancel(&self, name: &str) -> Result<()> {
        self.ends(name, Ending::Never);
        self.create(&self.workflow, name, name, "Skip").await?;
        self.system
            .until(name, "ExecutionRunning", "True/ExecutionStarted")
            .await?;
        let job = self.job_of(name).await?;
        self.system.cancel(name, "enough").await?;
        self.job_gone(&job).await?;
        self.comes(Moment::JobDeleted).await?;
        self.ended_as(name, "False/Cancelled", WorkflowFailed).await
    }

    async fn wait(&self, name: &str) -> Result<()> {
        let first = format!("{name}-first");
        self.ends(&first, Ending::Never);
        self.create(&self.another, &first, name, "Skip").await?;
        self.system
            .until(&first, "ExecutionRunning", "True/ExecutionStarted")
            .await?;
        self.create(&self.workflow, name, name, "Wait").await?;
        self.system
            .until(name, "Blocked", "True/ResourceBusy")
            .await?;
        self.ends(name, Ending::Never);
        self.end(&first).await?;
        self.system
            .until(name, "ExecutionRunning", "True/ExecutionStarted")
            .await?;
        if *self.late.lock().unwrap_or_else(PoisonError::into_inner) == Some(Moment::NextRuns) {
            let job = self.job_of(&first).await?;
            let jobs = self.system.execution.api::<Job>();
            jobs.delete(&job, &DeleteParams::background()).await?;
            self.job_gone(&job).await?;
        }
        self.comes(Moment::NextRuns).await?;
        self.end(name).await?;
        self.ended_as(name, SUCCEEDED, WorkflowCompleted).await?;
        self.ended_as(&first, SUCCEEDED, WorkflowCompleted).await
    }

    /// Lets the workflow of a request succeed that has run until now.
    async fn end(&self, name: &str) -> Result<()> {
        self.ends(name, Ending::Success);
        let job = self.job_of(name).await?;
        again(&self.system.execution.api::<Job>(), &job).await
    }

    async fn job_gone(&self, job: &str) -> Result<()> {
        wait::gone(&self.system.execution.api::<Job>(), job, JOB_GONE_WITHIN).await
    }

    async fn job_of(&self, name: &str) -> Result<String> {
        let api = self.system.namespace.api::<WorkflowExecution>();
        let reference = api.get(name).await?.execution_ref().cloned();
        Ok(reference.context("it has a Job")?.name)
    }

    /// One execution or none, each event once, a free target, and nothing is left when it is
    /// deleted.
    async fn came_to(&self, name: &str, trail: &[EventType], executions: usize) -> Result<()> {
        let api = self.system.namespace.api::<WorkflowExecution>();
        let wfe = api.get(name).await?;
        let uid = wfe.uid().context("a uid")?;
        let mut trail = trail.to_vec();
        if condition(&api.get(name).await?, "Ready") == "False/NotReady" && executions > 0 {
            self.system.clear(name).await?;
            trail.push(BlockCleared);
        }
        self.system.delete(name).await?;
        self.system.gone(name).await?;
        self.comes(Moment::Gone).await?;
        let found = self.system.trail_of(name)?;
        ensure!(found == trail, "{name}: {found:?}, not {trail:?}");
        let holders = self.system.holders().await?;
        ensure!(
            !holders.iter().any(|it| it.contains(&uid)),
            "{name} holds its lock: {holders:?}"
        );
        // What was created late is found without owner, and deleted.
        if let Some(reference) = wfe.execution_ref() {
            self.job_gone(&reference.name).await?;
        }
        let jobs = self.system.jobs().await?;
        let left = jobs
            .iter()
            .any(|job| job.labels().values().any(|value: &String| *value == uid));
        ensure!(!left, "{name} has left its Job");
        let started = self.stand_in.started_for(&uid);
        ensure!(
            started == executions,
            "{name}: {started} executions, not {executions}"
        );
        Ok(())
    }
}
