//! One watched kind: pruned, indexed and stored, then reported.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::Resource;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use parking_lot::Mutex;

use super::index::{Index, Key};

/// Objects of one kind, by name, by the uid of their WorkflowExecution and by target.
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
    /// The object of this name.
    pub fn get(&self, reference: &ObjectRef<K>) -> Option<Arc<K>> {
        self.store.get(reference)
    }

    /// The names of the objects that have `key`.
    pub fn references(&self, key: &Key) -> Vec<ObjectRef<K>> {
        self.index.lock().of(key)
    }

    /// The objects that have `key`.
    pub fn with(&self, key: &Key) -> Vec<Arc<K>> {
        let references = self.references(key).into_iter();
        references.filter_map(|it| self.store.get(&it)).collect()
    }

    /// Every object.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    /// The store alone.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Until the cache has been filled once.
    pub async fn synced(&self) -> Result<(), WriterDropped> {
        self.store.wait_until_ready().await
    }
}

/// A change that a watch reports.
pub enum Touched<K> {
    /// One object has changed or is gone.
    One {
        /// As pruned.
        object: Box<K>,
        /// Whether it was deleted.
        gone: bool,
    },
    /// A new list was stored: what vanished in between is not reported one by one.
    All,
}

impl<K> Touched<K> {
    /// The same report of another form of the object.
    pub fn map<T>(self, change: impl FnOnce(K) -> T) -> Touched<T> {
        match self {
            Self::One { object, gone } => Touched::One {
                object: Box::new(change(*object)),
                gone,
            },
            Self::All => Touched::All,
        }
    }
}

/// Prunes, indexes by `keys` and stores what `events` say, shows it to `inspect`, then reports it.
/// The caches are filled while the stream is polled.
pub fn follow<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    prune: impl FnMut(&mut K) + Send,
    keys: fn(&K) -> Vec<Key>,
    mut inspect: impl FnMut(&Event<K>) + Send,
) -> (
    Cache<K>,
    impl Stream<Item = Result<Touched<K>, watcher::Error>> + Send,
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
                index.lock().apply(event, keys);
                inspect(event);
            }
        })
        .reflect(writer);
    let touched = stored.filter_map(|event| {
        std::future::ready(match event {
            Ok(Event::Apply(object)) => Some(Ok(Touched::One {
                object: Box::new(object),
                gone: false,
            })),
            Ok(Event::Delete(object)) => Some(Ok(Touched::One {
                object: Box::new(object),
                gone: true,
            })),
            Ok(Event::InitDone) => Some(Ok(Touched::All)),
            // Not stored yet.
            Ok(Event::Init | Event::InitApply(_)) => None,
            Err(error) => Some(Err(error)),
        })
    });
    (cache, touched)
}
