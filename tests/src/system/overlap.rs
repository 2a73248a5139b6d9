//! Detects two executions that are alive on one target at the same time, from the watch events of
//! Jobs and pods.

#![expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    reason = "a checker: a test fails by panicking"
)]

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::WatchEvent;
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::look::{job_has_ended, pod_is_alive};
use crate::TestNamespace;

const TARGET: &str = "kubernaut.ai/target-hash";
const SOURCE: &str = "kubernaut.ai/workflow-execution-uid";

/// Watches an execution namespace from its creation.
pub struct Overlap {
    log: Arc<Mutex<Log>>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Log {
    /// Objects that were alive on one target together.
    overlaps: Vec<String>,
    /// Pods that were ever alive, by the uid of their WorkflowExecution.
    seen: BTreeMap<String, BTreeSet<String>>,
}

impl Overlap {
    /// Starts watching.
    pub fn watch(namespace: &TestNamespace) -> Self {
        let log: Arc<Mutex<Log>> = Arc::default();
        let tasks = vec![
            tokio::spawn(watch(namespace.api::<Pod>(), log.clone(), pod_is_alive)),
            tokio::spawn(watch(namespace.api::<Job>(), log.clone(), |job| {
                !job_has_ended(job)
            })),
        ];
        Self { log, tasks }
    }

    /// Number of pods seen of a WorkflowExecution.
    pub fn pods_of(&self, source: &str) -> usize {
        let log = self.log.lock();
        log.seen.get(source).map_or(0, BTreeSet::len)
    }

    /// Number of WorkflowExecutions whose pods were seen; panics if two were alive on one target.
    pub fn end(self) -> usize {
        for task in self.tasks {
            assert!(!task.is_finished(), "a watch ended and missed events");
            task.abort();
        }
        let log = self.log.lock();
        assert_eq!(log.overlaps, [] as [&str; 0]);
        log.seen.len()
    }
}

/// Processes all watch events since the creation of the namespace, in order.
async fn watch<K>(api: Api<K>, log: Arc<Mutex<Log>>, is_alive: impl Fn(&K) -> bool)
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
            let (object, alive_now) = match event.expect("an event") {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let alive_now = is_alive(&object);
                    (object, alive_now)
                }
                WatchEvent::Deleted(object) => (object, false),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => panic!("the watch has lost events: {status:?}"),
            };
            version = object.resource_version().expect("a version");
            let label = |key: &str| object.labels().get(key).cloned().unwrap_or_default();
            let on_target = alive.entry(label(TARGET)).or_default();
            if !alive_now {
                on_target.remove(&object.name_any());
                continue;
            }
            on_target.insert(object.name_any(), label(SOURCE));
            let mut log = log.lock();
            if K::kind(&()) == "Pod" {
                let pods = log.seen.entry(label(SOURCE)).or_default();
                pods.insert(object.uid().expect("a uid"));
            }
            // A pipeline may run several pods at once.
            let sources: BTreeSet<_> = on_target.values().collect();
            if sources.len() > 1 {
                log.overlaps.push(format!("{on_target:?}"));
            }
        }
    }
}
