//! The newest objects: what the caches have, or what our own writes returned since.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use wfe_core::lock::TargetLock;
use wfe_core::names::{TargetHash, lock_name};
use wfe_model::workflow_execution::WorkflowExecution;

use crate::audit::outbox::Objects;
use crate::watches::{Caches, Written};

/// One for the whole process: whatever reads here sees the same.
pub struct View {
    caches: Caches,
    wfes: Written<WorkflowExecution>,
    leases: Written<Lease>,
}

impl View {
    /// Nothing is written yet.
    pub fn new(caches: Caches) -> Self {
        Self {
            caches,
            wfes: Written::default(),
            leases: Written::default(),
        }
    }

    /// What the watches have seen.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// The WorkflowExecution of this name.
    pub fn newest(
        &self,
        reference: &ObjectRef<WorkflowExecution>,
    ) -> Option<Arc<WorkflowExecution>> {
        let cached = self.caches.workflow_execution(reference)?;
        let again = || {
            let now = self.caches.workflow_execution(reference);
            now.filter(|now| now.uid() == cached.uid())
        };
        self.wfes.newest(&key(&cached), again)
    }

    /// The other WorkflowExecutions on the target of one.
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

    /// A write of a WorkflowExecution returned this.
    pub fn wrote(&self, wfe: Arc<WorkflowExecution>) {
        self.wfes.put(&key(&wfe), Some(wfe));
    }

    /// The cache will not show a newer version of this one any more.
    pub fn let_go(&self, wfe: &WorkflowExecution) {
        self.wfes.put(&key(wfe), None);
    }

    /// A write of a lock returned this.
    pub fn wrote_lock(&self, lease: Lease) {
        self.leases.put(&lease.name_any(), Some(Arc::new(lease)));
    }
}

fn key(wfe: &WorkflowExecution) -> String {
    wfe.uid().unwrap_or_default()
}

impl Objects for View {
    fn newest(&self, reference: &ObjectRef<WorkflowExecution>) -> Option<Arc<WorkflowExecution>> {
        self.newest(reference)
    }
}
