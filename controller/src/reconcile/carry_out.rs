//! Carries out one step: answers one question, or makes one write. The next decision sees the
//! result.

use std::sync::Arc;
use std::time::Duration;

use enumset::EnumSet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use thiserror::Error;
use wfe_core::audit;
use wfe_core::condition::ConditionType;
use wfe_core::history::Entry;
use wfe_core::lock;
use wfe_core::names::{self, TargetHash, Uid};
use wfe_core::observed::{Answer, Answers, Observed, Resolution, Settings, resolve};
use wfe_core::step::{Effect, Notice, Question};
use wfe_model::FINALIZER;
use wfe_model::engine::Engine;
use wfe_model::text::in_full;
use wfe_model::workflow_execution::{
    Phase, WorkflowExecution, WorkflowExecutionSpec, WorkflowExecutionStatus,
};
use wfe_peers::catalog::{Catalog, Lookup, LookupError};
use wfe_peers::dependencies::DependencyReader;
use wfe_peers::discovery::ServedKinds;

use super::events::Events;
use super::failing::Failing;
use super::notified::Notified;
use super::schema::{Schema, SchemaError};
use super::shared::Shared;
use super::trace;
use crate::audit::outbox::Outbox;
use crate::election::{Leadership, NotLeading};
use crate::executor::{Executor, Executors, Unanswered};
use crate::leases::put;
use crate::metrics::Metrics;
use crate::slots::Slots;
use crate::view::View;
use crate::watches::gate_of;

/// Deadline of one step; a step that misses it fails, and the pass is repeated.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// Deadline of the read of one dependency, after which it counts as unknown.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// Why a step failed; the pass is repeated.
#[derive(Debug, Error)]
pub enum StepError {
    /// The API server gave no answer, or no definite answer.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// See [`STEP_DEADLINE`].
    #[error("no answer within {} s", STEP_DEADLINE.as_secs())]
    Timeout(#[from] tokio::time::error::Elapsed),
    /// The CRD in the cluster is older than the controller.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Another process may lead.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    /// A step that needs an unknown engine; no decision returns such a step.
    #[error("unknown engine \"{0}\"")]
    EngineUnknown(String),
    /// A step that needs the lock of an invalid target; no decision returns such a step.
    #[error("invalid target \"{0}\"")]
    InvalidTarget(String),
}

/// Carries out steps.
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
    namespaces: Api<Namespace>,
    notified: Arc<Notified>,
    failing: Arc<Failing>,
    leadership: Leadership,
    slots: Arc<Slots>,
    schema: Schema,
}

impl Actions {
    /// The actions of one process.
    pub fn new(client: &Client, shared: Shared) -> Self {
        let Shared {
            view,
            executors,
            catalog,
            outbox,
            notified,
            failing,
            leadership,
            settings,
            metrics,
            schema,
            watches: _,
            recorder,
            slots,
        } = shared;
        let namespace = &settings.execution_namespace;
        Self {
            view,
            executors,
            catalog,
            dependencies: DependencyReader::new(client, namespace, READ_DEADLINE),
            namespaces: Api::all(client.clone()),
            kinds: ServedKinds::new(client),
            outbox,
            events: Events(recorder),
            metrics,
            leases: Api::namespaced(client.clone(), namespace),
            settings,
            client: client.clone(),
            notified,
            failing,
            leadership,
            slots,
            schema,
        }
    }

    fn executor(&self, wfe: &WorkflowExecution) -> Result<&dyn Executor, StepError> {
        let engine = &wfe.spec.execution_engine;
        let executor = Engine::parse(engine).map(|it| self.executors.of(it));
        executor.ok_or_else(|| StepError::EngineUnknown(engine.clone()))
    }

    /// Makes the read of `question` and stores the result in `answers` for the next decision.
    pub async fn ask(
        &self,
        observed: &Observed,
        question: Question,
        answers: &mut Answers,
    ) -> Result<(), StepError> {
        tokio::time::timeout(STEP_DEADLINE, self.answer(observed, question, answers)).await?
    }

    async fn answer(
        &self,
        observed: &Observed,
        question: Question,
        answers: &mut Answers,
    ) -> Result<(), StepError> {
        match question {
            Question::TargetKind(target) => {
                answers.kinds = Some(known(self.kinds.concerning(&target).await));
            }
            Question::Workflow(workflow_id) => {
                let spec = &observed.wfe.spec;
                let mut resolution = resolution(spec, self.catalog.lookup(&workflow_id).await);
                // The webhook may have admitted the request with a newer answer.
                if let Answer::Known(Err(_)) = resolution {
                    let found = self.catalog.lookup_now(&workflow_id).await;
                    resolution = self::resolution(spec, found);
                }
                answers.workflow = Some(resolution);
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
                answers.execution = Some(self.executor(&observed.wfe)?.read(&name).await?);
            }
            Question::StartupDiagnosis(reference) => {
                let executor = self.executor(&observed.wfe)?;
                let uid = Uid::from(&observed.source);
                let diagnosis = executor.startup_diagnosis(&reference, &uid);
                answers.startup_diagnosis = Some(diagnosis.await?);
            }
            Question::Remains => {
                let name = observed.execution_name();
                let stored = observed.wfe.execution_ref();
                let executor = self.executor(&observed.wfe)?;
                let uid = Uid::from(&observed.source);
                let remains = executor.remains(&name, &uid, stored);
                answers.remains = Some(remains.await?);
            }
            Question::Lock => {
                let name = names::lock_name(&target(observed)?);
                let found = self.leases.get_opt(&name).await;
                let found = found.map_err(Unanswered::of("read the lock"))?;
                answers.lease = Some(found.map(Arc::new));
                answers.lock_lost = false;
            }
            Question::Gate => {
                let name = &self.settings.execution_namespace;
                let found = self.namespaces.get_metadata_opt(name).await;
                let found = found.map_err(Unanswered::of("read the execution namespace"))?;
                answers.gate = Some(gate_of(found.as_ref()));
            }
        }
        Ok(())
    }

    /// Makes the write of `effect` and stores the result in `answers` for the next decision.
    pub async fn carry_out(
        &self,
        observed: &Observed,
        effect: Effect,
        answers: &mut Answers,
    ) -> Result<(), StepError> {
        tokio::time::timeout(STEP_DEADLINE, self.write(observed, effect, answers)).await?
    }

    async fn write(
        &self,
        observed: &Observed,
        effect: Effect,
        answers: &mut Answers,
    ) -> Result<(), StepError> {
        let wfe = &observed.wfe;
        self.leadership.check()?;
        self.schema.check_write_allowed(|wfe| self.api(wfe)).await?;
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
            Effect::Expire => self.expire(wfe).await,
            Effect::LabelLock => {
                self.write_lease(&self.lease(observed)?, answers).await?;
                Ok(())
            }
            Effect::TakeLock => {
                // A running execution takes its own lock again after its Lease was deleted.
                let runs = wfe.phase() == Some(Phase::Running);
                let target = target(observed)?;
                let slot = match (!runs).then(|| self.slots.take(wfe, &target)).transpose() {
                    Ok(slot) => slot,
                    Err(full) => {
                        answers.full = Some(full);
                        return Ok(());
                    }
                };
                let lease = self.lease(observed)?;
                let taken = lock::taken(lease, &observed.source, observed.now);
                answers.lock_taken = self.write_lease(&taken, answers).await?;
                drop(slot);
                Ok(())
            }
            Effect::FreeLock(record) => {
                let freed = lock::freed(self.lease(observed)?, record.as_deref(), observed.now);
                self.write_lease(&freed, answers).await?;
                Ok(())
            }
            Effect::Record(entry) => self.record(observed, &entry, answers).await,
            Effect::Notify(notice) => {
                self.publish(wfe, notice);
                Ok(())
            }
            Effect::Create(plan) => {
                answers.created = Some(self.executor(wfe)?.create(&plan).await?);
                Ok(())
            }
            Effect::Start(reference) => {
                self.executor(wfe)?.start(&reference).await?;
                answers.started = true;
                Ok(())
            }
            Effect::Cancel(reference) => {
                self.executor(wfe)?.cancel(&reference).await?;
                answers.deleted = true;
                Ok(())
            }
            Effect::Delete(reference) => {
                self.executor(wfe)?.delete(&reference).await?;
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

    /// The observed Lease, with its resourceVersion so that a write fails if another client has
    /// changed the Lease; or a new Lease.
    fn lease(&self, observed: &Observed) -> Result<Lease, StepError> {
        let target = target(observed)?;
        Ok(match observed.target_lock.lease.as_deref() {
            Some(lease) => lock::labelled(lease.clone(), &target),
            None => lock::new(&self.settings.execution_namespace, &target),
        })
    }

    /// Records an ended execution on its target's Lease. In an execution namespace that is being
    /// deleted no Lease can be created, and the record is given up.
    async fn record(
        &self,
        observed: &Observed,
        entry: &Entry,
        answers: &mut Answers,
    ) -> Result<(), StepError> {
        let limits = &self.settings.limits;
        let recorded = lock::recorded(self.lease(observed)?, entry, limits, observed.now);
        let namespace_gone = !self
            .view
            .caches()
            .is_active(&self.settings.execution_namespace);
        answers.recorded = namespace_gone || self.write_lease(&recorded, answers).await?;
        Ok(())
    }

    /// Publishes a notice as metric and Event, once per process.
    fn publish(&self, wfe: &WorkflowExecution, notice: Notice) {
        self.metrics.notice(wfe, notice);
        self.events.notice(wfe, notice);
        self.notified.insert(&wfe.uid().unwrap_or_default(), notice);
    }

    /// Tells an operator that the passes of this object fail again and again, and why.
    pub fn tell_failing(&self, wfe: &WorkflowExecution, error: &str) {
        self.metrics.notice(wfe, Notice::ReconcileFails);
        self.events.failing(wfe, error);
    }

    fn api(&self, wfe: &WorkflowExecution) -> Api<WorkflowExecution> {
        Api::namespaced(
            self.client.clone(),
            wfe.metadata.namespace.as_deref().unwrap_or_default(),
        )
    }

    /// Returns whether the object still exists.
    async fn add_finalizer(&self, wfe: &WorkflowExecution) -> Result<bool, StepError> {
        let mut finalizers = wfe.metadata.finalizers.clone().unwrap_or_default();
        finalizers.push(FINALIZER.to_owned());
        let written = self.patch_finalizers(wfe, &finalizers).await?;
        let exists = written.is_some();
        match written {
            Some(written) => self.view.record_write(Arc::new(written)),
            None => self.view.record_removal(wfe),
        }
        Ok(exists)
    }

    async fn remove_finalizer(&self, wfe: &WorkflowExecution) -> Result<(), StepError> {
        let mut finalizers = wfe.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|it| it != FINALIZER);
        self.patch_finalizers(wfe, &finalizers).await?;
        self.view.record_removal(wfe);
        self.outbox.abandon(wfe);
        let uid = wfe.uid().unwrap_or_default();
        self.notified.forget(&uid);
        self.failing.clear(&uid);
        Ok(())
    }

    /// Sends the resourceVersion, so that a finalizer which another client has just added is not
    /// lost. Returns `None` if the object does not exist any more.
    async fn patch_finalizers(
        &self,
        wfe: &WorkflowExecution,
        finalizers: &[String],
    ) -> Result<Option<WorkflowExecution>, StepError> {
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

    /// Deletes exactly this WorkflowExecution, if nobody has changed it.
    async fn expire(&self, wfe: &WorkflowExecution) -> Result<(), StepError> {
        let exactly = DeleteParams {
            preconditions: Some(Preconditions {
                uid: wfe.uid(),
                resource_version: wfe.resource_version(),
            }),
            ..DeleteParams::default()
        };
        match self.api(wfe).delete(&wfe.name_any(), &exactly).await {
            Ok(deleted) => match deleted.left() {
                Some(deleting) => self.view.record_write(Arc::new(deleting)),
                None => self.view.record_removal(wfe),
            },
            Err(kube::Error::Api(status)) if status.code == 404 => self.view.record_removal(wfe),
            Err(error) => {
                return Err(Unanswered::of("delete the expired WorkflowExecution")(error).into());
            }
        }
        Ok(())
    }

    async fn store(
        &self,
        wfe: &WorkflowExecution,
        status: WorkflowExecutionStatus,
    ) -> Result<(), StepError> {
        let mut changed = wfe.clone();
        changed.status = Some(status);
        let written = self
            .api(wfe)
            .replace_status(&wfe.name_any(), &PostParams::default(), &changed)
            .await;
        let written = written.map_err(Unanswered::of("store the status"))?;
        self.schema.check_stored(&changed, &written)?;
        let written = Arc::new(written);
        self.view.record_write(written.clone());
        let new = audit::types(&written) - audit::types(wfe);
        self.outbox.offer(&written, new);
        let reported = |wfe| audit::is_settled(wfe, ConditionType::ClearanceRecorded);
        if reported(&written) && !reported(wfe) {
            self.metrics.block_cleared();
        }
        if wfe.phase() != written.phase() {
            log_phase(&written);
            self.metrics.transition(&written, Timestamp::now());
            if written.phase().is_some_and(Phase::is_final) {
                trace::ended(&written);
            }
        }
        self.events.changes(wfe, &written);
        Ok(())
    }

    /// Returns whether the Lease was written. `false` means that another client wrote or deleted it
    /// first, and that the cached Lease is outdated.
    async fn write_lease(&self, lease: &Lease, answers: &mut Answers) -> Result<bool, StepError> {
        match put(&self.leases, lease).await {
            Ok(written) => {
                answers.lease = None;
                self.view.record_lock_write(written);
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

/// One line for each phase of a WorkflowExecution.
fn log_phase(wfe: &WorkflowExecution) {
    let execution = wfe.execution_ref();
    tracing::info!(
        phase = wfe.phase().map(Phase::as_str),
        target_resource = wfe.spec.target_resource,
        engine = wfe.spec.execution_engine,
        execution = execution.map(|it| it.name.as_str()),
        "phase changed"
    );
}

/// Validates a request against the result of a lookup.
fn resolution(spec: &WorkflowExecutionSpec, found: Lookup) -> Answer<Resolution> {
    match found {
        Ok(workflow) => Answer::Known(resolve(spec, Ok(&workflow))),
        Err(LookupError::Unusable(violation)) => Answer::Known(resolve(spec, Err(violation))),
        Err(LookupError::Unavailable(why)) => Answer::Unavailable(why),
    }
}

fn known<T, E: std::error::Error + 'static>(answer: Result<T, E>) -> Answer<T> {
    answer.map_or_else(|error| Answer::Unavailable(in_full(&error)), Answer::Known)
}

fn target(observed: &Observed) -> Result<TargetHash, StepError> {
    TargetHash::of_wfe(&observed.wfe)
        .ok_or_else(|| StepError::InvalidTarget(observed.wfe.spec.target_resource.clone()))
}
