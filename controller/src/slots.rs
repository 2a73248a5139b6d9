//! How many executions may run at the same time. An execution runs from when its target's lock is
//! taken until the lock is freed, so the locks are counted and nothing else is kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use wfe_core::line::age;
use wfe_core::lock;
use wfe_core::names::{TargetHash, lock_name};
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

impl MaxRunning {
    /// The limit that a request meets although a slot is free: an older request gets it.
    fn reached(self) -> Full {
        match self {
            Self {
                cluster: 0,
                namespace,
            } => Full::Namespace(namespace),
            Self { cluster, .. } => Full::Cluster(cluster),
        }
    }
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
    waiting: BTreeMap<Key, ObjectRef<WorkflowExecution>>,
}

/// As [`age`].
type Key = (Option<Timestamp>, Option<String>);

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

    /// Takes a slot for `wfe`. Without one, or if an older request waits for it, it is remembered as
    /// waiting.
    pub fn take(&self, wfe: &WorkflowExecution, target: &TargetHash) -> Result<Slot<'_>, Full> {
        let lease = lock_name(target);
        let namespace = wfe.namespace().unwrap_or_default();
        let key = age(wfe);
        let mut state = self.state.lock();
        let used = self.used(&state, &lease);
        let full = used.as_ref().and_then(|it| it.full(self.max, &namespace));
        let full = full.or_else(|| {
            let older = state.waiting.range(..key.clone());
            let mut older = older.filter(|(key, it)| self.waits(key, it));
            let used = used.as_ref()?;
            let next = older.any(|(_, it)| used.full(self.max, namespace_of(it)).is_none());
            next.then(|| self.max.reached())
        });
        if let Some(full) = full {
            state.waiting.insert(key, ObjectRef::from_obj(wfe));
            return Err(full);
        }
        state.waiting.remove(&key);
        state.taking.insert(lease.clone(), namespace);
        drop(state);
        Ok(Slot { slots: self, lease })
    }

    /// The oldest WorkflowExecutions that wait for a slot and may have one now. They wait no more: each
    /// takes a slot, or waits again.
    pub fn next(&self) -> Vec<ObjectRef<WorkflowExecution>> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            return Vec::new();
        }
        let Some(mut used) = self.used(&state, "") else {
            return Vec::new();
        };
        let (mut next, mut done) = (Vec::new(), Vec::new());
        for (key, reference) in &state.waiting {
            if used.is_full(self.max) {
                break;
            }
            let waits = self.waits(key, reference);
            let namespace = namespace_of(reference);
            if waits && used.full(self.max, namespace).is_none() {
                used.add(namespace);
                next.push(reference.clone());
            } else if waits {
                continue;
            }
            done.push(key.clone());
        }
        for key in done {
            state.waiting.remove(&key);
        }
        next
    }

    /// Whether a remembered WorkflowExecution still exists and has not started.
    fn waits(&self, key: &Key, reference: &ObjectRef<WorkflowExecution>) -> bool {
        let newest = self.view.newest(reference);
        newest.is_some_and(|it| it.metadata.uid == key.1 && it.is_pending())
    }

    /// The slots in use, except that of the Lease `but`; `None` without a limit.
    fn used(&self, state: &State, but: &str) -> Option<Used> {
        if self.max.cluster == 0 && self.max.namespace == 0 {
            return None;
        }
        let mut used = Used::default();
        for lease in self.view.locks() {
            let name = lease.name_any();
            if name != but
                && !state.taking.contains_key(&name)
                && let Some(holder) = lock::holding_execution(&lease)
            {
                used.add(&holder.namespace);
            }
        }
        for (_, namespace) in state.taking.iter().filter(|(lease, _)| *lease != but) {
            used.add(namespace);
        }
        Some(used)
    }
}

fn namespace_of(reference: &ObjectRef<WorkflowExecution>) -> &str {
    reference.namespace.as_deref().unwrap_or_default()
}

/// Slots in use.
#[derive(Default)]
struct Used {
    all: u32,
    by_namespace: HashMap<String, u32>,
}

impl Used {
    fn add(&mut self, namespace: &str) {
        self.all += 1;
        *self.by_namespace.entry(namespace.to_owned()).or_default() += 1;
    }

    fn is_full(&self, max: MaxRunning) -> bool {
        max.cluster > 0 && self.all >= max.cluster
    }

    /// The limit that is reached for `namespace`.
    fn full(&self, max: MaxRunning, namespace: &str) -> Option<Full> {
        let of_namespace = self.by_namespace.get(namespace).copied().unwrap_or(0);
        if self.is_full(max) {
            Some(Full::Cluster(max.cluster))
        } else if max.namespace > 0 && of_namespace >= max.namespace {
            Some(Full::Namespace(max.namespace))
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

    /// Two locks are held, by WorkflowExecutions in `prod` and `dev`; others exist.
    async fn slots(cluster: u32, namespace: u32) -> Slots {
        let others = [("prod", "c"), ("prod", "d"), ("test", "e"), ("test", "f")];
        let others = others.map(|(namespace, name)| request(namespace, name));
        let view = Arc::new(View::new(Caches::of(others.to_vec()).await));
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
        let gone = slots.take(&request("prod", "a0"), &target("3")).err();
        assert_eq!(gone, Some(Full::Cluster(3)));
        assert_eq!(names(&slots), [] as [&str; 0]);
        drop(first);
        let newer = slots.take(&request("test", "e"), &target("4")).err();
        assert_eq!(newer, Some(Full::Cluster(3)), "an older one waits");
        assert_eq!(names(&slots), ["d"], "the one that is gone is forgotten");
        assert_eq!(names(&slots), ["e"], "if the older one does not take it");
        assert!(slots.take(&request("prod", "d"), &target("2")).is_ok());
        assert_eq!(names(&slots), [] as [&str; 0], "nobody waits");
    }

    fn names(slots: &Slots) -> Vec<String> {
        slots.next().into_iter().map(|it| it.name).collect()
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
        assert_eq!(names(&slots), ["f"], "the older ones may not run yet");
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
