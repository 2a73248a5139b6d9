//! Caches of WorkflowExecutions, locks and namespaces.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{ObjectRef, Store};
use thiserror::Error;
use tokio::sync::Notify;
use wfe_core::names::{PAUSED, TargetHash, Uid, lock_name};
use wfe_core::observed::{Gate, Unread};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};

use super::index::Key;
use super::reflect::Cache;
use super::start_times::StartTimes;
use super::unreadable::Unreadable;

/// Names in a message.
const SHOWN_NAMES: usize = 5;

/// Why the controller does not begin.
#[derive(Debug, Error)]
#[error(
    "{count} WorkflowExecutions of an older CRD have not ended, as {names}: let the program that runs them finish, or delete them, then start this controller"
)]
pub struct OlderShape {
    count: usize,
    names: String,
}

/// The caches that do not belong to one engine.
#[derive(Clone)]
pub struct Caches {
    pub(super) workflow_executions: Cache<WorkflowExecution>,
    pub(super) unreadable: Unreadable,
    pub(super) leases: Cache<Lease>,
    pub(super) namespaces: Cache<PartialObjectMeta<Namespace>>,
    pub(super) start_times: StartTimes,
    /// Whether the WorkflowExecutions have been listed once. Before that, a uid that the cache does
    /// not have may exist.
    pub(super) listed: Arc<AtomicBool>,
    /// Notified when a WorkflowExecution that is gone may have left an execution or a held lock.
    pub(super) orphan_suspected: Arc<Notify>,
    pub(super) execution_namespace: String,
}

impl Caches {
    /// Waits until every cache has been filled once.
    pub async fn synced(&self) -> Result<(), WriterDropped> {
        self.workflow_executions.synced().await?;
        self.leases.synced().await?;
        self.namespaces.synced().await
    }

    /// Fails while executions of the older CRD of the same name are alive, which has no engine: another
    /// program runs them.
    pub fn refuse_older_shape(&self) -> Result<(), OlderShape> {
        let unfinished = self.unfinished().into_iter();
        let older = unfinished.filter(|it| it.spec.execution_engine.is_empty());
        let mut older: Vec<_> = older
            .map(|it| format!("{}/{}", it.namespace().unwrap_or_default(), it.name_any()))
            .collect();
        older.sort();
        if older.is_empty() {
            return Ok(());
        }
        let count = older.len();
        older.truncate(SHOWN_NAMES);
        Err(OlderShape {
            count,
            names: older.join(", "),
        })
    }

    /// Waits until a WorkflowExecution that is gone may have left an execution or a held lock.
    pub async fn orphan_suspected(&self) {
        self.orphan_suspected.notified().await;
    }

    /// The store of WorkflowExecutions.
    pub fn store(&self) -> Store<WorkflowExecution> {
        self.workflow_executions.store()
    }

    /// Every lock.
    pub fn locks(&self) -> Vec<Arc<Lease>> {
        self.leases.all()
    }

    /// Every WorkflowExecution.
    pub fn workflow_executions(&self) -> Vec<Arc<WorkflowExecution>> {
        self.workflow_executions.all()
    }

    /// The WorkflowExecutions that have not ended.
    pub fn unfinished(&self) -> Vec<Arc<WorkflowExecution>> {
        self.workflow_executions.with(&Key::Unfinished)
    }

    /// The WorkflowExecution with this name.
    pub fn workflow_execution(
        &self,
        reference: &ObjectRef<WorkflowExecution>,
    ) -> Option<Arc<WorkflowExecution>> {
        self.workflow_executions.get(reference)
    }

    /// Whether the cache has a WorkflowExecution with this uid.
    pub fn knows(&self, uid: &Uid) -> bool {
        let key = Key::Uid(uid.clone());
        !self.workflow_executions.references(&key).is_empty()
    }

    /// The WorkflowExecutions on a target.
    pub fn on_target(&self, target: &TargetHash) -> Vec<Arc<WorkflowExecution>> {
        self.workflow_executions.with(&Key::Target(target.clone()))
    }

    /// A WorkflowExecution on a target that cannot be read.
    pub fn unread_on(&self, target: &TargetHash) -> Option<Unread> {
        self.unreadable.on(target)
    }

    /// The number of WorkflowExecutions that cannot be read.
    pub fn unreadable(&self) -> usize {
        self.unreadable.count()
    }

    /// The lock of a target.
    pub fn lock_of(&self, target: &TargetHash) -> Option<Arc<Lease>> {
        self.lock(&lock_name(target))
    }

    /// The lock with this name.
    pub fn lock(&self, name: &str) -> Option<Arc<Lease>> {
        let reference = ObjectRef::new(name).within(&self.execution_namespace);
        self.leases.get(&reference)
    }

    /// The start time of the first container of a workflow, even if its pod is gone.
    pub fn began(&self, uid: &Uid) -> Option<jiff::Timestamp> {
        self.start_times.get(uid)
    }

    /// Whether executions may start in a namespace.
    pub fn gate(&self, namespace: &str) -> Gate {
        let namespace = self.namespaces.get(&ObjectRef::new(namespace));
        gate_of(namespace.as_deref())
    }

    /// Whether the namespace of a WorkflowExecution is being deleted. The cache may still have a
    /// namespace of the same name that is gone: then the WorkflowExecution is younger.
    pub fn is_ending(&self, wfe: &WorkflowExecution) -> bool {
        let namespace = wfe.namespace().unwrap_or_default();
        let namespace = self.namespaces.get(&ObjectRef::new(&namespace));
        let created = wfe.metadata.creation_timestamp.as_ref();
        namespace.is_some_and(|it| {
            let deleted = it.metadata.deletion_timestamp.as_ref();
            deleted.is_some_and(|deleted| created.is_none_or(|created| created.0 <= deleted.0))
        })
    }

    /// Whether a namespace exists and is not being deleted.
    pub fn is_active(&self, namespace: &str) -> bool {
        let namespace = self.namespaces.get(&ObjectRef::new(namespace));
        namespace.is_some_and(|it| it.metadata.deletion_timestamp.is_none())
    }
}

#[cfg(test)]
impl Caches {
    /// Caches with these WorkflowExecutions, without watches.
    pub async fn of(wfes: Vec<WorkflowExecution>) -> Self {
        use futures::{StreamExt, stream};
        use kube::runtime::watcher::Event;

        use super::reflect::reflect;

        let listed = wfes.into_iter().map(Event::InitApply);
        let events = std::iter::once(Event::Init)
            .chain(listed)
            .chain([Event::InitDone]);
        let (workflow_executions, changes) =
            reflect(stream::iter(events.map(Ok)), |_| (), wfe_keys, |_| ());
        changes.for_each(async |_| ()).await;
        Self {
            workflow_executions,
            unreadable: Unreadable::default(),
            leases: reflect(stream::empty(), |_| (), |_| Vec::new(), |_| ()).0,
            namespaces: reflect(stream::empty(), |_| (), |_| Vec::new(), |_| ()).0,
            start_times: StartTimes::default(),
            listed: Arc::default(),
            orphan_suspected: Arc::default(),
            execution_namespace: "kubernaut-workflows".to_owned(),
        }
    }
}

/// Index keys of a WorkflowExecution.
pub(super) fn wfe_keys(wfe: &WorkflowExecution) -> Vec<Key> {
    let uid = wfe.uid().map(|uid| Key::Uid(uid.as_str().into()));
    let target = TargetHash::of_wfe(wfe).map(Key::Target);
    let namespace = wfe.namespace().map(Key::Namespace);
    let unfinished = !wfe.phase().is_some_and(Phase::is_final);
    let unfinished = unfinished.then_some(Key::Unfinished);
    let keys = [uid, target, namespace, unfinished];
    keys.into_iter().flatten().collect()
}

/// Whether executions may start in this namespace; `None`: it does not exist.
pub fn gate_of(namespace: Option<&PartialObjectMeta<Namespace>>) -> Gate {
    let Some(namespace) = namespace else {
        return Gate::Missing;
    };
    if namespace.metadata.deletion_timestamp.is_some() {
        return Gate::Ending;
    }
    let paused = namespace.annotations().get(PAUSED);
    if paused.is_some_and(|it| it == "true") {
        Gate::Paused
    } else {
        Gate::Open
    }
}
