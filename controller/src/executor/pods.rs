//! The pods of one engine's executions: their cache and the reads of pods and Events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use wfe_core::execution::{Alive, PodMaker, Waiting, controller_of, is_alive};
use wfe_core::names::{TARGET_HASH, TargetHash, Uid, WORKFLOW_EXECUTION_UID};
use wfe_core::pod::{prune, startup_diagnosis};
use wfe_core::seen::Pod;
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::ExecutionRef;

use super::unanswered::Unanswered;
use crate::watches::{
    Cache, Changes, Key, OwnerLabels, StartTimes, owner_changes, pods_of, reflect,
};

/// Slow starts that are diagnosed at the same time.
const DIAGNOSES_AT_A_TIME: usize = 4;

/// The pods of one engine's executions in the execution namespace.
pub(super) struct Pods {
    api: Api<Pod>,
    events: Api<Event>,
    diagnoses: Diagnoses,
    cache: Cache<Pod>,
    maker: PodMaker,
}

/// Diagnoses of slow starts, by uid of the pod, or of the execution if it has no pod.
struct Diagnoses {
    known: Mutex<HashMap<String, Diagnosis>>,
    turn: Semaphore,
}

impl Default for Diagnoses {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            turn: Semaphore::new(DIAGNOSES_AT_A_TIME),
        }
    }
}

impl Diagnoses {
    /// A diagnosis that can be used again.
    fn get(&self, uid: &str) -> Option<Diagnosis> {
        let mut known = self.known.lock();
        known.retain(|_, diagnosis| diagnosis.at.elapsed() < diagnosis.max_age());
        known.get(uid).cloned()
    }

    fn put(&self, uid: &str, waiting: Option<Waiting>) {
        let at = Instant::now();
        let diagnosis = Diagnosis { at, waiting };
        self.known.lock().insert(uid.to_owned(), diagnosis);
    }
}

#[derive(Clone)]
struct Diagnosis {
    at: Instant,
    waiting: Option<Waiting>,
}

impl Diagnosis {
    /// Where the Events have said nothing yet, they may soon.
    fn max_age(&self) -> Duration {
        match self.waiting {
            Some(_) => Duration::from_mins(1),
            None => Duration::from_secs(20),
        }
    }
}

impl Pods {
    /// Watches the pods of `maker`. Other pods are ignored: any client can set labels. `began` returns when
    /// the workflow's first container of a pod started, which is recorded in `start_times`.
    pub(super) fn start(
        client: &Client,
        namespace: &str,
        engine: Engine,
        maker: PodMaker,
        began: fn(&Pod) -> Option<Timestamp>,
        start_times: &StartTimes,
    ) -> (Self, Changes) {
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let events = watcher(api.clone(), pods_of(engine)).default_backoff();
        let start_times = start_times.clone();
        let keys = move |pod: &Pod| {
            if maker.made(pod) {
                OwnerLabels::keys(pod)
            } else {
                Vec::new()
            }
        };
        let began = move |pod: &Pod| controller_of(pod, maker.kind).and_then(|_| began(pod));
        let (cache, changes) = reflect(events, prune, keys, move |event| {
            record_start(&start_times, began, event);
        });
        let pods = Self {
            api,
            events: Api::namespaced(client.clone(), namespace),
            diagnoses: Diagnoses::default(),
            cache,
            maker,
        };
        (pods, owner_changes(changes))
    }

    /// The cached pods of a WorkflowExecution.
    pub(super) fn of(&self, source: &Uid) -> Vec<Arc<Pod>> {
        self.cache.with(&Key::Uid(source.clone()))
    }

    /// Whether the cache has a live pod of a WorkflowExecution.
    pub(super) fn has_live(&self, source: &Uid) -> bool {
        self.of(source).iter().any(|pod| is_alive(pod))
    }

    /// The cached pods on the target that have not ended.
    pub(super) fn alive_on(&self, target: &TargetHash) -> Vec<Alive> {
        let pods = self.cache.with(&Key::Target(target.clone()));
        let alive = pods.iter().filter(|pod| is_alive(pod));
        let alive = alive.filter_map(|pod| Alive::read("pod", pod.as_ref()));
        alive.collect()
    }

    /// Waits until the cache has been filled once.
    pub(super) async fn synced(&self) -> Result<(), WriterDropped> {
        self.cache.synced().await
    }

    /// Reads the pods of a WorkflowExecution from the API server.
    pub(super) async fn list_of(&self, source: &str) -> Result<Vec<Arc<Pod>>, Unanswered> {
        self.list(WORKFLOW_EXECUTION_UID, source).await
    }

    /// Reads from the API server whether a pod of a WorkflowExecution is alive.
    pub(super) async fn is_any_alive_of(&self, source: &Uid) -> Result<bool, Unanswered> {
        let pods = self.list_of(source.as_str()).await?;
        Ok(pods.iter().any(|pod| is_alive(pod)))
    }

    /// Reads from the API server whether a pod is alive on a target.
    pub(super) async fn is_any_alive_on(&self, target: &TargetHash) -> Result<bool, Unanswered> {
        let pods = self.list(TARGET_HASH, target.as_str()).await?;
        Ok(pods.iter().any(|pod| is_alive(pod)))
    }

    async fn list(&self, label: &str, value: &str) -> Result<Vec<Arc<Pod>>, Unanswered> {
        let selector = format!("{label}={value}");
        let listed = self
            .api
            .list(&ListParams::default().labels(&selector))
            .await;
        let listed = listed.map_err(Unanswered::of("list the pods"))?;
        let made = listed.items.into_iter().filter(|pod| self.maker.made(pod));
        Ok(made.map(Arc::new).collect())
    }

    /// Reads the Events of an execution's pod, or of the execution if it has no pod, and derives why
    /// the execution does not start.
    ///
    /// The API server searches all Events of the namespace for this: an answer is used again for a
    /// while, and few are asked for at the same time.
    pub(super) async fn startup_diagnosis(
        &self,
        reference: &ExecutionRef,
        source: &Uid,
    ) -> Result<Option<Waiting>, Unanswered> {
        let pods = self.of(source);
        let pod = pods.first().and_then(|pod| pod.metadata.uid.as_ref());
        let uid = pod.unwrap_or(&reference.uid);
        if let Some(known) = self.diagnoses.get(uid) {
            return Ok(known.waiting);
        }
        let _turn = self.diagnoses.turn.acquire().await;
        let diagnosis = self.diagnose(uid).await?;
        self.diagnoses.put(uid, diagnosis.clone());
        Ok(diagnosis)
    }

    async fn diagnose(&self, uid: &str) -> Result<Option<Waiting>, Unanswered> {
        let selector = format!("involvedObject.uid={uid}");
        let selected = ListParams::default().fields(&selector);
        match self.events.list(&selected).await {
            Ok(listed) => Ok(startup_diagnosis(&listed.items)),
            // The reason is optional: a missing permission must not delay the execution.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(
                    error = status.message,
                    "cannot list Events, startup diagnosis is missing"
                );
                Ok(None)
            }
            Err(error) => Err(Unanswered::of("list the Events")(error)),
        }
    }
}

/// Records the start time of the workflow's first container.
fn record_start(
    start_times: &StartTimes,
    began: impl Fn(&Pod) -> Option<Timestamp>,
    event: &watcher::Event<Pod>,
) {
    let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) | watcher::Event::Delete(pod)) =
        event
    else {
        return;
    };
    if let (Some(started_at), Some(uid)) = (began(pod), OwnerLabels::of(pod).uid) {
        start_times.record(uid, started_at);
    }
}
