//! Carries out one step: one question, or one write. What comes of it is what the next decision sees.

mod events;
mod look;
mod schema;
mod written;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use enumset::EnumSet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use thiserror::Error;
use wfe_model::FINALIZER;
use wfe_model::target::Target;
use wfe_model::workflow::Engine;
use wfe_model::workflow_execution::{WorkflowExecution, WorkflowExecutionStatus};
use wfe_peers::catalog::Catalog;
use wfe_peers::dependencies::DependencyReader;
use wfe_peers::discovery::ServedKinds;

use self::events::Events;
pub use self::schema::Schema;
use self::written::Written;
use super::decide::{Effect, Notice, Question};
use super::history::Entry;
use super::lock;
use super::observe::{Answers, Known, Observed, Settings};
use super::status::condition;
use crate::audit::happened;
use crate::audit::outbox::Outbox;
use crate::executor::{Executor, Executors, Unanswered};
use crate::metrics::Metrics;
use crate::names;
use crate::watches::Caches;

/// No request may take longer: it is repeated then.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a step could not be carried out; the pass is made again.
#[derive(Debug, Error)]
pub enum ActError {
    /// The API server did not answer, or not definitely.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// See [`DEADLINE`].
    #[error("no answer within {} s", DEADLINE.as_secs())]
    TooLong(#[from] tokio::time::error::Elapsed),
    /// A field that was stored is not there: the CRD does not know it.
    #[error(
        "the API server dropped {field}: its CRD is older than this program, apply the one that comes with it"
    )]
    SchemaOutdated {
        /// Path in the object.
        field: String,
    },
    /// Until a newer CRD is there.
    #[error("nothing is written while the CRD is older than this program")]
    Halted,
    /// A step of an engine that is not installed: never decided.
    #[error("engine {0:?} has no backend")]
    NoBackend(String),
}

/// Everything that steps need.
pub struct Act {
    client: Client,
    caches: Caches,
    executors: Executors,
    catalog: Arc<dyn Catalog>,
    dependencies: DependencyReader,
    kinds: ServedKinds,
    outbox: Arc<Outbox>,
    settings: Arc<Settings>,
    events: Events,
    metrics: Metrics,
    leases: Api<Lease>,
    written_objects: Written<WorkflowExecution>,
    written_leases: Written<Lease>,
    /// What was told, by uid. Told again after a crash.
    told: Mutex<HashMap<String, HashSet<Notice>>>,
    ready: AtomicBool,
    schema: Schema,
}

impl Act {
    /// Ready to act.
    pub fn new(
        client: &Client,
        caches: Caches,
        catalog: Arc<dyn Catalog>,
        outbox: Arc<Outbox>,
        settings: Settings,
        metrics: Metrics,
        schema: Schema,
    ) -> Self {
        let namespace = &settings.execution_namespace;
        Self {
            caches,
            executors: Executors::new(client, namespace),
            catalog,
            dependencies: DependencyReader::new(client, namespace),
            kinds: ServedKinds::new(client),
            outbox,
            events: Events::new(client),
            metrics,
            leases: Api::namespaced(client.clone(), namespace),
            settings: Arc::new(settings),
            client: client.clone(),
            written_objects: Written::default(),
            written_leases: Written::default(),
            told: Mutex::default(),
            ready: AtomicBool::new(false),
            schema,
        }
    }

    fn executor(&self, wfe: &WorkflowExecution) -> Option<&dyn Executor> {
        Engine::parse(&wfe.spec.execution_engine).and_then(|engine| self.executors.of(engine))
    }

    fn backend(&self, wfe: &WorkflowExecution) -> Result<&dyn Executor, ActError> {
        self.executor(wfe)
            .ok_or_else(|| ActError::NoBackend(wfe.spec.execution_engine.clone()))
    }

    /// Asks, and puts the answer where the next decision finds it.
    pub async fn ask(
        &self,
        observed: &Observed,
        question: Question,
        answers: &mut Answers,
    ) -> Result<(), ActError> {
        tokio::time::timeout(DEADLINE, self.ask_one(observed, question, answers)).await?
    }

    async fn ask_one(
        &self,
        observed: &Observed,
        question: Question,
        answers: &mut Answers,
    ) -> Result<(), ActError> {
        match question {
            Question::TargetKind(target) => {
                answers.target = Some(known(self.kinds.misfit(&target).await));
            }
            Question::Workflow(workflow_id) => {
                answers.catalog = Some(known(self.catalog.lookup(&workflow_id).await));
            }
            Question::ServiceAccount(name) => {
                answers.service_account =
                    Some(known(self.dependencies.service_account(&name).await));
            }
            Question::Dependencies(dependencies) => {
                answers.dependencies = Some(known(self.dependencies.check(&dependencies).await));
            }
            Question::Execution => {
                let name = observed.execution_name();
                answers.execution = Some(self.backend(&observed.wfe)?.read(&name).await?);
            }
            Question::Complaint(reference) => {
                let backend = self.backend(&observed.wfe)?;
                let complaint = backend.complaint(&reference, &observed.source.uid);
                answers.complaint = Some(complaint.await?);
            }
            Question::Remains => {
                let name = observed.execution_name();
                let stored = observed.wfe.execution_ref();
                let backend = self.backend(&observed.wfe)?;
                let remains = backend.remains(&name, &observed.source.uid, stored);
                answers.remains = Some(remains.await?);
            }
            Question::Lock => {
                let name = names::lock_name(&target_hash(&observed.wfe).unwrap_or_default());
                let found = self.leases.get_opt(&name).await;
                let found = found.map_err(Unanswered::of("read the lock"))?;
                answers.lease = Some(found.map(Arc::new));
                answers.lock_lost = false;
            }
        }
        Ok(())
    }

    /// Carries out a write, and puts what came of it where the next decision finds it.
    pub async fn carry_out(
        &self,
        observed: &Observed,
        effect: Effect,
        answers: &mut Answers,
    ) -> Result<(), ActError> {
        tokio::time::timeout(DEADLINE, self.write(observed, effect, answers)).await?
    }

    async fn write(
        &self,
        observed: &Observed,
        effect: Effect,
        answers: &mut Answers,
    ) -> Result<(), ActError> {
        let wfe = &observed.wfe;
        self.schema.permits(|wfe| self.api(wfe)).await?;
        match effect {
            Effect::AddFinalizer => {
                answers.let_go = !self.add_finalizer(wfe).await?;
                Ok(())
            }
            Effect::RemoveFinalizer => {
                self.remove_finalizer(wfe).await?;
                answers.let_go = true;
                Ok(())
            }
            Effect::TakeLock => {
                let taken = lock::taken(self.lease(observed), &observed.source, observed.now);
                answers.lock_taken = self.write_lease(&taken, answers).await?;
                Ok(())
            }
            Effect::FreeLock(record) => {
                let freed = lock::freed(self.lease(observed), record.as_deref(), observed.now);
                self.write_lease(&freed, answers).await?;
                Ok(())
            }
            Effect::Record(entry) => self.record(observed, &entry, answers).await,
            Effect::Tell(notice) => {
                self.tell(wfe, notice).await;
                Ok(())
            }
            Effect::Create(plan) => {
                answers.created = Some(self.backend(wfe)?.create(&plan).await?);
                Ok(())
            }
            Effect::Start(reference) => {
                self.backend(wfe)?.start(&reference).await?;
                answers.started = true;
                Ok(())
            }
            Effect::Delete(reference) => {
                self.backend(wfe)?.delete(&reference).await?;
                answers.deleted = true;
                Ok(())
            }
            Effect::Store(status) => self.store(wfe, *status).await,
            Effect::Audit => {
                self.outbox.offer(wfe, EnumSet::empty());
                Ok(())
            }
        }
    }

    /// The very Lease that was seen: another holder has changed its version. Or a new one.
    fn lease(&self, observed: &Observed) -> Lease {
        observed.lease.as_deref().cloned().unwrap_or_else(|| {
            let hash = target_hash(&observed.wfe).unwrap_or_default();
            lock::new(&self.settings.execution_namespace, &hash)
        })
    }

    /// Where the execution namespace is being deleted there is no place for records any more.
    async fn record(
        &self,
        observed: &Observed,
        entry: &Entry,
        answers: &mut Answers,
    ) -> Result<(), ActError> {
        let limits = &self.settings.limits;
        let recorded = lock::recorded(self.lease(observed), entry, limits, observed.now);
        let nowhere = !self.caches.is_there(&self.settings.execution_namespace);
        answers.recorded = nowhere || self.write_lease(&recorded, answers).await?;
        Ok(())
    }

    /// Told once by this process.
    async fn tell(&self, wfe: &WorkflowExecution, notice: Notice) {
        self.metrics.notice(wfe, notice);
        self.events.notice(wfe, notice).await;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.entry(key(wfe)).or_default().insert(notice);
    }

    fn api(&self, wfe: &WorkflowExecution) -> Api<WorkflowExecution> {
        Api::namespaced(
            self.client.clone(),
            wfe.metadata.namespace.as_deref().unwrap_or_default(),
        )
    }

    /// Whether the object is still there.
    async fn add_finalizer(&self, wfe: &WorkflowExecution) -> Result<bool, ActError> {
        let mut finalizers = wfe.metadata.finalizers.clone().unwrap_or_default();
        finalizers.push(FINALIZER.to_owned());
        let written = self.patch_finalizers(wfe, &finalizers).await?;
        let is_there = written.is_some();
        self.written_objects.put(&key(wfe), written.map(Arc::new));
        Ok(is_there)
    }

    async fn remove_finalizer(&self, wfe: &WorkflowExecution) -> Result<(), ActError> {
        let mut finalizers = wfe.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|it| it != FINALIZER);
        self.patch_finalizers(wfe, &finalizers).await?;
        // The cache will not show this version any more.
        self.written_objects.put(&key(wfe), None);
        self.outbox.abandon(wfe);
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key(wfe));
        Ok(())
    }

    /// Guarded by the resourceVersion: finalizers of others are not lost. None when it is gone.
    async fn patch_finalizers(
        &self,
        wfe: &WorkflowExecution,
        finalizers: &[String],
    ) -> Result<Option<WorkflowExecution>, ActError> {
        let patch = json!({ "metadata": {
            "resourceVersion": wfe.metadata.resource_version,
            "finalizers": finalizers,
        } });
        let api = self.api(wfe);
        match api
            .patch(
                &wfe.name_any(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
        {
            Ok(written) => Ok(Some(written)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(Unanswered::of("change the finalizers")(error).into()),
        }
    }

    async fn store(
        &self,
        wfe: &WorkflowExecution,
        status: WorkflowExecutionStatus,
    ) -> Result<(), ActError> {
        let mut changed = wfe.clone();
        changed.status = Some(status);
        let written = self
            .api(wfe)
            .replace_status(&wfe.name_any(), &PostParams::default(), &changed)
            .await;
        let written = written.map_err(Unanswered::of("store the status"))?;
        self.schema.check(&changed, &written)?;
        let written = Arc::new(written);
        self.written_objects.put(&key(wfe), Some(written.clone()));
        let new = happened::types(&written) - happened::types(wfe);
        self.outbox.offer(&written, new);
        let reported = |wfe| happened::is_settled(wfe, condition::CLEARANCE_RECORDED);
        if reported(&written) && !reported(wfe) {
            self.metrics.block_cleared();
        }
        if wfe.phase() != written.phase() {
            self.metrics.transition(&written, Timestamp::now());
            self.events.tell(&written).await;
        }
        Ok(())
    }

    /// Whether it was written. A no means that somebody else was: what is cached is not believed.
    async fn write_lease(&self, lease: &Lease, answers: &mut Answers) -> Result<bool, ActError> {
        let name = lease.name_any();
        let written = if lease.metadata.resource_version.is_some() {
            self.leases
                .replace(&name, &PostParams::default(), lease)
                .await
        } else {
            self.leases.create(&PostParams::default(), lease).await
        };
        match written {
            Ok(written) => {
                answers.lease = None;
                self.written_leases.put(&name, Some(Arc::new(written)));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                answers.lock_lost = true;
                Ok(false)
            }
            Err(error) => Err(Unanswered::of("write the lock")(error).into()),
        }
    }
}

fn known<T, E: std::error::Error>(answer: Result<T, E>) -> Known<T> {
    answer.map_or_else(
        |error| {
            let cause = error
                .source()
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            Known::Not(format!("{error}{cause}"))
        },
        Known::Yes,
    )
}

fn key(wfe: &WorkflowExecution) -> String {
    wfe.uid().unwrap_or_default()
}

fn target_hash(wfe: &WorkflowExecution) -> Option<String> {
    Target::parse(&wfe.spec.target_resource).map(|target| names::target_hash(&target))
}
