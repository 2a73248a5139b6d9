//! Executor of engine `tekton`: runs a workflow as a Tekton PipelineRun.
//!
//! Tekton may be installed and removed at any time. Its kinds are watched while the CRD of
//! PipelineRuns exists; without it the caches are empty. Its pods are always watched.

use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use kube::api::{ListParams, PostParams};
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use wfe_core::execution::{Alive, Created, Execution, Refusal, Remains, Source, Waiting, is_of};
use wfe_core::names::{TARGET_HASH, TargetHash, Uid, WORKFLOW_EXECUTION_UID};
use wfe_core::plan::Plan;
use wfe_core::tekton::build::{build, resolution_request};
use wfe_core::tekton::objects::{CANCELLED, PIPELINE_RUN, PipelineRun, ResolutionRequest, TaskRun};
use wfe_core::tekton::pipeline::{Resolved, answer, misfit};
use wfe_core::tekton::prune;
use wfe_core::tekton::read::{POD_MAKER, began, has_ended, read};
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::ExecutionRef;

use super::engine::{Answer, Executor};
use super::pods::Pods;
use super::runs::{Posted, Runs};
use super::unanswered::Unanswered;
use crate::watches::{
    Cache, Changes, Key, OwnerLabels, ServedCrd, StartTimes, owner_changes, reflect,
};

/// Name of the CRD that says whether Tekton is installed.
const CRD: &str = "pipelineruns.tekton.dev";
/// How long a resolver may take to read a pipeline from its bundle.
const RESOLUTION_DEADLINE: Duration = Duration::from_secs(20);

/// Runs workflows as PipelineRuns in one namespace.
pub struct TektonExecutor {
    crd: ServedCrd,
    runs: Runs<PipelineRun>,
    task_runs: Cache<TaskRun>,
    task_runs_api: Api<TaskRun>,
    requests_api: Api<ResolutionRequest>,
    pods: Pods,
}

impl TektonExecutor {
    /// Watches the PipelineRuns of `namespace`, their TaskRuns and their pods.
    pub fn start(client: &Client, namespace: &str, start_times: &StartTimes) -> (Self, Changes) {
        let (crd, crd_failures) = ServedCrd::watch(client, CRD, "v1");
        let task_runs_api: Api<TaskRun> = Api::namespaced(client.clone(), namespace);
        let events = crd.watch_while_served(Api::namespaced(client.clone(), namespace));
        let (runs, run_changes) = Runs::start(client, namespace, prune::pipeline_run, events);
        let events = crd.watch_while_served(task_runs_api.clone());
        let (task_runs, task_changes) = reflect(events, prune::task_run, OwnerLabels::keys, |_| ());
        let (pods, pod_changes) = Pods::start(
            client,
            namespace,
            Engine::Tekton,
            POD_MAKER,
            began,
            start_times,
        );
        let changes = stream::select_all([
            crd_failures.map(Err).boxed(),
            run_changes,
            owner_changes(task_changes),
            pod_changes,
        ]);
        let executor = Self {
            crd,
            runs,
            task_runs,
            task_runs_api,
            requests_api: Api::namespaced(client.clone(), namespace),
            pods,
        };
        (executor, changes.boxed())
    }

    async fn create_run(&self, plan: &Plan) -> Result<Created, Unanswered> {
        let run = build(plan);
        let created = self.runs.create(&run, |run| read(run, &[], &[])).await?;
        let run = match created {
            Posted::Ours(run) => run,
            Posted::NameTaken => return Ok(Created::NameTaken),
            Posted::Refused { refusal, message } => {
                return Ok(Created::Refused { refusal, message });
            }
        };
        let execution = read(&run, &[], &[]);
        // A bundle never changes, because its digest is part of its name: what is checked here is
        // what runs.
        if execution.held
            && let Some((refusal, message)) = self.misfit(plan, &execution.reference.uid).await?
        {
            self.runs.delete(&execution.reference).await?;
            return Ok(Created::Refused { refusal, message });
        }
        Ok(Created::Ours(Box::new(execution)))
    }

    /// Lets Tekton resolve the pipeline of a plan, and returns why it must not run.
    async fn misfit(
        &self,
        plan: &Plan,
        uid: &str,
    ) -> Result<Option<(Refusal, String)>, Unanswered> {
        const ACT: &str = "resolve the bundle";
        let request = resolution_request(plan, uid);
        match self
            .requests_api
            .create(&PostParams::default(), &request)
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 404 | 422) => {
                let message = format!("cannot ask Tekton for the pipeline: {}", status.message);
                let refusal = match status.code {
                    403 => Refusal::Rights,
                    _ => Refusal::Invalid,
                };
                return Ok(Some((refusal, message)));
            }
            Err(error) => return Err(Unanswered::of(ACT)(error)),
        }
        let is_answered = |it: Option<&ResolutionRequest>| {
            it.is_some_and(|request| !matches!(answer(request), Resolved::Not))
        };
        let answered = await_condition(self.requests_api.clone(), &plan.name, is_answered);
        let unanswered = |cause: String| Unanswered {
            act: ACT,
            cause,
            outage: false,
        };
        let answered = match tokio::time::timeout(RESOLUTION_DEADLINE, answered).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err(unanswered(error.to_string())),
            Err(_) => {
                let seconds = RESOLUTION_DEADLINE.as_secs();
                let cause = format!("Tekton's resolver has not answered within {seconds} s");
                return Err(unanswered(cause));
            }
        };
        match answered.as_ref().map(answer) {
            Some(Resolved::Data(data)) => match BASE64_STANDARD.decode(data) {
                Ok(pipeline) => Ok(misfit(plan, &pipeline)),
                Err(error) => Err(unanswered(error.to_string())),
            },
            Some(Resolved::Failed(why)) => {
                let bundle = &plan.valid.image;
                let message = format!("Tekton cannot read the bundle {bundle}: {why}");
                Ok(Some((Refusal::Bundle, message)))
            }
            Some(Resolved::Not) | None => Err(unanswered("the request is gone".to_owned())),
        }
    }

    /// Reads the PipelineRun. Without Tekton there is none.
    async fn get(&self, name: &str) -> Result<Option<PipelineRun>, Unanswered> {
        if self.is_removed().await? {
            self.runs.forget_write(name);
            return Ok(None);
        }
        self.runs.get(name).await
    }

    /// Whether Tekton is not installed, by the API server's word: then it has no objects.
    async fn is_removed(&self) -> Result<bool, Unanswered> {
        if self.is_installed() {
            return Ok(false);
        }
        let gone = self.crd.is_confirmed_gone().await;
        gone.map_err(Unanswered::of("read the CRD of PipelineRuns"))
    }

    /// Reads from the API server whether a TaskRun with this label has not ended. Until then Tekton
    /// may create its pod, also when the PipelineRun is gone and the TaskRun is about to go.
    async fn has_active_task_run(&self, label: &str, value: &str) -> Result<bool, Unanswered> {
        if self.is_removed().await? {
            return Ok(false);
        }
        let listed = self.list_task_runs(label, value).await?;
        Ok(listed.iter().any(|it| !has_ended(it)))
    }

    async fn list_task_runs(&self, label: &str, value: &str) -> Result<Vec<TaskRun>, Unanswered> {
        let labelled = ListParams::default().labels(&format!("{label}={value}"));
        let listed = self.task_runs_api.list(&labelled).await;
        Ok(listed.map_err(Unanswered::of("list the TaskRuns"))?.items)
    }

    /// Reads the PipelineRun, its TaskRuns and its pods.
    async fn read_all(&self, name: &str) -> Result<Option<Execution>, Unanswered> {
        let Some(run) = self.get(name).await? else {
            return Ok(None);
        };
        let task_runs = self.list_task_runs(PIPELINE_RUN, name).await?;
        let task_runs: Vec<_> = task_runs.into_iter().map(Arc::new).collect();
        let pods = match OwnerLabels::of(&run).uid {
            Some(uid) => self.pods.list_of(uid.as_str()).await?,
            None => Vec::new(),
        };
        Ok(Some(read(&run, &task_runs, &pods)))
    }

    /// Cancels a run, so that its `finally` tasks run; deletes one that has run nothing.
    async fn cancel_run(&self, reference: &ExecutionRef) -> Result<(), Unanswered> {
        let Some(run) = self.get(&reference.name).await? else {
            return Ok(());
        };
        let execution = read(&run, &[], &[]);
        if run.uid().as_ref() != Some(&reference.uid) || !execution.is_active() || execution.ending
        {
            return Ok(());
        }
        if execution.held {
            return self.runs.delete(reference).await;
        }
        let cancelled = json!({ "status": CANCELLED });
        self.runs.cancel_exactly(reference, &cancelled).await
    }

    async fn read_remains(
        &self,
        name: &str,
        source: &Uid,
        stored: Option<&ExecutionRef>,
    ) -> Result<Remains, Unanswered> {
        // What creates something first, what is created last.
        let run = self.get(name).await?;
        let execution = run.map(|run| read(&run, &[], &[]));
        let remains = Remains::of(execution.as_ref(), source, stored);
        let uid = source.as_str();
        if self
            .has_active_task_run(WORKFLOW_EXECUTION_UID, uid)
            .await?
            || self.pods.is_any_alive_of(source).await?
        {
            return Ok(Remains::Alive);
        }
        Ok(remains)
    }

    async fn is_target_occupied(&self, target: &TargetHash) -> Result<bool, Unanswered> {
        if !self.is_removed().await? {
            let runs = self.runs.list_on(target).await?;
            if runs.iter().any(|run| read(run, &[], &[]).is_active()) {
                return Ok(true);
            }
        }
        Ok(self
            .has_active_task_run(TARGET_HASH, target.as_str())
            .await?
            || self.pods.is_any_alive_on(target).await?)
    }

    fn cached_task_runs(&self, source: &Uid) -> Vec<Arc<TaskRun>> {
        self.task_runs.with(&Key::Uid(source.clone()))
    }
}

impl Executor for TektonExecutor {
    fn is_installed(&self) -> bool {
        self.crd.is_served()
    }

    fn create<'a>(&'a self, plan: &'a Plan) -> Answer<'a, Created> {
        self.create_run(plan).boxed()
    }

    fn start<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        async {
            self.runs
                .start_exactly(reference, &json!({ "status": null }))
                .await
        }
        .boxed()
    }

    fn cancel<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.cancel_run(reference).boxed()
    }

    fn delete<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.runs.delete(reference).boxed()
    }

    fn status(&self, name: &str, source: &Uid) -> Option<Execution> {
        let run = self.runs.newest(name);
        let run = run.filter(|run| is_of(run.as_ref(), source))?;
        let task_runs = self.cached_task_runs(source);
        Some(read(&run, &task_runs, &self.pods.of(source)))
    }

    fn executions(&self) -> Vec<(Source, Execution)> {
        let runs = self.runs.all();
        runs.map(|(source, run)| (source, read(&run, &[], &[])))
            .collect()
    }

    fn has_live_pod(&self, source: &Uid) -> bool {
        let mut task_runs = self.cached_task_runs(source).into_iter();
        self.pods.has_live(source) || task_runs.any(|it| !has_ended(&it))
    }

    fn alive_on(&self, target: &TargetHash) -> Vec<Alive> {
        let runs = self.runs.on(target);
        let runs = runs.iter().filter(|run| read(run, &[], &[]).is_active());
        let runs = runs.filter_map(|run| Alive::read("PipelineRun", run.as_ref()));
        let task_runs = self.task_runs.with(&Key::Target(target.clone()));
        let task_runs = task_runs.iter().filter(|it| !has_ended(it));
        let task_runs = task_runs.filter_map(|it| Alive::read("TaskRun", it.as_ref()));
        let alive = runs.chain(task_runs);
        alive.chain(self.pods.alive_on(target)).collect()
    }

    fn synced(&self) -> BoxFuture<'_, Result<(), WriterDropped>> {
        async {
            self.runs.synced().await?;
            self.task_runs.synced().await?;
            self.pods.synced().await
        }
        .boxed()
    }

    fn read<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Execution>> {
        self.read_all(name).boxed()
    }

    fn startup_diagnosis<'a>(
        &'a self,
        reference: &'a ExecutionRef,
        source: &'a Uid,
    ) -> Answer<'a, Option<Waiting>> {
        self.pods.startup_diagnosis(reference, source).boxed()
    }

    fn remains<'a>(
        &'a self,
        name: &'a str,
        source: &'a Uid,
        stored: Option<&'a ExecutionRef>,
    ) -> Answer<'a, Remains> {
        self.read_remains(name, source, stored).boxed()
    }

    fn occupies<'a>(&'a self, target: &'a TargetHash) -> Answer<'a, bool> {
        self.is_target_occupied(target).boxed()
    }
}
