//! Who should look at a change: the WorkflowExecutions that it may matter to.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Resource, ResourceExt};
use wfe_model::target::Target;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecution};

use super::{Caches, Touched, lock};
use crate::execution::lock as locks;
use crate::execution::status::condition;
use crate::names::{self, TARGET_HASH, WORKFLOW_EXECUTION_UID};

impl Caches {
    /// The WorkflowExecutions that a change matters to. After a new list that is all of them: what
    /// has vanished in between is told by nobody.
    pub(super) fn concerned<K>(
        &self,
        touched: Result<Touched<K>, watcher::Error>,
        one: impl Fn(K, bool) -> Vec<ObjectRef<WorkflowExecution>>,
    ) -> Result<Vec<ObjectRef<WorkflowExecution>>, watcher::Error> {
        touched.map(|touched| match touched {
            Touched::One { object, gone } => one(*object, gone),
            Touched::All => {
                let all = self.workflow_executions.state();
                all.iter()
                    .map(|wfe| ObjectRef::from_obj(wfe.as_ref()))
                    .collect()
            }
        })
    }

    /// The WorkflowExecutions that a changed one may matter to: itself, and, where it is out of the
    /// way now or stuck, those on its target that have not ended.
    pub(super) fn by_request(
        &self,
        wfe: &WorkflowExecution,
        gone: bool,
    ) -> Vec<ObjectRef<WorkflowExecution>> {
        let uid = wfe.uid().unwrap_or_default();
        if gone {
            lock(&self.began).remove(&uid);
            self.vanished.notify_one();
        }
        let mut concerned = vec![ObjectRef::from_obj(wfe)];
        let ends = wfe.phase().is_some_and(Phase::is_final);
        let unknown = |it: &Condition| {
            it.status == TriState::Unknown.as_str() && it.type_ != condition::READY
        };
        let stuck = wfe
            .status
            .as_ref()
            .is_some_and(|it| it.conditions.iter().any(unknown));
        if gone || ends || stuck || wfe.metadata.deletion_timestamp.is_some() {
            let target = Target::parse(&wfe.spec.target_resource);
            let hash = target.map(|target| names::target_hash(&target));
            concerned.extend(hash.into_iter().flat_map(|hash| self.unfinished(&hash)));
        }
        concerned
    }

    /// The WorkflowExecutions that a namespace may matter to: all, where it is the execution
    /// namespace, else the deleted ones in it.
    pub(super) fn by_namespace(
        &self,
        namespace: &PartialObjectMeta<Namespace>,
    ) -> Vec<ObjectRef<WorkflowExecution>> {
        let name = namespace.name_any();
        let all = self.workflow_executions.state();
        let concerned = all.iter().filter(|wfe| {
            name == self.execution_namespace
                || wfe.namespace().as_ref() == Some(&name)
                    && wfe.meta().deletion_timestamp.is_some()
        });
        concerned
            .map(|wfe| ObjectRef::from_obj(wfe.as_ref()))
            .collect()
    }

    /// Those on a target that have not ended, and the holder of its lock, which may have to free it.
    fn unfinished(&self, target_hash: &str) -> Vec<ObjectRef<WorkflowExecution>> {
        let on_target = lock(&self.index).of(target_hash).into_iter();
        let holder = self.lock_of(target_hash);
        let holder = holder.as_deref().and_then(locks::holder);
        let open = on_target.filter(|reference| {
            let wfe = self.workflow_executions.get(reference);
            wfe.is_some_and(|wfe| {
                !wfe.phase().is_some_and(Phase::is_final)
                    || holder.as_ref().map(|it| &it.uid) == wfe.metadata.uid.as_ref()
            })
        });
        open.collect()
    }

    /// The WorkflowExecutions that a Job, pod or Lease may matter to: the one it is for, and those
    /// on its target that have not ended.
    pub(super) fn by_made<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
    ) -> Vec<ObjectRef<WorkflowExecution>> {
        let with = |label: &str| {
            object
                .labels()
                .get(label)
                .map(|key| lock(&self.index).of(key))
        };
        let owner = with(WORKFLOW_EXECUTION_UID);
        // Created after its WorkflowExecution had vanished.
        if owner.as_ref().is_some_and(Vec::is_empty) {
            self.vanished.notify_one();
        }
        let owner = owner.unwrap_or_default();
        let hash = object.labels().get(TARGET_HASH);
        let on_target = hash.into_iter().flat_map(|hash| self.unfinished(hash));
        owner.into_iter().chain(on_target).collect()
    }
}
