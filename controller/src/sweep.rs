//! Garbage-collects orphaned executions and stale locks. An execution or a held lock is orphaned
//! when its WorkflowExecution was deleted without the controller: a user removed the finalizer, or
//! a create was committed after its sender had died. A lock is stale when it has not been used for
//! so long that no rule reads its records.
//!
//! Candidates come from the caches. Before an object counts as orphaned, the API server must
//! confirm that its WorkflowExecution is gone.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use wfe_core::execution::{Execution, Source};
use wfe_core::history::History;
use wfe_core::lock::{self, Holder, TargetLock};
use wfe_core::names::{TARGET_HASH, TargetHash, Uid};
use wfe_model::audit::EventType;
use wfe_model::text::in_full;
use wfe_model::workflow_execution::WorkflowExecution;

use crate::election::{Leadership, NotLeading};
use crate::executor::{Executor, Executors, Unanswered};
use crate::metrics::Metrics;
use crate::reconcile::{Failing, Shared};
use crate::watches::Caches;

/// Interval of sweeps.
const INTERVAL: Duration = Duration::from_secs(30);
/// Interval while an orphaned object is still being deleted.
const INTERVAL_WHILE_ENDING: Duration = Duration::from_secs(5);
/// Delay before a sweep: the deletion of a namespace deletes many WorkflowExecutions at once, and
/// one sweep covers them all.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Deadline for one object.
const OBJECT_DEADLINE: Duration = Duration::from_mins(1);

/// Why sweeping an object failed; the next sweep retries.
#[derive(Debug, Error)]
enum SweepError {
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    #[error("read WorkflowExecution {1}/{2}")]
    ReadOwner(#[source] kube::Error, String, String),
    #[error("check the target for live executions")]
    CheckTarget(#[source] Unanswered),
    #[error("end the orphaned execution")]
    EndExecution(#[source] Unanswered),
    #[error("write the lock")]
    WriteLock(#[source] kube::Error),
}

/// Sweeps one execution namespace.
pub struct Sweep {
    client: Client,
    caches: Caches,
    executors: Executors,
    leases: Api<Lease>,
    /// Time after its last use in which a rule may still read the records of a lock.
    lock_retention: Duration,
    max_consecutive_failures: u32,
    metrics: Metrics,
    leadership: Leadership,
    failing: Arc<Failing>,
}

impl Sweep {
    /// A sweep of the execution namespace.
    pub fn new(client: &Client, shared: &Shared) -> Self {
        let settings = &shared.settings;
        let limits = &settings.limits;
        let history_window = limits.cooldown.max(limits.backoff_max);
        Self {
            caches: shared.view.caches().clone(),
            executors: shared.executors.clone(),
            leases: Api::namespaced(client.clone(), &settings.execution_namespace),
            client: client.clone(),
            lock_retention: history_window.max(settings.retention),
            max_consecutive_failures: limits.max_consecutive_failures,
            metrics: shared.metrics.clone(),
            leadership: shared.leadership.clone(),
            failing: shared.failing.clone(),
        }
    }

    /// Sweeps at once, then periodically, and when a WorkflowExecution is gone.
    pub async fn run(&self) {
        let mut ending = self.once().await;
        loop {
            let interval = if ending {
                INTERVAL_WHILE_ENDING
            } else {
                INTERVAL
            };
            let _ = tokio::time::timeout(interval, self.caches.orphan_suspected()).await;
            tokio::time::sleep(DEBOUNCE).await;
            ending = self.once().await;
        }
    }

    /// Sweeps every cached execution and lock. Returns whether an orphaned object is still being
    /// deleted.
    async fn once(&self) -> bool {
        self.failing.retain(|uid| self.caches.knows(&uid.into()));
        let mut ending = false;
        for executor in self.executors.all() {
            for (source, execution) in executor.executions() {
                let swept = self.sweep_execution(executor, &source, &execution);
                let reference = &execution.reference;
                ending |= log_failure(&reference.kind, &reference.name, swept).await;
            }
        }
        for lease in self.caches.locks() {
            ending |= log_failure("Lease", &lease.name_any(), self.sweep_lock(&lease)).await;
        }
        ending
    }

    /// Ends an execution whose WorkflowExecution is gone, then deletes it.
    async fn sweep_execution(
        &self,
        executor: &dyn Executor,
        source: &Source,
        execution: &Execution,
    ) -> Result<bool, SweepError> {
        if execution.ending || !self.is_confirmed_gone(source).await? {
            return Ok(false);
        }
        self.leadership.check()?;
        let (namespace, name) = (&source.namespace, &source.name);
        let reference = &execution.reference;
        tracing::warn!(
            namespace,
            name,
            execution = reference.name,
            "ending orphaned execution"
        );
        let ended = if execution.is_active() {
            let cancelled = executor.cancel(reference).await;
            if cancelled.is_ok() && !execution.held {
                // Nobody stores how it ends: the event of its end can never be derived.
                self.metrics.audit_event(EventType::WorkflowFailed, "lost");
            }
            cancelled
        } else {
            executor.delete(reference).await
        };
        ended.map(|()| true).map_err(SweepError::EndExecution)
    }

    /// Frees an orphaned lock, or deletes a stale one. Each write has the cached resourceVersion as
    /// its precondition, so a lock that was taken since is not touched.
    async fn sweep_lock(&self, lease: &Lease) -> Result<bool, SweepError> {
        self.leadership.check()?;
        let swept = match lock::holder(lease) {
            Some(Holder::Execution(holder)) => self.free_if_orphaned(lease, &holder).await,
            Some(Holder::ByHand(_)) => Ok(false),
            None => self.delete_if_stale(lease).await,
        };
        match swept {
            Err(SweepError::WriteLock(kube::Error::Api(status)))
                if matches!(status.code, 404 | 409) =>
            {
                Ok(false)
            }
            swept => swept,
        }
    }

    /// Frees a lock whose holder is gone.
    async fn free_if_orphaned(&self, lease: &Lease, holder: &Source) -> Result<bool, SweepError> {
        let now = Timestamp::now();
        if !self.is_confirmed_gone(holder).await? {
            return Ok(false);
        }
        if self.is_target_occupied(lease).await? {
            return Ok(true);
        }
        let lock = lease.name_any();
        tracing::warn!(
            namespace = holder.namespace,
            name = holder.name,
            lock,
            "freeing lock whose holder is gone"
        );
        let freed = lock::freed(lease.clone(), None, now);
        let replaced = self
            .leases
            .replace(&lock, &PostParams::default(), &freed)
            .await;
        replaced.map(|_| false).map_err(SweepError::WriteLock)
    }

    /// Deletes a lock that has not been used for [`Self::lock_retention`], unless its records block
    /// the target: they are all that is left of a WorkflowExecution whose namespace is gone.
    async fn delete_if_stale(&self, lease: &Lease) -> Result<bool, SweepError> {
        let used =
            lock::last_used(lease).and_then(|used| used.checked_add(self.lock_retention).ok());
        if used.is_none_or(|until| Timestamp::now() < until) || self.blocks(lease) {
            return Ok(false);
        }
        let exactly = DeleteParams {
            preconditions: Some(Preconditions {
                uid: lease.uid(),
                resource_version: lease.resource_version(),
            }),
            ..DeleteParams::default()
        };
        let deleted = self.leases.delete(&lease.name_any(), &exactly).await;
        deleted.map(|_| false).map_err(SweepError::WriteLock)
    }

    /// Whether the target is blocked until a user clears it.
    fn blocks(&self, lease: &Lease) -> bool {
        let lock = TargetLock::from(Some(Arc::new(lease.clone())));
        let target = lease.labels().get(TARGET_HASH);
        let target = target.map(|it| TargetHash::from(it.as_str()));
        let objects = target
            .map(|it| self.caches.on_target(&it))
            .unwrap_or_default();
        let objects = objects.iter().map(AsRef::as_ref);
        let history = History::of(objects, lock.records().cloned());
        history.block().is_some() || history.failures() >= self.max_consecutive_failures
    }

    /// Whether the API server confirms that a WorkflowExecution is gone: it does not exist, or its
    /// name belongs to another uid. An error is no confirmation.
    async fn is_confirmed_gone(&self, source: &Source) -> Result<bool, SweepError> {
        if self.caches.knows(&Uid::from(source)) {
            return Ok(false);
        }
        let api: Api<WorkflowExecution> = Api::namespaced(self.client.clone(), &source.namespace);
        match api.get_metadata(&source.name).await {
            Ok(found) => Ok(found.metadata.uid.as_ref() != Some(&source.uid)),
            // A 404 without the object's name means that the kind is not served.
            Err(kube::Error::Api(status))
                if status.code == 404
                    && status
                        .details
                        .as_ref()
                        .is_some_and(|it| it.name == source.name) =>
            {
                Ok(true)
            }
            Err(error) => {
                let (namespace, name) = (source.namespace.clone(), source.name.clone());
                Err(SweepError::ReadOwner(error, namespace, name))
            }
        }
    }

    /// Whether an execution or a pod is alive on the lock's target, read from the API server.
    async fn is_target_occupied(&self, lease: &Lease) -> Result<bool, SweepError> {
        let Some(target) = lease.labels().get(TARGET_HASH) else {
            return Ok(true);
        };
        let target = TargetHash::from(target.as_str());
        for executor in self.executors.all() {
            let occupied = executor.occupies(&target).await;
            if occupied.map_err(SweepError::CheckTarget)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Awaits the sweep of one object and logs its failure.
async fn log_failure(
    kind: &str,
    object: &str,
    sweeping: impl Future<Output = Result<bool, SweepError>>,
) -> bool {
    match tokio::time::timeout(OBJECT_DEADLINE, sweeping).await {
        Ok(Ok(ending)) => return ending,
        Ok(Err(error)) => {
            tracing::warn!(
                kind,
                object,
                error = in_full(&error),
                "sweep failed, retrying"
            );
        }
        Err(_) => tracing::warn!(kind, object, "sweep timed out, retrying"),
    }
    false
}
