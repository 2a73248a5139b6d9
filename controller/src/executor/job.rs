//! Executor of engine `job`: runs a workflow as one container in a Kubernetes Job.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::select;
use futures::{FutureExt, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::watcher::watcher;
use kube::{Api, Client};
use serde_json::json;
use wfe_core::execution::{Alive, Created, Execution, Remains, Source, Waiting, is_of};
use wfe_core::job::build::build;
use wfe_core::job::read::{POD_MAKER, began, read};
use wfe_core::names::{TargetHash, Uid};
use wfe_core::plan::Plan;
use wfe_core::seen::Job;
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::ExecutionRef;

use super::engine::{Answer, Executor};
use super::pods::Pods;
use super::runs::{Posted, Runs};
use super::unanswered::Unanswered;
use crate::watches::{Changes, OwnerLabels, StartTimes, managed};

/// Runs workflows as Jobs in one namespace.
pub struct JobExecutor {
    jobs: Runs<Job>,
    pods: Pods,
}

impl JobExecutor {
    /// Watches the Jobs of `namespace` and their pods.
    pub fn start(client: &Client, namespace: &str, start_times: &StartTimes) -> (Self, Changes) {
        let api: Api<Job> = Api::namespaced(client.clone(), namespace);
        let events = watcher(api, managed()).default_backoff();
        let (jobs, job_changes) = Runs::start(client, namespace, |_| (), events);
        let (pods, pod_changes) = Pods::start(
            client,
            namespace,
            Engine::Job,
            POD_MAKER,
            began,
            start_times,
        );
        (
            Self { jobs, pods },
            select(job_changes, pod_changes).boxed(),
        )
    }

    async fn create_job(&self, plan: &Plan) -> Result<Created, Unanswered> {
        let created = self.jobs.create(&build(plan), |job| read(job, &[])).await?;
        Ok(match created {
            Posted::Ours(job) => Created::Ours(Box::new(read(&job, &[]))),
            Posted::NameTaken => Created::NameTaken,
            Posted::Refused { refusal, message } => Created::Refused { refusal, message },
        })
    }

    /// Reads the Job and its pods.
    async fn read_with_pods(&self, name: &str) -> Result<Option<Execution>, Unanswered> {
        let Some(job) = self.jobs.get(name).await? else {
            return Ok(None);
        };
        let pods = match OwnerLabels::of(&job).uid {
            Some(uid) => self.pods.list_of(uid.as_str()).await?,
            None => Vec::new(),
        };
        Ok(Some(read(&job, &pods)))
    }

    async fn read_remains(
        &self,
        name: &str,
        source: &Uid,
        stored: Option<&ExecutionRef>,
    ) -> Result<Remains, Unanswered> {
        // The pods last: the Job may create one before it ends.
        let job = self.jobs.get(name).await?;
        let execution = job.map(|job| read(&job, &[]));
        let remains = Remains::of(execution.as_ref(), source, stored);
        if self.pods.is_any_alive_of(source).await? {
            return Ok(Remains::Alive);
        }
        Ok(remains)
    }
}

impl Executor for JobExecutor {
    fn is_installed(&self) -> bool {
        true
    }

    fn create<'a>(&'a self, plan: &'a Plan) -> Answer<'a, Created> {
        self.create_job(plan).boxed()
    }

    fn start<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        async {
            self.jobs
                .start_exactly(reference, &json!({ "suspend": false }))
                .await
        }
        .boxed()
    }

    fn cancel<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.jobs.delete(reference).boxed()
    }

    fn delete<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.jobs.delete(reference).boxed()
    }

    fn status(&self, name: &str, source: &Uid) -> Option<Execution> {
        let job = self.jobs.newest(name);
        let job = job.filter(|job| is_of(job.as_ref(), source))?;
        Some(read(&job, &self.pods.of(source)))
    }

    fn executions(&self) -> Vec<(Source, Execution)> {
        let jobs = self.jobs.all();
        jobs.map(|(source, job)| (source, read(&job, &[])))
            .collect()
    }

    fn has_live_pod(&self, source: &Uid) -> bool {
        self.pods.has_live(source)
    }

    fn alive_on(&self, target: &TargetHash) -> Vec<Alive> {
        let jobs: Vec<Arc<Job>> = self.jobs.on(target);
        let jobs = jobs.iter().filter(|job| read(job, &[]).is_active());
        let jobs = jobs.filter_map(|job| Alive::read("Job", job.as_ref()));
        jobs.chain(self.pods.alive_on(target)).collect()
    }

    fn synced(&self) -> BoxFuture<'_, Result<(), WriterDropped>> {
        async {
            self.jobs.synced().await?;
            self.pods.synced().await
        }
        .boxed()
    }

    fn read<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Execution>> {
        self.read_with_pods(name).boxed()
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
        async {
            let jobs = self.jobs.list_on(target).await?;
            Ok(jobs.iter().any(|job| read(job, &[]).is_active())
                || self.pods.is_any_alive_on(target).await?)
        }
        .boxed()
    }
}
