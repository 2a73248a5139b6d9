//! Read-your-writes: the object that a write returned replaces the cached object until the cache
//! shows that version or a newer one.

use std::collections::HashMap;
use std::sync::Arc;

use kube::Resource;
use parking_lot::Mutex;

/// Written objects that the cache may not show yet, by a key that the caller chooses.
pub struct Written<K>(Mutex<HashMap<String, Arc<K>>>);

impl<K> Default for Written<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Resource> Written<K> {
    /// Stores the object that a write returned, and removes those that the cache has caught up with.
    pub fn put(&self, key: &str, object: Arc<K>, cached: impl Fn(&K) -> Option<Arc<K>>) {
        let mut written = self.0.lock();
        written.retain(|_, own| {
            cached(own).is_none_or(|it| version(it.as_ref()) < version(own.as_ref()))
        });
        written.insert(key.to_owned(), object);
    }

    /// Removes an object.
    pub fn remove(&self, key: &str) {
        self.0.lock().remove(key);
    }

    /// The written objects that the cache has not caught up with.
    pub fn written(&self) -> Vec<Arc<K>> {
        self.0.lock().values().cloned().collect()
    }

    /// Returns the newer of the written and the cached object, and removes a written object that
    /// the cache has caught up with. `cached` is called under the lock: otherwise another thread
    /// could remove the written object after this thread has read an older cached one.
    pub fn newest(&self, key: &str, cached: impl FnOnce() -> Option<Arc<K>>) -> Option<Arc<K>> {
        let mut written = self.0.lock();
        let cached = cached();
        let Some(own) = written.get(key) else {
            return cached;
        };
        match &cached {
            Some(shown) if version(shown.as_ref()) >= version(own.as_ref()) => {
                written.remove(key);
                cached
            }
            _ => Some(own.clone()),
        }
    }
}

/// Resource versions of one resource are ordered numbers: documented since Kubernetes 1.35, and
/// revisions of etcd before.
fn version<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(version: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.resource_version = Some(version.to_owned());
        Arc::new(pod)
    }

    #[test]
    fn written_object_until_cache_catches_up_is_returned() {
        let written = Written::default();
        let seen = |cached: Option<&str>| {
            written
                .newest("a", || cached.map(pod))
                .map(|it| version(it.as_ref()))
        };
        assert_eq!(seen(Some("9")), Some(9));
        written.put("a", pod("10"), |_| None);
        assert_eq!(seen(Some("9")), Some(10));
        assert_eq!(seen(None), Some(10));
        assert_eq!(seen(Some("10")), Some(10));
        assert_eq!(
            seen(Some("9")),
            Some(9),
            "the written object was removed, since a cache does not go back"
        );
        written.put("a", pod("11"), |_| None);
        written.put("b", pod("12"), |_| Some(pod("11")));
        let left = written.written();
        let left: Vec<_> = left.iter().map(|it| version(it.as_ref())).collect();
        assert_eq!(left, [12], "the cache has caught up with the first");
    }
}
