//! Starts the watches and maps each change to the WorkflowExecutions that it may affect.

use std::collections::HashSet;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use wfe_core::condition::ConditionType;
use wfe_core::names::TargetHash;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecution};

use super::caches::{Caches, wfe_keys};
use super::index::Key;
use super::owner_labels::{OwnerLabels, every, managed};
use super::prune;
use super::reflect::{Change, reflect};
use super::start_times::StartTimes;
use super::unreadable::{Unreadable, Watched};

/// What a change may affect.
#[derive(Clone, Debug)]
pub enum Trigger {
    /// This WorkflowExecution.
    Execution(ObjectRef<WorkflowExecution>),
    /// Those that use this target, or use it next.
    Target(TargetHash),
}

/// What the changes may affect.
pub type Triggers = BoxStream<'static, Trigger>;

/// Changes of the objects that executors watch.
pub type Changes = BoxStream<'static, Result<Change<OwnerLabels>, watcher::Error>>;

/// The changes of one kind, by the labels of its objects.
pub fn owner_changes<K: ResourceExt + 'static>(
    changes: impl Stream<Item = Result<Change<K>, watcher::Error>> + Send + 'static,
) -> Changes {
    let changes = changes.map(|it| it.map(|change| change.map(|object| OwnerLabels::of(&object))));
    changes.boxed()
}

/// WorkflowExecutions of a list that are read at a time: each can have more than a MiB before it is
/// pruned.
const PAGE_SIZE: u32 = 50;

/// Starts the watches and returns the caches and the triggers. The watches make progress only while
/// the triggers are polled.
pub fn start(
    client: &Client,
    watch_namespaces: &[String],
    execution_namespace: &str,
    start_times: StartTimes,
    changes: Changes,
) -> (Caches, Triggers) {
    // A watch has one namespace or all.
    let api: Api<Watched> = match watch_namespaces {
        [namespace] => Api::namespaced(client.clone(), namespace),
        _ => Api::all(client.clone()),
    };
    let selected: HashSet<_> = watch_namespaces.iter().cloned().collect();
    let config = every().page_size(PAGE_SIZE);
    let events = watcher(api, config).default_backoff();
    let events = events.try_filter(move |event| future::ready(is_within(event, &selected)));
    let unreadable = Unreadable::default();
    let filter = unreadable.clone();
    let (workflow_executions, wfe_changes) = reflect(
        events.flat_map(move |event| stream::iter(filter.filter(event))),
        prune::workflow_execution,
        wfe_keys,
        |_| (),
    );
    let all: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let events = watcher(all, every()).default_backoff();
    let (namespaces, namespace_changes) = reflect(events, prune::namespace, |_| Vec::new(), |_| ());
    let api: Api<Lease> = Api::namespaced(client.clone(), execution_namespace);
    let events = watcher(api, managed()).default_backoff();
    let (leases, lease_changes) = reflect(events, prune::lease, OwnerLabels::keys, |_| ());
    let caches = Caches {
        workflow_executions,
        unreadable,
        leases,
        namespaces,
        start_times,
        listed: Arc::default(),
        orphan_suspected: Arc::default(),
        execution_namespace: execution_namespace.to_owned(),
    };
    let (by_wfe, by_namespace, by_labels) = (caches.clone(), caches.clone(), caches.clone());
    let triggers = stream::select_all([
        wfe_changes
            .map(move |it| {
                if matches!(it, Ok(Change::Relisted)) {
                    by_wfe.start_times.retain(|uid| by_wfe.knows(uid));
                    by_wfe.listed.store(true, Ordering::Release);
                }
                by_wfe.affected(it, |wfe, deleted| by_wfe.by_wfe(&wfe, deleted))
            })
            .boxed(),
        namespace_changes
            .map(move |it| {
                by_namespace.affected(it, |namespace, _| by_namespace.by_namespace(&namespace))
            })
            .boxed(),
        stream::select(changes, owner_changes(lease_changes))
            .map(move |it| by_labels.affected(it, |labels, _| by_labels.by_labels(&labels)))
            .boxed(),
    ]);
    let triggers = triggers.flat_map(|affected| {
        let affected = affected.unwrap_or_else(|error| {
            tracing::warn!(%error, "watch failed, retrying");
            Vec::new()
        });
        stream::iter(affected)
    });
    (caches, triggers.boxed())
}

/// Whether an event concerns a namespace in `selected`; none: every namespace.
fn is_within(event: &Event<Watched>, selected: &HashSet<String>) -> bool {
    match event {
        Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => {
            let namespace = object.namespace();
            selected.is_empty() || namespace.is_some_and(|it| selected.contains(&it))
        }
        Event::Init | Event::InitDone => true,
    }
}

impl Caches {
    /// What a change may affect. After a new list these are all WorkflowExecutions, because
    /// deletions since the old list are not reported.
    fn affected<K>(
        &self,
        change: Result<Change<K>, watcher::Error>,
        by_object: impl Fn(K, bool) -> Vec<Trigger>,
    ) -> Result<Vec<Trigger>, watcher::Error> {
        change.map(|change| match change {
            Change::Object { object, deleted } => by_object(*object, deleted),
            Change::Relisted => {
                let all = self.workflow_executions.all();
                let all = all.iter().map(|wfe| ObjectRef::from_obj(wfe.as_ref()));
                all.map(Trigger::Execution).collect()
            }
        })
    }

    /// The changed WorkflowExecution, and its target if it has ended, is being deleted or cannot
    /// proceed, since another one may run then.
    fn by_wfe(&self, wfe: &WorkflowExecution, deleted: bool) -> Vec<Trigger> {
        // An object that cannot be read still exists.
        let gone = wfe.uid().filter(|it| deleted && !self.unreadable.knows(it));
        if let Some(uid) = gone {
            self.start_times.remove(&uid.as_str().into());
            self.orphan_suspected.notify_one();
        }
        let ended = wfe.phase().is_some_and(Phase::is_final);
        let unknown = |it: &Condition| {
            it.status == TriState::Unknown.as_str() && it.type_ != ConditionType::Ready.as_str()
        };
        let cannot_proceed = wfe
            .status
            .as_ref()
            .is_some_and(|it| it.conditions.iter().any(unknown));
        let frees = deleted || ended || cannot_proceed || wfe.metadata.deletion_timestamp.is_some();
        let target = TargetHash::of_wfe(wfe).filter(|_| frees);
        let own = Trigger::Execution(ObjectRef::from_obj(wfe));
        iter::once(own).chain(target.map(Trigger::Target)).collect()
    }

    /// For the execution namespace all WorkflowExecutions that have not ended; for another namespace
    /// those in it, if it is being deleted.
    fn by_namespace(&self, namespace: &PartialObjectMeta<Namespace>) -> Vec<Trigger> {
        let name = namespace.name_any();
        let mut affected = Vec::new();
        if name == self.execution_namespace {
            affected = self.workflow_executions.references(&Key::Unfinished);
        }
        if namespace.metadata.deletion_timestamp.is_some() {
            let within = Key::Namespace(name);
            affected.extend(self.workflow_executions.references(&within));
        }
        affected.into_iter().map(Trigger::Execution).collect()
    }

    /// For an execution, a pod or a Lease: the WorkflowExecution that its labels name, and its
    /// target.
    fn by_labels(&self, labels: &OwnerLabels) -> Vec<Trigger> {
        let mut affected = Vec::new();
        if let Some(uid) = &labels.uid {
            affected = self.workflow_executions.references(&Key::Uid(uid.clone()));
            let exists = !affected.is_empty() || self.unreadable.knows(uid.as_str());
            if !exists && self.listed.load(Ordering::Acquire) {
                // The object may have been created after its WorkflowExecution was deleted.
                self.start_times.remove(uid);
                self.orphan_suspected.notify_one();
            }
        }
        let affected = affected.into_iter().map(Trigger::Execution);
        affected
            .chain(labels.target.clone().map(Trigger::Target))
            .collect()
    }
}
