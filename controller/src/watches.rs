//! Caches of what the API server has, kept by watches, and the queue of who should be looked at.
//!
//! Per kind: watch, prune what nobody reads, store, index by owner and target, and a trigger for
//! each WorkflowExecution that the change may matter to. Nothing is polled.

mod index;
mod prune;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, controller::ReconcileRequest};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use wfe_model::target::Target;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};

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
    /// Jobs by the uid of their WorkflowExecution and by target hash.
    job_index: Arc<Mutex<Index<Job>>>,
    /// Pods by the uid of their WorkflowExecution and by target hash.
    pod_index: Arc<Mutex<Index<Pod>>>,
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
        let caches = Self {
            workflow_executions,
            jobs,
            pods,
            leases,
            index: Arc::default(),
            job_index: Arc::default(),
            pod_index: Arc::default(),
            execution_namespace: execution_namespace.to_owned(),
        };
        let api: Api<DeserializeGuard<WorkflowExecution>> = watch_namespace.map_or_else(
            || Api::all(client.clone()),
            |it| Api::namespaced(client.clone(), it),
        );
        let events = watcher(api, watcher::Config::default()).default_backoff();
        let index = caches.index.clone();
        let kept = keep(
            events.filter_map(valid),
            prune::workflow_execution,
            wfe_writer,
            move |event| lock(&index).apply(event, wfe_keys),
        );
        let own = caches.clone();
        let own =
            kept.map(move |touched| own.concerned(touched, |wfe| vec![ObjectRef::from_obj(&wfe)]));
        let (job_index, pod_index) = (caches.job_index.clone(), caches.pod_index.clone());
        let triggers = futures::stream::select_all([
            own.boxed(),
            caches.follow(client, prune::job, job_writer, job_index),
            caches.follow(client, prune::pod, pod_writer, pod_index),
            caches.follow(client, prune::lease, lease_writer, Arc::default()),
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
        });
        let caches = self.clone();
        kept.map(move |touched| caches.concerned(touched, |object| caches.related(&object)))
            .boxed()
    }

    /// The WorkflowExecutions that a change matters to. After a new list that is all of them: what
    /// has vanished in between is told by nobody.
    fn concerned<K>(
        &self,
        touched: Result<Touched<K>, watcher::Error>,
        one: impl Fn(K) -> Vec<ObjectRef<WorkflowExecution>>,
    ) -> Result<Vec<ObjectRef<WorkflowExecution>>, watcher::Error> {
        touched.map(|touched| match touched {
            Touched::One(object) => one(*object),
            Touched::All => {
                let all = self.workflow_executions.state();
                all.iter()
                    .map(|wfe| ObjectRef::from_obj(wfe.as_ref()))
                    .collect()
            }
        })
    }

    /// The WorkflowExecutions that a Job, pod or Lease may matter to: the one it is for, and those
    /// on its target that have not ended.
    fn related<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
    ) -> Vec<ObjectRef<WorkflowExecution>> {
        let with = |label: &str| {
            object
                .labels()
                .get(label)
                .map(|key| lock(&self.index).of(key))
        };
        let owner = with(WORKFLOW_EXECUTION_UID).unwrap_or_default();
        let on_target = with(TARGET_HASH)
            .unwrap_or_default()
            .into_iter()
            .filter(|reference| {
                let wfe = self.workflow_executions.get(reference);
                !wfe.and_then(|wfe| wfe.phase()).is_some_and(Phase::is_final)
            });
        owner.into_iter().chain(on_target).collect()
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
    One(Box<K>),
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
            Ok(Event::Apply(object) | Event::Delete(object)) => {
                Some(Ok(Touched::One(Box::new(object))))
            }
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
