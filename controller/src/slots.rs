//! How many executions may run at the same time. An execution runs from when its target's lock is
//! taken until the lock is freed, so the locks are counted and nothing else is kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use wfe_core::lock;
use wfe_core::names::TargetHash;
use wfe_core::names::lock_name;
use wfe_core::observed::Full;
use wfe_model::workflow_execution::WorkflowExecution;

use crate::view::View;

/// Limits; 0: no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct MaxRunning {
    /// In the whole cluster.
    pub cluster: u32,
    /// Of the WorkflowExecutions in one namespace.
    pub namespace: u32,
}

/// Gives out the right to take a lock.
pub struct Slots {
    view: Arc<View>,
    max: MaxRunning,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Namespaces of WorkflowExecutions whose lock is being taken, by name of the Lease.
    taking: HashMap<String, String>,
    /// WorkflowExecutions that wait for a slot, the oldest first.
    waiting: BTreeMap<(Option<Timestamp>, String), ObjectRef<WorkflowExecution>>,
}

/// The right to take one lock; given back when dropped. The lock itself counts then.
pub struct Slot<'a> {
    slots: &'a Slots,
    lease: String,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.state.lock().taking.remove(&self.lease);
    }
}

impl Slots {
    /// Slots of which none is taken but by the locks in `view`.
    pub fn new(view: Arc<View>, max: MaxRunning) -> Self {
        Self {
            view,
            max,
            state: Mutex::default(),
        }
    }

    /// Takes a slot for `wfe`; without one it is remembered as waiting.
    pub fn take(&self, wfe: &WorkflowExecution, target: &TargetHash) -> Result<Slot<'_>, Full> {
        let lease = lock_name(target);
        let namespace = wfe.namespace().unwrap_or_default();
        let mut state = self.state.lock();
        if let Some(full) = self.full(&state, &namespace, &lease) {
            let created = wfe.meta().creation_timestamp.as_ref().map(|it| it.0);
            let key = (created, wfe.uid().unwrap_or_default());
            state.waiting.insert(key, ObjectRef::from_obj(wfe));
            return Err(full);
        }
        state.taking.insert(lease.clone(), namespace);
        drop(state);
        Ok(Slot { slots: self, lease })
    }

    /// The oldest WorkflowExecution that waits for a slot and may have one now. It waits no more: it
    /// takes the slot, or waits again.
    pub fn next(&self) -> Option<ObjectRef<WorkflowExecution>> {
        let mut state = self.state.lock();
        let has_slot = |reference: &ObjectRef<WorkflowExecution>| {
            let namespace = reference.namespace.as_deref().unwrap_or_default();
            self.full(&state, namespace, "").is_none()
        };
        let found = state.waiting.iter().find(|(_, it)| has_slot(it));
        let key = found.map(|(key, _)| key.clone())?;
        state.waiting.remove(&key)
    }

    /// The limit that is reached for `namespace`, `but` for one Lease that may be taken again.
    fn full(&self, state: &State, namespace: &str, but: &str) -> Option<Full> {
        let MaxRunning {
            cluster: in_cluster,
            namespace: in_namespace,
        } = self.max;
        if in_cluster == 0 && in_namespace == 0 {
            return None;
        }
        let locks = self.view.locks();
        let held = locks.iter().filter_map(|lease| {
            let holder = lock::holding_execution(lease)?;
            Some((lease.name_any(), holder.namespace))
        });
        let taking = state.taking.iter();
        let taking = taking.map(|(lease, namespace)| (lease.clone(), namespace.clone()));
        let used: HashMap<_, _> = held
            .chain(taking)
            .filter(|(lease, _)| lease != but)
            .collect();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let of_namespace = used.values().filter(|it| *it == namespace).count();
        if in_cluster > 0 && count(used.len()) >= in_cluster {
            Some(Full::Cluster(in_cluster))
        } else if in_namespace > 0 && count(of_namespace) >= in_namespace {
            Some(Full::Namespace(in_namespace))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use wfe_core::execution::Source;
    use wfe_model::workflow_execution::WorkflowExecutionSpec;

    use super::*;
    use crate::watches::Caches;

    fn request(namespace: &str, name: &str) -> WorkflowExecution {
        let mut wfe = WorkflowExecution::new(name, WorkflowExecutionSpec::default());
        wfe.metadata.namespace = Some(namespace.to_owned());
        wfe.metadata.uid = Some(name.to_owned());
        wfe
    }

    fn target(name: &str) -> TargetHash {
        TargetHash::from(name)
    }

    /// Two locks are held, by WorkflowExecutions in `prod` and `dev`.
    async fn slots(cluster: u32, namespace: u32) -> Slots {
        let view = Arc::new(View::new(Caches::of(Vec::new()).await));
        for holder in [request("prod", "a"), request("dev", "b")] {
            let on = wfe_model::target::Target::parse(&format!("prod/Pod/{}", holder.name_any()));
            let lease = lock::new("run", &TargetHash::of(&on.expect("a target")));
            let taken = lock::taken(lease, &Source::of(&holder), Timestamp::now());
            view.record_lock_write(taken);
        }
        Slots::new(view, MaxRunning { cluster, namespace })
    }

    /// BR-WE-009
    #[tokio::test]
    async fn slots_are_given_out_up_to_each_limit() {
        let slots = slots(3, 0).await;
        let first = slots.take(&request("prod", "c"), &target("1"));
        assert!(first.is_ok());
        let second = slots.take(&request("prod", "d"), &target("2")).err();
        assert_eq!(second, Some(Full::Cluster(3)), "one slot is in use");
        assert_eq!(slots.next(), None);
        drop(first);
        let next = slots.next().expect("a waiting request");
        assert_eq!(next.name, "d");
        assert_eq!(slots.next(), None, "it waits no more");
        assert!(slots.take(&request("prod", "d"), &target("2")).is_ok());
    }

    /// BR-WE-009: a namespace that uses all of its slots keeps no other waiting.
    #[tokio::test]
    async fn slots_of_a_namespace_are_its_own() {
        let slots = slots(4, 1).await;
        for name in ["c", "d"] {
            let refused = slots.take(&request("prod", name), &target(name)).err();
            assert_eq!(refused, Some(Full::Namespace(1)));
        }
        let slot = slots.take(&request("test", "e"), &target("e"));
        assert!(slot.is_ok());
        let refused = slots.take(&request("test", "f"), &target("f")).err();
        assert_eq!(refused, Some(Full::Namespace(1)));
        drop(slot);
        let next = slots.next().expect("a waiting request");
        assert_eq!(next.name, "f", "the older ones may not run yet");
    }

    #[tokio::test]
    async fn slots_without_limits_are_always_free() {
        let slots = slots(0, 0).await;
        let taken: Vec<_> = ["c", "d", "e"]
            .iter()
            .map(|name| slots.take(&request("prod", name), &target(name)))
            .collect();
        assert!(taken.iter().all(Result::is_ok));
    }
}
