//! Read your writes: what a write returned stands in for the cached object until the cache shows
//! that version or a newer one.

use std::collections::HashMap;
use std::sync::Arc;

use kube::Resource;
use parking_lot::Mutex;

/// Written objects that the cache may not show yet, by a key of the caller's.
pub struct Written<K>(Mutex<HashMap<String, Arc<K>>>);

impl<K> Default for Written<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Resource> Written<K> {
    /// Remembers what a write returned; none forgets.
    pub fn put(&self, key: &str, object: Option<Arc<K>>) {
        let mut written = self.0.lock();
        match object {
            Some(object) => drop(written.insert(key.to_owned(), object)),
            None => drop(written.remove(key)),
        }
    }

    /// The newer of the two; a written one that the cache has caught up with is forgotten. The cache
    /// is read here: else what was read before could be older than what somebody else had forgotten.
    pub fn newest(&self, key: &str, cached: impl FnOnce() -> Option<Arc<K>>) -> Option<Arc<K>> {
        let mut written = self.0.lock();
        let cached = cached();
        let Some(ours) = written.get(key) else {
            return cached;
        };
        match &cached {
            Some(theirs) if version(theirs.as_ref()) >= version(ours.as_ref()) => {
                written.remove(key);
                cached
            }
            _ => Some(ours.clone()),
        }
    }
}

/// Versions of one resource can be compared as numbers (Kubernetes 1.35 says so, etcd always did).
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
    fn a_written_object_stands_in_until_the_cache_has_caught_up() {
        let written = Written::default();
        let seen = |cached: Option<&str>| {
            written
                .newest("a", || cached.map(pod))
                .map(|it| version(it.as_ref()))
        };
        assert_eq!(seen(Some("9")), Some(9));
        written.put("a", Some(pod("10")));
        assert_eq!(seen(Some("9")), Some(10));
        assert_eq!(seen(None), Some(10));
        assert_eq!(seen(Some("10")), Some(10));
        assert_eq!(
            seen(Some("9")),
            Some(9),
            "forgotten: the cache does not go back"
        );
    }
}
