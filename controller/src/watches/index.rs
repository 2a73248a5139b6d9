//! Index of cached objects by uid of the WorkflowExecution and by target; a store finds objects
//! only by name.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use kube::Resource;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use wfe_core::names::{TargetHash, Uid};

/// Index key of an object.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Key {
    /// Uid of the WorkflowExecution.
    Uid(Uid),
    /// Target of the WorkflowExecution.
    Target(TargetHash),
    /// Namespace of the WorkflowExecution.
    Namespace(String),
    /// WorkflowExecutions that have not ended.
    Unfinished,
}

/// References to objects by key; fed with the same events as the store.
pub(super) struct Index<K: Resource<DynamicType = ()>> {
    current: Keys<K>,
    /// Filled while a list is read; replaces `current` when the list is complete.
    listing: Keys<K>,
}

/// One reference to each object, which all its keys share.
struct Keys<K: Resource<DynamicType = ()>> {
    by_key: HashMap<Key, HashSet<Arc<ObjectRef<K>>>>,
    of_object: HashMap<Arc<ObjectRef<K>>, Vec<Key>>,
}

impl<K: Resource<DynamicType = ()>> Default for Keys<K> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
            of_object: HashMap::new(),
        }
    }
}

impl<K: Resource<DynamicType = ()>> Default for Index<K> {
    fn default() -> Self {
        Self {
            current: Keys::default(),
            listing: Keys::default(),
        }
    }
}

impl<K: Resource<DynamicType = ()>> Index<K>
where
    ObjectRef<K>: Clone + Eq + Hash,
{
    pub(super) fn apply(&mut self, event: &Event<K>, keys: impl Fn(&K) -> Vec<Key>) {
        match event {
            Event::Apply(object) => self.current.insert(object, keys(object)),
            Event::Delete(object) => self.current.remove(&ObjectRef::from_obj(object)),
            Event::Init => self.listing = Keys::default(),
            Event::InitApply(object) => self.listing.insert(object, keys(object)),
            Event::InitDone => self.current = std::mem::take(&mut self.listing),
        }
    }

    /// References to the objects with index key `key`.
    pub(super) fn of(&self, key: &Key) -> Vec<ObjectRef<K>> {
        self.current
            .by_key
            .get(key)
            .into_iter()
            .flatten()
            .map(|reference| ObjectRef::clone(reference))
            .collect()
    }
}

impl<K: Resource<DynamicType = ()>> Keys<K>
where
    ObjectRef<K>: Clone + Eq + Hash,
{
    fn insert(&mut self, object: &K, keys: Vec<Key>) {
        let meta = object.meta();
        let name = meta.name.as_deref().unwrap_or_default();
        let mut reference = ObjectRef::new(name);
        reference.namespace.clone_from(&meta.namespace);
        self.remove(&reference);
        let reference = Arc::new(reference);
        for key in &keys {
            self.by_key
                .entry(key.clone())
                .or_default()
                .insert(reference.clone());
        }
        self.of_object.insert(reference, keys);
    }

    fn remove(&mut self, reference: &ObjectRef<K>) {
        for key in self.of_object.remove(reference).unwrap_or_default() {
            if let Some(references) = self.by_key.get_mut(&key) {
                references.remove(reference);
                if references.is_empty() {
                    self.by_key.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::ResourceExt;

    use super::*;

    fn pod(name: &str, label: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.labels_mut().insert("l".to_owned(), label.to_owned());
        pod
    }

    fn names(index: &Index<Pod>, key: &str) -> Vec<String> {
        let mut names: Vec<_> = index
            .of(&Key::Uid(key.into()))
            .into_iter()
            .map(|reference| reference.name)
            .collect();
        names.sort();
        names
    }

    #[test]
    fn index_after_changes_deletes_and_relist_matches_the_objects() {
        let mut index = Index::default();
        let mut apply = |event| {
            let key = |label: &String| Key::Uid(label.as_str().into());
            index.apply(&event, |pod: &Pod| pod.labels().values().map(key).collect());
            (names(&index, "a"), names(&index, "b"))
        };
        assert_eq!(apply(Event::Apply(pod("1", "a"))).0, ["1"]);
        assert_eq!(apply(Event::Apply(pod("2", "a"))).0, ["1", "2"]);
        assert_eq!(
            apply(Event::Apply(pod("1", "b"))),
            (vec!["2".to_owned()], vec!["1".to_owned()])
        );
        assert_eq!(apply(Event::Delete(pod("2", "a"))).0, [] as [&str; 0]);
        apply(Event::Init);
        assert_eq!(
            apply(Event::InitApply(pod("3", "a"))).1,
            ["1"],
            "the old list stays until the new list is complete"
        );
        assert_eq!(apply(Event::InitDone), (vec!["3".to_owned()], vec![]));
    }
}
