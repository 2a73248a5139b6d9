//! Gathers what a decision may look at: from caches and own writes, without a request.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use wfe_model::workflow_execution::WorkflowExecution;

use super::super::lock;
use super::super::observe::{Answers, Observed};
use super::{Act, key, target_hash};
use crate::executor::job::read as read_job;
use crate::executor::{Source, is_alive, is_of, made_for};
use crate::names;

impl Act {
    /// Whether decisions may be made: with half of the caches empty they would be wrong.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// From now on decisions may be made.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Counts what runs already: an earlier process has started it.
    pub fn count_active(&self) {
        for wfe in self.caches.workflow_executions.state() {
            self.metrics.found(&wfe);
        }
    }

    /// The object of this name, as cached or as the last write returned it.
    pub fn newest(
        &self,
        reference: &ObjectRef<WorkflowExecution>,
    ) -> Option<Arc<WorkflowExecution>> {
        let cached = self.caches.workflow_executions.get(reference)?;
        let again = || {
            let now = self.caches.workflow_executions.get(reference);
            now.filter(|now| now.uid() == cached.uid())
        };
        self.written_objects.newest(&key(&cached), again)
    }

    /// What is known now; none when the object is gone, or another one of that name.
    pub fn observe(&self, cached: &WorkflowExecution, answers: &Answers) -> Option<Observed> {
        let wfe = self.newest(&ObjectRef::from_obj(cached))?;
        let wfe = (wfe.uid() == cached.uid()).then_some(wfe)?;
        let source = Source::of(&wfe);
        let hash = target_hash(&wfe).unwrap_or_default();
        let executor = self.executor(&wfe);
        let name = names::execution_name(&source.name, &source.uid);
        let lease = match &answers.lease {
            Some(read) => read.clone(),
            None => self
                .written_leases
                .newest(&names::lock_name(&hash), || self.caches.lock_of(&hash)),
        };
        let lock = lock::state(lease.as_deref(), &source);
        let neighbours = self.caches.workflow_executions_with(&hash);
        let neighbours = neighbours
            .into_iter()
            .filter(|it| it.uid() != wfe.uid())
            .filter_map(|it| self.newest(&ObjectRef::from_obj(it.as_ref())))
            .collect();
        let pods = self.caches.pods_with(&hash);
        let (own, others): (Vec<_>, Vec<_>) = pods
            .iter()
            .partition(|pod| is_of(pod.as_ref(), &source.uid));
        let jobs = self.caches.jobs_with(&hash);
        let other_job = jobs
            .iter()
            .find(|job| !is_of(job.as_ref(), &source.uid) && read_job(job, &[]).is_active());
        let other_pod = others.iter().find(|pod| is_alive(pod));
        let other = other_job.map(|job| made_for(job.as_ref()));
        let other = other.or(other_pod.map(|pod| made_for(pod.as_ref())));
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.get(&source.uid).cloned().unwrap_or_default();
        Some(Observed {
            now: Timestamp::now(),
            execution: executor.and_then(|it| it.status(&self.caches, &name, &source.uid)),
            pods_alive: own.iter().any(|pod| is_alive(pod)),
            began: self.caches.began(&source.uid),
            others_alive: other,
            lock,
            lease,
            neighbours,
            paused: self.caches.is_paused(&self.settings.execution_namespace),
            namespace_ending: self.caches.is_ending(&source.namespace),
            told,
            engine_installed: executor.is_some(),
            audit: self.outbox.delivery(&wfe),
            source,
            wfe,
            answers: answers.clone(),
            settings: self.settings.clone(),
        })
    }
}
