//! Caches of what the API server has, kept by watches, and the queue of who should be looked at.
//!
//! Per kind: watch, prune what nobody reads, store, index by owner and target, and a trigger for
//! each WorkflowExecution that the change may matter to. Nothing is polled.

mod index;
mod prune;

use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, controller::ReconcileRequest};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use wfe_model::target::Target;
use wfe_model::workflow_execution::WorkflowExecution;

use self::index::Index;
use crate::names::{self, MANAGED_BY, MANAGER, TARGET_HASH, WORKFLOW_EXECUTION_UID};

/// What the watches have seen.
#[derive(Clone)]
pub struct Caches {
    /// WorkflowExecutions of the watched namespaces.
    pub workflow_executions: Store<WorkflowExecution>,
    jobs: Store<Job>,
    pods: Store<Pod>,
    leases: Store<Lease>,
    /// WorkflowExecutions by uid and by target hash.
    index: Arc<Mutex<Index<WorkflowExecution>>>,
    /// Pods by the uid of their WorkflowExecution and by target hash.
    pod_index: Arc<Mutex<Index<Pod>>>,
    execution_namespace: String,
}

/// Requests to look at a WorkflowExecution.
pub type Triggers = futures::stream::BoxStream<
    'static,
    Result<ReconcileRequest<WorkflowExecution>, watcher::Error>,
>;

impl Caches {
    /// Starts the watches: the caches, and the triggers that keep them going. Who does not read
    /// the triggers holds the watches up.
    pub fn start(
        client: &Client,
        watch_namespace: Option<&str>,
        execution_namespace: &str,
    ) -> (Self, Triggers) {
        let (workflow_executions, wfe_writer) = reflector::store();
        let (jobs, job_writer) = reflector::store();
        let (pods, pod_writer) = reflector::store();
        let (leases, lease_writer) = reflector::store();
        let caches = Self {
            workflow_executions,
            jobs,
            pods,
            leases,
            index: Arc::default(),
            pod_index: Arc::default(),
            execution_namespace: execution_namespace.to_owned(),
        };
        let wfe_api = watch_namespace.map_or_else(
            || Api::all(client.clone()),
            |it| Api::namespaced(client.clone(), it),
        );
        let ours = watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));

        let (index, pod_index) = (caches.index.clone(), caches.pod_index.clone());
        let wfe_events = watch(
            wfe_api,
            watcher::Config::default(),
            prune::workflow_execution,
            wfe_writer,
            move |event| {
                lock(&index).apply(event, wfe_keys);
            },
        )
        .map(|touched| touched.map(|wfe| vec![ObjectRef::from_obj(&wfe)]));
        let job_events = related(
            caches.clone(),
            watch(
                Api::namespaced(client.clone(), execution_namespace),
                ours.clone(),
                prune::job,
                job_writer,
                |_| (),
            ),
        );
        let pod_events = related(
            caches.clone(),
            watch(
                Api::namespaced(client.clone(), execution_namespace),
                ours.clone(),
                prune::pod,
                pod_writer,
                move |event| {
                    lock(&pod_index).apply(event, label_keys);
                },
            ),
        );
        let lease_events = related(
            caches.clone(),
            watch(
                Api::namespaced(client.clone(), execution_namespace),
                ours,
                prune::lease,
                lease_writer,
                |_| (),
            ),
        );

        let triggers = futures::stream::select_all([
            wfe_events.boxed(),
            job_events.boxed(),
            pod_events.boxed(),
            lease_events.boxed(),
        ]);
        let triggers = triggers.flat_map(|touched| {
            let requests = match touched {
                Ok(references) => references
                    .into_iter()
                    .map(|reference| Ok(reference.into()))
                    .collect(),
                Err(error) => {
                    tracing::warn!(%error, "a watch failed and is tried again");
                    Vec::new()
                }
            };
            futures::stream::iter(requests)
        });
        (caches, triggers.boxed())
    }

    /// Until every cache has been filled once.
    pub async fn synced(&self) -> Result<(), reflector::store::WriterDropped> {
        self.workflow_executions.wait_until_ready().await?;
        self.jobs.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.leases.wait_until_ready().await
    }

    /// A Job of the execution namespace.
    pub fn job(&self, name: &str) -> Option<Arc<Job>> {
        self.jobs
            .get(&ObjectRef::new(name).within(&self.execution_namespace))
    }

    /// The lock of a target.
    pub fn lock_of(&self, target_hash: &str) -> Option<Arc<Lease>> {
        self.leases
            .get(&ObjectRef::new(&names::lock_name(target_hash)).within(&self.execution_namespace))
    }

    /// Pods made for the WorkflowExecution of this uid.
    pub fn pods_of(&self, source_uid: &str) -> Vec<Arc<Pod>> {
        self.pods_by(source_uid)
    }

    /// Pods that work on a target, whoever's they are.
    pub fn pods_on(&self, target_hash: &str) -> Vec<Arc<Pod>> {
        self.pods_by(target_hash)
    }

    fn pods_by(&self, key: &str) -> Vec<Arc<Pod>> {
        lock(&self.pod_index)
            .of(key)
            .iter()
            .filter_map(|reference| self.pods.get(reference))
            .collect()
    }

    /// WorkflowExecutions with this uid or this target hash.
    fn workflow_executions_by(&self, key: &str) -> Vec<ObjectRef<WorkflowExecution>> {
        lock(&self.index).of(key)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    prune: impl FnMut(&mut K) + Send + 'static,
    writer: Writer<K>,
    mut observe: impl FnMut(&watcher::Event<K>) + Send + 'static,
) -> impl Stream<Item = Result<K, watcher::Error>> + Send
where
    K: Clone
        + DeserializeOwned
        + Resource<DynamicType = ()>
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    watcher(api, config)
        .default_backoff()
        .modify(prune)
        .inspect(move |event| {
            if let Ok(event) = event {
                observe(event);
            }
        })
        .reflect(writer)
        .touched_objects()
}

/// The WorkflowExecutions that a change of a Job, pod or Lease may matter to: the one it is for,
/// and those on its target that have not ended.
fn related<K: Resource<DynamicType = ()> + Send>(
    caches: Caches,
    events: impl Stream<Item = Result<K, watcher::Error>> + Send,
) -> impl Stream<Item = Result<Vec<ObjectRef<WorkflowExecution>>, watcher::Error>> + Send {
    events.map(move |touched| {
        touched.map(|object| {
            let labels = object.labels();
            let owner = labels
                .get(WORKFLOW_EXECUTION_UID)
                .map(|uid| caches.workflow_executions_by(uid));
            let target = labels
                .get(TARGET_HASH)
                .map(|hash| caches.workflow_executions_by(hash))
                .unwrap_or_default();
            let on_target = target.into_iter().filter(|reference| {
                let phase = caches
                    .workflow_executions
                    .get(reference)
                    .and_then(|wfe| wfe.status.as_ref()?.phase);
                !phase.is_some_and(wfe_model::workflow_execution::Phase::is_final)
            });
            owner.into_iter().flatten().chain(on_target).collect()
        })
    })
}

fn wfe_keys(wfe: &WorkflowExecution) -> Vec<String> {
    let target = Target::parse(&wfe.spec.target_resource).map(|target| names::target_hash(&target));
    wfe.uid().into_iter().chain(target).collect()
}

fn label_keys<K: Resource>(object: &K) -> Vec<String> {
    [WORKFLOW_EXECUTION_UID, TARGET_HASH]
        .iter()
        .filter_map(|label| object.labels().get(*label).cloned())
        .collect()
}
