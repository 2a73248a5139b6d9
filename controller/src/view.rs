//! Newest known objects: the cached version, or the version that an own write returned later.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use wfe_core::lock::TargetLock;
use wfe_core::names::{TargetHash, lock_name};
use wfe_model::workflow_execution::WorkflowExecution;

use crate::audit::outbox::ObjectReader;
use crate::watches::{Caches, Written};

/// Caches plus results of own writes; one instance per process, so that all components see the
/// same.
pub struct View {
    caches: Caches,
    wfes: Written<WorkflowExecution>,
    leases: Written<Lease>,
}

impl View {
    /// A view without own writes.
    pub fn new(caches: Caches) -> Self {
        Self {
            caches,
            wfes: Written::default(),
            leases: Written::default(),
        }
    }

    /// The caches alone.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// The WorkflowExecution with this name.
    pub fn newest(
        &self,
        reference: &ObjectRef<WorkflowExecution>,
    ) -> Option<Arc<WorkflowExecution>> {
        let cached = self.caches.workflow_execution(reference)?;
        let reread = || {
            let current = self.caches.workflow_execution(reference);
            current.filter(|it| it.uid() == cached.uid())
        };
        self.wfes.newest(&key(&cached), reread)
    }

    /// The WorkflowExecutions on `target` other than `of`.
    pub fn neighbours(
        &self,
        target: &TargetHash,
        of: &WorkflowExecution,
    ) -> Vec<Arc<WorkflowExecution>> {
        let on_target = self.caches.on_target(target).into_iter();
        let others = on_target.filter(|it| it.uid() != of.uid());
        others
            .filter_map(|it| self.newest(&ObjectRef::from_obj(it.as_ref())))
            .collect()
    }

    /// The lock of a target.
    pub fn lock(&self, target: &TargetHash) -> TargetLock {
        let cached = || self.caches.lock_of(target);
        TargetLock::from(self.leases.newest(&lock_name(target), cached))
    }

    /// Records the object that a write of a WorkflowExecution returned.
    pub fn record_write(&self, wfe: Arc<WorkflowExecution>) {
        self.wfes.put(&key(&wfe), Some(wfe));
    }

    /// Forgets the written version of an object that is deleted.
    pub fn forget(&self, wfe: &WorkflowExecution) {
        self.wfes.put(&key(wfe), None);
    }

    /// Records the Lease that a write of a lock returned.
    pub fn record_lock_write(&self, lease: Lease) {
        self.leases.put(&lease.name_any(), Some(Arc::new(lease)));
    }
}

fn key(wfe: &WorkflowExecution) -> String {
    wfe.uid().unwrap_or_default()
}

impl ObjectReader for View {
    fn newest(&self, reference: &ObjectRef<WorkflowExecution>) -> Option<Arc<WorkflowExecution>> {
        self.newest(reference)
    }
}
