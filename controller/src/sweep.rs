//! What WorkflowExecutions left behind when they vanished without us: somebody took the finalizer
//! off, or a create came through after its maker had died. Executions without owner are deleted,
//! locks without holder freed, locks that nobody has used for long removed.
//!
//! Looks at caches only; whatever seems to be without owner is asked for at the API server before
//! it is believed.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use wfe_core::execution::{Execution, Source};
use wfe_core::lock;
use wfe_core::names::{TARGET_HASH, TargetHash, Uid};
use wfe_core::observed::Settings;
use wfe_model::text::in_full;
use wfe_model::workflow_execution::WorkflowExecution;

use crate::executor::{Executor, Executors, Unanswered};
use crate::watches::Caches;

const INTERVAL: Duration = Duration::from_secs(30);
/// While something that was found is still ending.
const SOON: Duration = Duration::from_secs(5);
/// A deleted namespace makes many vanish at once: one sweep for all.
const SETTLE: Duration = Duration::from_millis(500);
const DEADLINE: Duration = Duration::from_mins(1);

/// Why something could not be swept; it is tried again.
#[derive(Debug, Error)]
enum SweepError {
    #[error("ask for the WorkflowExecution {1}/{2}")]
    Ask(#[source] kube::Error, String, String),
    #[error("look for what is alive on the target")]
    Look(#[source] Unanswered),
    #[error("delete an orphaned execution")]
    Delete(#[source] Unanswered),
    #[error("write the lock")]
    WriteLock(#[source] kube::Error),
}

/// Sweeps one execution namespace.
pub struct Sweep {
    client: Client,
    caches: Caches,
    executors: Executors,
    leases: Api<Lease>,
    /// How long an unused lock is kept: as long as its record may matter.
    keep: Duration,
}

impl Sweep {
    /// Nothing is swept yet.
    pub fn new(client: &Client, caches: Caches, executors: Executors, settings: &Settings) -> Self {
        let namespace = &settings.execution_namespace;
        let limits = &settings.limits;
        let keep = limits.cooldown.max(limits.backoff_max);
        Self {
            caches,
            executors,
            leases: Api::namespaced(client.clone(), namespace),
            client: client.clone(),
            keep: keep.max(settings.retention),
        }
    }

    /// Sweeps now and then, and soon after a WorkflowExecution has vanished.
    /// Begins soon where the last one found something that was still `ending`.
    pub async fn forever(&self, ending: bool) {
        let mut interval = if ending { SOON } else { INTERVAL };
        loop {
            let _ = tokio::time::timeout(interval, self.caches.orphaned()).await;
            tokio::time::sleep(SETTLE).await;
            interval = if self.once().await { SOON } else { INTERVAL };
        }
    }

    /// Sweeps everything that is in sight; whether something of it is still ending.
    pub async fn once(&self) -> bool {
        let mut ending = false;
        for executor in self.executors.all() {
            for (source, execution) in executor.executions() {
                let swept = self.execution(executor, &source, &execution);
                let reference = &execution.reference;
                ending |= told(&reference.kind, &reference.name, swept).await;
            }
        }
        for lease in self.caches.locks() {
            ending |= told("Lease", &lease.name_any(), self.lock(&lease)).await;
        }
        ending
    }

    /// Deletes an execution whose WorkflowExecution is gone.
    async fn execution(
        &self,
        executor: &dyn Executor,
        source: &Source,
        execution: &Execution,
    ) -> Result<bool, SweepError> {
        if execution.deleting || !self.is_gone(source).await? {
            return Ok(false);
        }
        let (namespace, name) = (&source.namespace, &source.name);
        let reference = &execution.reference;
        tracing::warn!(
            execution = reference.name,
            namespace,
            name,
            "deleting an orphaned execution"
        );
        let deleted = executor.delete(reference).await;
        deleted.map(|()| true).map_err(SweepError::Delete)
    }

    /// Guarded by the version that was looked at: who uses it in between is not disturbed.
    async fn lock(&self, lease: &Lease) -> Result<bool, SweepError> {
        let swept = match lock::holder(lease) {
            Some(holder) => self.held(lease, &holder).await,
            None => self.unused(lease).await,
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
    async fn held(&self, lease: &Lease, holder: &Source) -> Result<bool, SweepError> {
        let now = Timestamp::now();
        if !self.is_gone(holder).await? {
            return Ok(false);
        }
        if self.is_alive_on(lease).await? {
            return Ok(true);
        }
        let (name, namespace, gone) = (lease.name_any(), &holder.namespace, &holder.name);
        tracing::warn!(
            lock = name,
            namespace,
            name = gone,
            "freeing a lock whose holder is gone"
        );
        let freed = lock::freed(lease.clone(), None, now);
        let replaced = self
            .leases
            .replace(&name, &PostParams::default(), &freed)
            .await;
        replaced.map(|_| false).map_err(SweepError::WriteLock)
    }

    /// Removes a lock that nobody has used for as long as its records may matter.
    async fn unused(&self, lease: &Lease) -> Result<bool, SweepError> {
        let used = lock::last_used(lease).and_then(|used| used.checked_add(self.keep).ok());
        if used.is_none_or(|until| Timestamp::now() < until) {
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

    /// Whether a WorkflowExecution is gone, by the API server's own word: not there, or another one
    /// of that name. Whatever else it says is no such word.
    async fn is_gone(&self, source: &Source) -> Result<bool, SweepError> {
        if self.caches.knows(&Uid::from(source.uid.as_str())) {
            return Ok(false);
        }
        let api: Api<WorkflowExecution> = Api::namespaced(self.client.clone(), &source.namespace);
        // A name that somebody has written by hand.
        if source.namespace.is_empty() {
            return Ok(false);
        }
        match api.get_metadata(&source.name).await {
            Ok(found) => Ok(found.metadata.uid.as_ref() != Some(&source.uid)),
            // Not: the kind is not served.
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
                Err(SweepError::Ask(error, namespace, name))
            }
        }
    }

    /// Whether something is alive on the lock's target, by the API server's own word.
    async fn is_alive_on(&self, lease: &Lease) -> Result<bool, SweepError> {
        let Some(target) = lease.labels().get(TARGET_HASH) else {
            return Ok(true);
        };
        let target = TargetHash::from(target.as_str());
        for executor in self.executors.all() {
            if executor.occupies(&target).await.map_err(SweepError::Look)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

async fn told(
    kind: &str,
    name: &str,
    sweeping: impl Future<Output = Result<bool, SweepError>>,
) -> bool {
    match tokio::time::timeout(DEADLINE, sweeping).await {
        Ok(Ok(ending)) => return ending,
        Ok(Err(error)) => {
            tracing::warn!(
                kind,
                name,
                error = in_full(&error),
                "sweep failed, retrying"
            );
        }
        Err(_) => tracing::warn!(kind, name, "sweep timed out, retrying"),
    }
    false
}
