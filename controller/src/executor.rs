//! Executors: how each engine runs a workflow.
//!
//! An engine has a pure builder (validated plan to object) and a pure reader (object and pods to
//! `Execution`) in `wfe_core`, and an [`Executor`] here, with its watches, caches and requests.
//! Only [`Executors::of`] chooses the executor of an engine.

mod engine;
mod job;
mod pods;
mod runs;
mod tekton;
mod unanswered;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use kube::Client;
use kube::runtime::reflector::store::WriterDropped;
use strum::VariantArray;
use wfe_core::execution::Alive;
use wfe_core::names::{TargetHash, Uid};
use wfe_model::engine::Engine;

use self::job::JobExecutor;
use self::tekton::TektonExecutor;
use crate::watches::{Changes, StartTimes};

pub use self::engine::{Answer, Executor};
pub use self::unanswered::Unanswered;

/// The executors of all engines.
#[derive(Clone)]
pub struct Executors {
    job: Arc<dyn Executor>,
    tekton: Arc<dyn Executor>,
}

impl Executors {
    /// Starts the watches of every engine in one execution namespace. The caches are filled only
    /// while the returned changes are polled.
    pub fn start(client: &Client, namespace: &str, start_times: &StartTimes) -> (Self, Changes) {
        let (job, job_changes) = JobExecutor::start(client, namespace, start_times);
        let (tekton, tekton_changes) = TektonExecutor::start(client, namespace, start_times);
        let executors = Self {
            job: Arc::new(job),
            tekton: Arc::new(tekton),
        };
        let changes = stream::select(job_changes, tekton_changes);
        (executors, changes.boxed())
    }

    /// The executor of an engine.
    pub fn of(&self, engine: Engine) -> &dyn Executor {
        match engine {
            Engine::Job => self.job.as_ref(),
            Engine::Tekton => self.tekton.as_ref(),
        }
    }

    /// The executors of all engines.
    pub fn all(&self) -> impl Iterator<Item = &dyn Executor> {
        Engine::VARIANTS.iter().map(|engine| self.of(*engine))
    }

    /// Whether the caches have a live pod of a WorkflowExecution.
    pub fn has_live_pod(&self, source: &Uid) -> bool {
        self.all().any(|it| it.has_live_pod(source))
    }

    /// An object on the target that has not ended and belongs to another WorkflowExecution than the
    /// one with uid `own`, according to the caches.
    pub fn others_alive(&self, target: &TargetHash, own: &str) -> Option<Alive> {
        let mut alive = self.all().flat_map(|it| it.alive_on(target));
        alive.find(|it| it.source.uid != own)
    }

    /// Waits until every cache has been filled once.
    pub async fn synced(&self) -> Result<(), WriterDropped> {
        for executor in self.all() {
            executor.synced().await?;
        }
        Ok(())
    }
}
