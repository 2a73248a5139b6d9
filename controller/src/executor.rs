//! How each engine runs a workflow.
//!
//! An engine is a pure builder (a validated plan becomes an object) and a pure reader (the object and
//! its pods become an `Execution`) in `wfe_core`, and an [`Executor`] here: its watches, its caches and
//! its calls. It is chosen in one place, [`Executors::of`].

mod engine;
mod job;
mod unanswered;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use kube::Client;
use kube::runtime::reflector::store::WriterDropped;
use wfe_core::execution::Source;
use wfe_core::names::{TargetHash, Uid};
use wfe_model::workflow::Engine;

use self::job::JobExecutor;
use crate::watches::{Began, Changes};

pub use self::engine::Executor;
pub use self::unanswered::Unanswered;

/// The engines that this cluster has.
#[derive(Clone)]
pub struct Executors {
    job: Arc<dyn Executor>,
}

impl Executors {
    /// Starts the watches of every engine, for one execution namespace. The caches are filled while
    /// the changes are read.
    pub fn start(client: &Client, namespace: &str, began: &Began) -> (Self, Changes) {
        let (job, jobs) = JobExecutor::start(client, namespace, began);
        let executors = Self { job: Arc::new(job) };
        (executors, stream::select_all([jobs]).boxed())
    }

    /// The executor of an engine; none where the engine is not installed.
    pub fn of(&self, engine: Engine) -> Option<&dyn Executor> {
        match engine {
            Engine::Job => Some(self.job.as_ref()),
            Engine::Tekton => None,
        }
    }

    /// Every engine that is installed.
    pub fn all(&self) -> impl Iterator<Item = &dyn Executor> {
        Engine::ALL.into_iter().filter_map(|it| self.of(it))
    }

    /// Whether a pod made for a WorkflowExecution is alive, as cached.
    pub fn has_live_pod(&self, source: &Uid) -> bool {
        self.all().any(|it| it.has_live_pod(source))
    }

    /// For whom something is alive on the target, other than for `own`, as cached.
    pub fn others_alive(&self, target: &TargetHash, own: &str) -> Option<Source> {
        let mut alive = self.all().flat_map(|it| it.alive_on(target));
        alive.find(|source| source.uid != own)
    }

    /// Until every cache has been filled once.
    pub async fn synced(&self) -> Result<(), WriterDropped> {
        for executor in self.all() {
            executor.synced().await?;
        }
        Ok(())
    }
}
