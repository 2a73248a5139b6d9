//! Newest known objects: the cached version, or the version that an own write returned later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use wfe_core::lock::TargetLock;
use wfe_core::names::{TargetHash, Uid, lock_name};
use wfe_model::workflow_execution::WorkflowExecution;

use crate::audit::outbox::ObjectReader;
use crate::watches::{Caches, Written};

/// Caches plus results of own writes; one instance per process, so that all components see the
/// same.
pub struct View {
    caches: Caches,
    wfes: Written<WorkflowExecution>,
    leases: Written<Lease>,
    /// Objects that are gone, or of no concern any more, although the cache may still show them.
    removed: Mutex<HashSet<Uid>>,
}

impl View {
    /// A view without own writes.
    pub fn new(caches: Caches) -> Self {
        Self {
            caches,
            wfes: Written::default(),
            leases: Written::default(),
            removed: Mutex::default(),
        }
    }

    /// The caches alone.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// The WorkflowExecution with this name; `None` also after [`Self::record_removal`].
    pub fn newest(
        &self,
        reference: &ObjectRef<WorkflowExecution>,
    ) -> Option<Arc<WorkflowExecution>> {
        let cached = self.caches.workflow_execution(reference)?;
        if self.removed.lock().contains(&uid(&cached)) {
            return None;
        }
        let reread = || {
            let current = self.caches.workflow_execution(reference);
            current.filter(|it| it.uid() == cached.uid())
        };
        self.wfes.newest(&key(&cached), reread)
    }

    /// The WorkflowExecutions on `target`.
    pub fn on_target(&self, target: &TargetHash) -> Vec<Arc<WorkflowExecution>> {
        let on_target = self.caches.on_target(target).into_iter();
        on_target
            .filter_map(|it| self.newest(&ObjectRef::from_obj(it.as_ref())))
            .collect()
    }

    /// The WorkflowExecutions on `target` other than `of`.
    pub fn neighbours(
        &self,
        target: &TargetHash,
        of: &WorkflowExecution,
    ) -> Vec<Arc<WorkflowExecution>> {
        let mut neighbours = self.on_target(target);
        neighbours.retain(|it| it.metadata.uid != of.metadata.uid);
        neighbours
    }

    /// Every lock.
    pub fn locks(&self) -> Vec<Arc<Lease>> {
        let mut locks: HashMap<_, _> = (self.leases.written().into_iter())
            .map(|lease| (lease.name_any(), lease))
            .collect();
        for lease in self.caches.locks() {
            let name = lease.name_any();
            let newest = self.leases.newest(&name, || Some(lease));
            newest.and_then(|it| locks.insert(name, it));
        }
        locks.into_values().collect()
    }

    /// The lock of a target.
    pub fn lock(&self, target: &TargetHash) -> TargetLock {
        let cached = || self.caches.lock_of(target);
        TargetLock::from(self.leases.newest(&lock_name(target), cached))
    }

    /// Records the object that a write of a WorkflowExecution returned.
    pub fn record_write(&self, wfe: Arc<WorkflowExecution>) {
        let cached = |it: &WorkflowExecution| {
            let current = self.caches.workflow_execution(&ObjectRef::from_obj(it));
            current.filter(|current| current.uid() == it.uid())
        };
        self.wfes.put(&key(&wfe), wfe, cached);
    }

    /// Records that an object is gone, or that its finalizer was removed: the older version that the
    /// cache may still show must not be decided on again.
    pub fn record_removal(&self, wfe: &WorkflowExecution) {
        self.wfes.remove(&key(wfe));
        let mut removed = self.removed.lock();
        removed.retain(|uid| self.caches.knows(uid));
        removed.insert(uid(wfe));
    }

    /// Records the Lease that a write of a lock returned.
    pub fn record_lock_write(&self, lease: Lease) {
        let cached = |it: &Lease| self.caches.lock(&it.name_any());
        self.leases.put(&lease.name_any(), Arc::new(lease), cached);
    }
}

fn key(wfe: &WorkflowExecution) -> String {
    wfe.uid().unwrap_or_default()
}

fn uid(wfe: &WorkflowExecution) -> Uid {
    key(wfe).as_str().into()
}

impl ObjectReader for View {
    fn newest(&self, reference: &ObjectRef<WorkflowExecution>) -> Option<Arc<WorkflowExecution>> {
        self.newest(reference)
    }
}

#[cfg(test)]
mod tests {
    use wfe_model::workflow_execution::WorkflowExecutionSpec;

    use super::*;

    fn wfe(uid: &str) -> WorkflowExecution {
        let mut wfe = WorkflowExecution::new("restart", WorkflowExecutionSpec::default());
        wfe.metadata.namespace = Some("prod".to_owned());
        wfe.metadata.uid = Some(uid.to_owned());
        wfe
    }

    /// BR-AUDIT-005: a second pass from a stale cache would abandon the trail twice.
    #[tokio::test]
    async fn newest_removed_object_in_stale_cache_is_none() {
        let old = wfe("1");
        let reference = ObjectRef::from_obj(&old);
        let view = View::new(Caches::of(vec![old.clone()]).await);
        assert!(view.newest(&reference).is_some());
        view.record_removal(&old);
        assert!(view.newest(&reference).is_none());
        let view = View::new(Caches::of(vec![wfe("2")]).await);
        view.record_removal(&old);
        assert!(
            view.newest(&reference).is_some(),
            "another object has the name"
        );
    }
}
