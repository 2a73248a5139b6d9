//! Starts the watches, and says of each change which WorkflowExecutions it may matter to.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, controller::ReconcileRequest};
use kube::{Api, Client, Resource, ResourceExt};
use wfe_core::condition::ConditionType;
use wfe_core::lock;
use wfe_core::names::TargetHash;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecution};

use super::began::Began;
use super::caches::{Caches, target_of, wfe_keys};
use super::follow::{Touched, follow};
use super::index::Key;
use super::made::{Made, ours};
use super::prune;

/// Requests to look at a WorkflowExecution.
pub type Triggers = BoxStream<'static, Result<ReconcileRequest<WorkflowExecution>, watcher::Error>>;

/// Changes of what engines have made.
pub type Changes = BoxStream<'static, Result<Touched<Made>, watcher::Error>>;

/// Starts the watches: the caches, and the triggers that keep them going. While nothing reads
/// the triggers, the watches stand still.
pub fn start(
    client: &Client,
    watch_namespace: Option<&str>,
    execution_namespace: &str,
    began: Began,
    changes: Changes,
) -> (Caches, Triggers) {
    let api: Api<DeserializeGuard<WorkflowExecution>> = watch_namespace.map_or_else(
        || Api::all(client.clone()),
        |it| Api::namespaced(client.clone(), it),
    );
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let (workflow_executions, requests) = follow(
        events.filter_map(valid),
        prune::workflow_execution,
        wfe_keys,
        |_| (),
    );
    let all: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let events = watcher(all, watcher::Config::default()).default_backoff();
    let (namespaces, around) = follow(events, prune::namespace, |_| Vec::new(), |_| ());
    let api: Api<Lease> = Api::namespaced(client.clone(), execution_namespace);
    let events = watcher(api, ours()).default_backoff();
    let (leases, locks) = follow(events, prune::lease, Made::keys, |_| ());
    let caches = Caches {
        workflow_executions,
        leases,
        namespaces,
        began,
        listed: Arc::default(),
        orphaned: Arc::default(),
        execution_namespace: execution_namespace.to_owned(),
    };
    let (own, others, made) = (caches.clone(), caches.clone(), caches.clone());
    let locks = locks.map(|touched| touched.map(|it| it.map(|lease| Made::of(&lease))));
    let triggers = stream::select_all([
        requests
            .map(move |it| {
                if matches!(it, Ok(Touched::All)) {
                    own.began.retain(|uid| own.knows(uid));
                    own.listed.store(true, Ordering::Release);
                }
                own.concerned(it, |wfe, gone| own.by_request(&wfe, gone))
            })
            .boxed(),
        around
            .map(move |it| others.concerned(it, |namespace, _| others.by_namespace(&namespace)))
            .boxed(),
        stream::select(changes, locks)
            .map(move |it| made.concerned(it, |object, _| made.by_made(&object)))
            .boxed(),
    ]);
    let triggers = triggers.flat_map(|touched| {
        let requests = match touched {
            Ok(references) => references.into_iter().map(|it| Ok(it.into())).collect(),
            Err(error) => {
                tracing::warn!(%error, "watch failed, retrying");
                Vec::new()
            }
        };
        stream::iter(requests)
    });
    (caches, triggers.boxed())
}

impl Caches {
    /// The WorkflowExecutions that a change matters to. After a new list that is all of them: what
    /// has vanished in between is told by nobody.
    fn concerned<K>(
        &self,
        touched: Result<Touched<K>, watcher::Error>,
        one: impl Fn(K, bool) -> Vec<ObjectRef<WorkflowExecution>>,
    ) -> Result<Vec<ObjectRef<WorkflowExecution>>, watcher::Error> {
        touched.map(|touched| match touched {
            Touched::One { object, gone } => one(*object, gone),
            Touched::All => {
                let all = self.workflow_executions.all();
                all.iter()
                    .map(|wfe| ObjectRef::from_obj(wfe.as_ref()))
                    .collect()
            }
        })
    }

    /// The WorkflowExecutions that a changed one may matter to: itself, and, where it is out of the
    /// way now or stuck, those on its target that have not ended.
    fn by_request(&self, wfe: &WorkflowExecution, gone: bool) -> Vec<ObjectRef<WorkflowExecution>> {
        if let Some(uid) = wfe.uid().filter(|_| gone) {
            self.began.forget(&uid.as_str().into());
            self.orphaned.notify_one();
        }
        let mut concerned = vec![ObjectRef::from_obj(wfe)];
        let ends = wfe.phase().is_some_and(Phase::is_final);
        let unknown = |it: &Condition| {
            it.status == TriState::Unknown.as_str() && it.type_ != ConditionType::Ready.as_str()
        };
        let stuck = wfe
            .status
            .as_ref()
            .is_some_and(|it| it.conditions.iter().any(unknown));
        if gone || ends || stuck || wfe.metadata.deletion_timestamp.is_some() {
            let target = target_of(wfe);
            concerned.extend(target.into_iter().flat_map(|it| self.unfinished(&it)));
        }
        concerned
    }

    /// The WorkflowExecutions that a namespace may matter to: all, where it is the execution
    /// namespace, else the deleted ones in it.
    fn by_namespace(
        &self,
        namespace: &PartialObjectMeta<Namespace>,
    ) -> Vec<ObjectRef<WorkflowExecution>> {
        let name = namespace.name_any();
        let all = self.workflow_executions.all();
        let concerned = all.iter().filter(|wfe| {
            name == self.execution_namespace
                || wfe.namespace().as_ref() == Some(&name)
                    && wfe.meta().deletion_timestamp.is_some()
        });
        concerned
            .map(|wfe| ObjectRef::from_obj(wfe.as_ref()))
            .collect()
    }

    /// Those on a target that have not ended, and the holder of its lock, which may have to free it.
    fn unfinished(&self, target: &TargetHash) -> Vec<ObjectRef<WorkflowExecution>> {
        let holder = self.lock_of(target);
        let holder = holder.as_deref().and_then(lock::holder);
        let open = self.on_target(target).into_iter().filter(|wfe| {
            !wfe.phase().is_some_and(Phase::is_final)
                || holder.as_ref().map(|it| &it.uid) == wfe.metadata.uid.as_ref()
        });
        open.map(|wfe| ObjectRef::from_obj(wfe.as_ref())).collect()
    }

    /// The WorkflowExecutions that something made, or a Lease, may matter to: the one it is for, and
    /// those on its target that have not ended.
    fn by_made(&self, made: &Made) -> Vec<ObjectRef<WorkflowExecution>> {
        let mut concerned = Vec::new();
        if let Some(uid) = &made.uid {
            concerned = self.workflow_executions.references(&Key::Uid(uid.clone()));
            if concerned.is_empty() && self.listed.load(Ordering::Acquire) {
                // Created after its WorkflowExecution had vanished.
                self.began.forget(uid);
                self.orphaned.notify_one();
            }
        }
        let target = made.target.iter();
        concerned.extend(target.flat_map(|it| self.unfinished(it)));
        concerned
    }
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
