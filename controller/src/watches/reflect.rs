//! Cache of one watched kind: prunes, indexes and stores its objects, then reports the change.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::Resource;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use parking_lot::Mutex;

use super::index::{Index, Key};

/// Objects of one kind by name, by uid of the WorkflowExecution and by target.
pub struct Cache<K: Resource<DynamicType = ()> + Clone + 'static> {
    store: Store<K>,
    index: Arc<Mutex<Index<K>>>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            index: self.index.clone(),
        }
    }
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Cache<K> {
    /// The object with this name.
    pub fn get(&self, reference: &ObjectRef<K>) -> Option<Arc<K>> {
        self.store.get(reference)
    }

    /// References to the objects with index key `key`.
    pub fn references(&self, key: &Key) -> Vec<ObjectRef<K>> {
        self.index.lock().of(key)
    }

    /// The objects with index key `key`.
    pub fn with(&self, key: &Key) -> Vec<Arc<K>> {
        let references = self.references(key).into_iter();
        references.filter_map(|it| self.store.get(&it)).collect()
    }

    /// Every object.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    /// The underlying store.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Waits until the cache has been filled once.
    pub async fn synced(&self) -> Result<(), WriterDropped> {
        self.store.wait_until_ready().await
    }
}

/// A change of a cache.
pub enum Change<K> {
    /// One object was created, changed or deleted.
    Object {
        /// The pruned object.
        object: Box<K>,
        /// Whether the object was deleted.
        deleted: bool,
    },
    /// A new list was stored. Objects that were deleted since the old list are not reported.
    Relisted,
}

impl<K> Change<K> {
    /// Converts the object.
    pub fn map<T>(self, convert: impl FnOnce(K) -> T) -> Change<T> {
        match self {
            Self::Object { object, deleted } => Change::Object {
                object: Box::new(convert(*object)),
                deleted,
            },
            Self::Relisted => Change::Relisted,
        }
    }
}

/// Prunes the objects of `events`, indexes them by `keys`, passes each event to `inspect`, stores
/// the objects and then reports the change. The cache is filled only while the returned stream is
/// polled.
pub fn reflect<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    prune: impl FnMut(&mut K) + Send,
    keys: impl Fn(&K) -> Vec<Key> + Send,
    mut inspect: impl FnMut(&Event<K>) + Send,
) -> (
    Cache<K>,
    impl Stream<Item = Result<Change<K>, watcher::Error>> + Send,
)
where
    K: Clone + Resource<DynamicType = ()> + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let index: Arc<Mutex<Index<K>>> = Arc::default();
    let cache = Cache {
        store,
        index: index.clone(),
    };
    let stored = events
        .modify(prune)
        .inspect(move |event| {
            if let Ok(event) = event {
                index.lock().apply(event, &keys);
                inspect(event);
            }
        })
        .reflect(writer);
    let changes = stored.filter_map(|event| {
        std::future::ready(match event {
            Ok(Event::Apply(object)) => Some(Ok(Change::Object {
                object: Box::new(object),
                deleted: false,
            })),
            Ok(Event::Delete(object)) => Some(Ok(Change::Object {
                object: Box::new(object),
                deleted: true,
            })),
            Ok(Event::InitDone) => Some(Ok(Change::Relisted)),
            // The store takes over a list only at `InitDone`.
            Ok(Event::Init | Event::InitApply(_)) => None,
            Err(error) => Some(Err(error)),
        })
    });
    (cache, changes)
}
