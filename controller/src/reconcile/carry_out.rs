//! Carries out one step: one question, or one write. What comes of it is what the next decision sees.

use std::sync::Arc;
use std::time::Duration;

use enumset::EnumSet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use thiserror::Error;
use wfe_core::audit;
use wfe_core::condition::ConditionType;
use wfe_core::history::Entry;
use wfe_core::lock;
use wfe_core::names::{self, TargetHash, Uid};
use wfe_core::observed::{Answer, Answers, Observed, Settings, resolve};
use wfe_core::step::{Effect, Notice, Question};
use wfe_model::FINALIZER;
use wfe_model::text::in_full;
use wfe_model::workflow::Engine;
use wfe_model::workflow_execution::{WorkflowExecution, WorkflowExecutionStatus};
use wfe_peers::catalog::Catalog;
use wfe_peers::dependencies::DependencyReader;
use wfe_peers::discovery::ServedKinds;

use super::events::Events;
use super::notified::Notified;
use super::schema::{Schema, SchemaError};
use crate::audit::outbox::Outbox;
use crate::executor::{Executor, Executors, Unanswered};
use crate::metrics::Metrics;
use crate::view::View;
use crate::watches::target_of;

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
    /// The CRD is older than this program.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A step of an engine that is not installed: never decided.
    #[error("engine {0:?} has no backend")]
    NoBackend(String),
    /// A step about the lock of an invalid target: never decided.
    #[error("{0:?} is no target")]
    NoTarget(String),
}

/// Everything that steps need.
pub struct Actions {
    client: Client,
    view: Arc<View>,
    executors: Executors,
    catalog: Arc<dyn Catalog>,
    dependencies: DependencyReader,
    kinds: ServedKinds,
    outbox: Arc<Outbox>,
    settings: Arc<Settings>,
    events: Events,
    metrics: Metrics,
    leases: Api<Lease>,
    notified: Arc<Notified>,
    schema: Schema,
}

/// What [`Actions`] shares with the rest of the process.
pub struct Shared {
    /// The newest objects.
    pub view: Arc<View>,
    /// The engines.
    pub executors: Executors,
    /// The catalog.
    pub catalog: Arc<dyn Catalog>,
    /// Takes what has happened.
    pub outbox: Arc<Outbox>,
    /// What operators were notified of.
    pub notified: Arc<Notified>,
    /// Flags.
    pub settings: Arc<Settings>,
    /// Counts.
    pub metrics: Metrics,
    /// Whether the CRD is as new as this program.
    pub schema: Schema,
}

impl Actions {
    /// Ready to act.
    pub fn new(client: &Client, shared: Shared) -> Self {
        let Shared {
            view,
            executors,
            catalog,
            outbox,
            notified,
            settings,
            metrics,
            schema,
        } = shared;
        let namespace = &settings.execution_namespace;
        Self {
            view,
            executors,
            catalog,
            dependencies: DependencyReader::new(client, namespace),
            kinds: ServedKinds::new(client),
            outbox,
            events: Events::new(client),
            metrics,
            leases: Api::namespaced(client.clone(), namespace),
            settings,
            client: client.clone(),
            notified,
            schema,
        }
    }

    fn backend(&self, wfe: &WorkflowExecution) -> Result<&dyn Executor, ActError> {
        let engine = &wfe.spec.execution_engine;
        let executor = Engine::parse(engine).and_then(|it| self.executors.of(it));
        executor.ok_or_else(|| ActError::NoBackend(engine.clone()))
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
                let found = self.catalog.lookup(&workflow_id).await;
                let spec = &observed.wfe.spec;
                answers.workflow = Some(known(found.map(|it| resolve(spec, it.as_ref()))));
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
            Question::StartupDiagnosis(reference) => {
                let backend = self.backend(&observed.wfe)?;
                let uid = Uid::from(observed.source.uid.as_str());
                let diagnosis = backend.startup_diagnosis(&reference, &uid);
                answers.startup_diagnosis = Some(diagnosis.await?);
            }
            Question::Remains => {
                let name = observed.execution_name();
                let stored = observed.wfe.execution_ref();
                let backend = self.backend(&observed.wfe)?;
                let uid = Uid::from(observed.source.uid.as_str());
                let remains = backend.remains(&name, &uid, stored);
                answers.remains = Some(remains.await?);
            }
            Question::Lock => {
                let name = names::lock_name(&target(observed)?);
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
                answers.finalizer_removed = !self.add_finalizer(wfe).await?;
                Ok(())
            }
            Effect::RemoveFinalizer => {
                self.remove_finalizer(wfe).await?;
                answers.finalizer_removed = true;
                Ok(())
            }
            Effect::TakeLock => {
                let taken = lock::taken(self.lease(observed)?, &observed.source, observed.now);
                answers.lock_taken = self.write_lease(&taken, answers).await?;
                Ok(())
            }
            Effect::FreeLock(record) => {
                let freed = lock::freed(self.lease(observed)?, record.as_deref(), observed.now);
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
    fn lease(&self, observed: &Observed) -> Result<Lease, ActError> {
        Ok(match observed.target_lock.lease.as_deref() {
            Some(lease) => lease.clone(),
            None => lock::new(&self.settings.execution_namespace, &target(observed)?),
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
        let recorded = lock::recorded(self.lease(observed)?, entry, limits, observed.now);
        let nowhere = !self
            .view
            .caches()
            .is_there(&self.settings.execution_namespace);
        answers.recorded = nowhere || self.write_lease(&recorded, answers).await?;
        Ok(())
    }

    /// Told once by this process.
    async fn tell(&self, wfe: &WorkflowExecution, notice: Notice) {
        self.metrics.notice(wfe, notice);
        self.events.notice(wfe, notice).await;
        self.notified.insert(&wfe.uid().unwrap_or_default(), notice);
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
        match written {
            Some(written) => self.view.wrote(Arc::new(written)),
            None => self.view.let_go(wfe),
        }
        Ok(is_there)
    }

    async fn remove_finalizer(&self, wfe: &WorkflowExecution) -> Result<(), ActError> {
        let mut finalizers = wfe.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|it| it != FINALIZER);
        self.patch_finalizers(wfe, &finalizers).await?;
        self.view.let_go(wfe);
        self.outbox.abandon(wfe);
        self.notified.forget(&wfe.uid().unwrap_or_default());
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
        self.view.wrote(written.clone());
        let new = audit::types(&written) - audit::types(wfe);
        self.outbox.offer(&written, new);
        let reported = |wfe| audit::is_settled(wfe, ConditionType::ClearanceRecorded);
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
                self.view.wrote_lock(written);
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

fn known<T, E: std::error::Error>(answer: Result<T, E>) -> Answer<T> {
    answer.map_or_else(|error| Answer::Unavailable(in_full(&error)), Answer::Known)
}

/// No step about a lock is decided for an invalid target.
fn target(observed: &Observed) -> Result<TargetHash, ActError> {
    target_of(&observed.wfe)
        .ok_or_else(|| ActError::NoTarget(observed.wfe.spec.target_resource.clone()))
}
