//! Whether two executions were ever alive on one target: from the watch log of Jobs and pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::WatchEvent;
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use wfe_tests::TestNamespace;
use wfe_tests::system::{job_has_ended, pod_is_alive};

const TARGET: &str = "kubernaut.ai/target-hash";
const SOURCE: &str = "kubernaut.ai/workflow-execution-uid";

/// Watches from the beginning of an execution namespace.
pub struct Overlap {
    log: Arc<Mutex<Log>>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Log {
    /// Whatever had company.
    overlaps: Vec<String>,
    /// Uids of Jobs that were ever alive.
    seen: BTreeSet<String>,
}

impl Overlap {
    pub fn watch(namespace: &TestNamespace) -> Self {
        let log: Arc<Mutex<Log>> = Arc::default();
        let tasks = vec![
            tokio::spawn(follow(namespace.api::<Pod>(), log.clone(), pod_is_alive)),
            tokio::spawn(follow(namespace.api::<Job>(), log.clone(), |job| {
                !job_has_ended(job)
            })),
        ];
        Self { log, tasks }
    }

    /// What was seen: how many executions; fails if two were alive on one target.
    pub fn end(self) -> usize {
        for task in self.tasks {
            assert!(!task.is_finished(), "the watch has seen everything");
            task.abort();
        }
        let log = self.log.lock().expect("not poisoned");
        assert_eq!(log.overlaps, [] as [&str; 0]);
        log.seen.len()
    }
}

/// Every event since the namespace is there, in the order of the API server.
async fn follow<K>(api: Api<K>, log: Arc<Mutex<Log>>, is_alive: impl Fn(&K) -> bool)
where
    K: Clone
        + Debug
        + DeserializeOwned
        + Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    let mut alive: BTreeMap<String, HashMap<String, String>> = BTreeMap::new();
    let mut version = "0".to_owned();
    loop {
        let params = kube::api::WatchParams::default().timeout(290);
        let mut events = api.watch(&params, &version).await.expect("watched").boxed();
        while let Some(event) = events.next().await {
            let (object, lives) = match event.expect("an event") {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let lives = is_alive(&object);
                    (object, lives)
                }
                WatchEvent::Deleted(object) => (object, false),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => panic!("the watch has lost events: {status:?}"),
            };
            version = object.resource_version().expect("a version");
            let label = |key: &str| object.labels().get(key).cloned().unwrap_or_default();
            let on_target = alive.entry(label(TARGET)).or_default();
            if !lives {
                on_target.remove(&object.name_any());
                continue;
            }
            on_target.insert(object.name_any(), label(SOURCE));
            let mut log = log.lock().expect("not poisoned");
            if K::kind(&()) == "Job" {
                log.seen.insert(object.uid().expect("a uid"));
            }
            if on_target.len() > 1 {
                log.overlaps.push(format!("{on_target:?}"));
            }
        }
    }
}
