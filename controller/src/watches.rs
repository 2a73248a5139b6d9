//! Caches of what the API server has, kept by watches, and the queue of who should be looked at.
//!
//! Per kind: watch, prune what nobody reads, store, index by owner and target, and a trigger for
//! each WorkflowExecution that the change may matter to. Nothing is polled.

mod concerned;
mod index;
pub(crate) mod prune;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, controller::ReconcileRequest};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use wfe_model::target::Target;
use wfe_model::workflow_execution::WorkflowExecution;

use self::index::Index;
use crate::executor::job::began;
use crate::names::{self, MANAGED_BY, MANAGER, PAUSED, TARGET_HASH, WORKFLOW_EXECUTION_UID};

/// What the watches have seen.
#[derive(Clone)]
pub struct Caches {
    /// WorkflowExecutions of the watched namespaces.
    pub workflow_executions: Store<WorkflowExecution>,
    jobs: Store<Job>,
    pods: Store<Pod>,
    leases: Store<Lease>,
    namespaces: Store<PartialObjectMeta<Namespace>>,
    /// WorkflowExecutions by uid and by target hash.
    index: Arc<Mutex<Index<WorkflowExecution>>>,
    /// Jobs by the uid of their WorkflowExecution and by target hash.
    job_index: Arc<Mutex<Index<Job>>>,
    /// Pods by the uid of their WorkflowExecution and by target hash.
    pod_index: Arc<Mutex<Index<Pod>>>,
    /// Since when a container of a WorkflowExecution runs or has run, by its uid: pods say it, and
    /// this stays when they are gone.
    began: Arc<Mutex<HashMap<String, Timestamp>>>,
    /// Wakes whoever looks for what a WorkflowExecution may have left when it vanished.
    vanished: Arc<Notify>,
    execution_namespace: String,
}

/// Requests to look at a WorkflowExecution.
pub type Triggers = BoxStream<'static, Result<ReconcileRequest<WorkflowExecution>, watcher::Error>>;

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
        let (namespaces, namespace_writer) = reflector::store();
        let caches = Self {
            workflow_executions,
            jobs,
            pods,
            leases,
            namespaces,
            index: Arc::default(),
            job_index: Arc::default(),
            pod_index: Arc::default(),
            began: Arc::default(),
            vanished: Arc::default(),
            execution_namespace: execution_namespace.to_owned(),
        };
        let api: Api<DeserializeGuard<WorkflowExecution>> = watch_namespace.map_or_else(
            || Api::all(client.clone()),
            |it| Api::namespaced(client.clone(), it),
        );
        let events = watcher(api, watcher::Config::default()).default_backoff();
        let (index, began_by_uid) = (caches.index.clone(), caches.began.clone());
        let kept = keep(
            events.filter_map(valid),
            prune::workflow_execution,
            wfe_writer,
            move |event| {
                let mut index = lock(&index);
                index.apply(event, wfe_keys);
                if matches!(event, Event::InitDone) {
                    lock(&began_by_uid).retain(|uid, _| !index.of(uid).is_empty());
                }
            },
        );
        let own = caches.clone();
        let own =
            kept.map(move |touched| own.concerned(touched, |wfe, gone| own.by_request(&wfe, gone)));
        let all: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let events = watcher(all, watcher::Config::default()).default_backoff();
        let kept = keep(events, prune::namespace, namespace_writer, |_| ());
        let around = caches.clone();
        let around = kept.map(move |touched| {
            around.concerned(touched, |namespace, _| around.by_namespace(&namespace))
        });
        let (job_index, pod_index) = (caches.job_index.clone(), caches.pod_index.clone());
        let memory = caches.clone();
        let remember = move |event: &Event<Pod>| memory.remember(event);
        let triggers = futures::stream::select_all([
            own.boxed(),
            around.boxed(),
            caches.follow(client, prune::job, job_writer, job_index, |_| ()),
            caches.follow(client, prune::pod, pod_writer, pod_index, remember),
            caches.follow(client, prune::lease, lease_writer, Arc::default(), |_| ()),
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

    /// Watches what we have made of one kind in the execution namespace.
    fn follow<K>(
        &self,
        client: &Client,
        prune: fn(&mut K),
        writer: Writer<K>,
        index: Arc<Mutex<Index<K>>>,
        mut remember: impl FnMut(&Event<K>) + Send + 'static,
    ) -> BoxStream<'static, Result<Vec<ObjectRef<WorkflowExecution>>, watcher::Error>>
    where
        K: Clone
            + Debug
            + DeserializeOwned
            + Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Send
            + Sync
            + 'static,
    {
        let api = Api::namespaced(client.clone(), &self.execution_namespace);
        let ours = watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
        let events = watcher(api, ours).default_backoff();
        let kept = keep(events, prune, writer, move |event| {
            lock(&index).apply(event, label_keys);
            remember(event);
        });
        let caches = self.clone();
        kept.map(move |touched| caches.concerned(touched, |object, _| caches.by_made(&object)))
            .boxed()
    }

    /// Remembers when a container began, as long as there is a WorkflowExecution to ask for it.
    fn remember(&self, event: &Event<Pod>) {
        let (Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod)) = event else {
            return;
        };
        let (Some(since), Some(uid)) = (began(pod), pod.labels().get(WORKFLOW_EXECUTION_UID))
        else {
            return;
        };
        let forgotten = matches!(event, Event::Delete(_)) && lock(&self.index).of(uid).is_empty();
        let mut began = lock(&self.began);
        if forgotten {
            began.remove(uid);
        } else {
            began.entry(uid.clone()).or_insert(since);
        }
    }

    /// Until every cache has been filled once.
    pub async fn synced(&self) -> Result<(), reflector::store::WriterDropped> {
        self.workflow_executions.wait_until_ready().await?;
        self.jobs.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.leases.wait_until_ready().await?;
        self.namespaces.wait_until_ready().await
    }

    /// Until a WorkflowExecution has vanished.
    pub async fn vanished(&self) {
        self.vanished.notified().await;
    }

    /// Every Job that is ours.
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        self.jobs.state()
    }

    /// Every lock.
    pub fn locks(&self) -> Vec<Arc<Lease>> {
        self.leases.state()
    }

    /// The WorkflowExecutions with this uid, or this target hash.
    pub fn workflow_executions_with(&self, key: &str) -> Vec<Arc<WorkflowExecution>> {
        let found = lock(&self.index).of(key);
        found
            .iter()
            .filter_map(|reference| self.workflow_executions.get(reference))
            .collect()
    }

    /// Since when a container of the WorkflowExecution with this uid runs or has run.
    pub fn began(&self, uid: &str) -> Option<Timestamp> {
        lock(&self.began).get(uid).copied()
    }

    /// Whether a namespace says that nothing new starts there.
    pub fn is_paused(&self, namespace: &str) -> bool {
        let namespace = self.namespaces.get(&ObjectRef::new(namespace));
        namespace.is_some_and(|it| it.annotations().get(PAUSED).is_some_and(|it| it == "true"))
    }

    /// Whether a namespace is being deleted, as far as was seen.
    pub fn is_ending(&self, namespace: &str) -> bool {
        let namespace = self.namespaces.get(&ObjectRef::new(namespace));
        namespace.is_some_and(|it| it.metadata.deletion_timestamp.is_some())
    }

    /// Whether a namespace is there and takes new objects, as far as was seen.
    pub fn is_there(&self, namespace: &str) -> bool {
        let namespace = self.namespaces.get(&ObjectRef::new(namespace));
        namespace.is_some_and(|it| it.metadata.deletion_timestamp.is_none())
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

    /// Jobs with this WorkflowExecution uid, or this target hash.
    pub fn jobs_with(&self, key: &str) -> Vec<Arc<Job>> {
        let found = lock(&self.job_index).of(key);
        found
            .iter()
            .filter_map(|reference| self.jobs.get(reference))
            .collect()
    }

    /// Pods with this WorkflowExecution uid, or this target hash.
    pub fn pods_with(&self, key: &str) -> Vec<Arc<Pod>> {
        let found = lock(&self.pod_index).of(key);
        found
            .iter()
            .filter_map(|reference| self.pods.get(reference))
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a watch has to tell.
enum Touched<K> {
    /// One object has changed or is gone.
    One { object: Box<K>, gone: bool },
    /// A new list is there.
    All,
}

/// Prunes, indexes and stores what a watch says, then tells of it.
fn keep<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    prune: impl FnMut(&mut K) + Send,
    writer: Writer<K>,
    mut index: impl FnMut(&Event<K>) + Send,
) -> impl Stream<Item = Result<Touched<K>, watcher::Error>> + Send
where
    K: Clone + Resource<DynamicType = ()> + Send + Sync + 'static,
{
    let stored = events
        .modify(prune)
        .inspect(move |event| event.iter().for_each(&mut index))
        .reflect(writer);
    stored.filter_map(|event| {
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
    })
}

/// Leaves out what is not even of the shape of a WorkflowExecution: one such object must not cost
/// all others.
async fn valid(
    event: watcher::Result<Event<DeserializeGuard<WorkflowExecution>>>,
) -> Option<watcher::Result<Event<WorkflowExecution>>> {
    let read = |guard: DeserializeGuard<WorkflowExecution>| match guard.0 {
        Ok(wfe) => Some(wfe),
        Err(invalid) => {
            let (namespace, name) = (invalid.metadata.namespace, invalid.metadata.name);
            tracing::error!(
                namespace,
                name,
                error = invalid.error,
                "a WorkflowExecution cannot be read and is left alone"
            );
            None
        }
    };
    let event = match event {
        Ok(event) => event,
        Err(error) => return Some(Err(error)),
    };
    let event = match event {
        Event::Apply(guard) => Event::Apply(read(guard)?),
        Event::Delete(guard) => Event::Delete(read(guard)?),
        Event::InitApply(guard) => Event::InitApply(read(guard)?),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    };
    Some(Ok(event))
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
