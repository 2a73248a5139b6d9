//! A catalog of the RemediationWorkflow objects of a namespace.
//!
//! The objects are watched; what is kept of each is the compiled workflow. A workflow that the watch
//! has not delivered is read from the API server, because the watch may lag behind a create, and so
//! is every workflow while the watch is broken.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wfe_model::pattern::OBJECT_NAME;
use wfe_model::text::in_full;
use wfe_model::workflow::{ReadWorkflow, RemediationWorkflow, Workflow, WorkflowError};

use super::source::{Catalog, Lookup, LookupError, OnRejected};
use crate::client::WATCH_SECONDS;

/// Time after a failure of the watch until the objects are listed again.
const RELIST_DELAY: Duration = Duration::from_secs(1);

/// By the object's name.
type Entries = BTreeMap<String, Entry>;

/// A catalog of objects.
pub struct ObjectCatalog {
    api: Api<DynamicObject>,
    watched: Arc<Watched>,
}

/// The objects that the watch has delivered.
struct Watched {
    entries: RwLock<Entries>,
    /// Whether the watch has delivered all objects since its last failure.
    healthy: AtomicBool,
    on_rejected: OnRejected,
}

/// What is kept of an object.
struct Entry {
    /// `status.workflowId`; empty if it has none.
    workflow_id: String,
    workflow: Result<Arc<Workflow>, WorkflowError>,
}

impl ObjectCatalog {
    /// Watches the objects of `namespace` until `stop` is cancelled. `on_rejected` receives the
    /// errors of the objects that cannot be run, after each change.
    pub fn start(
        client: &Client,
        namespace: &str,
        stop: CancellationToken,
        on_rejected: impl Fn(&[String]) + Send + Sync + 'static,
    ) -> Self {
        let resource = ApiResource::erase::<RemediationWorkflow>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let watched = Arc::new(Watched {
            entries: RwLock::default(),
            healthy: AtomicBool::new(false),
            on_rejected: Box::new(on_rejected),
        });
        let watching = watch(api.clone(), watched.clone());
        tokio::spawn(async move { stop.run_until_cancelled(watching).await });
        Self { api, watched }
    }

    async fn find(&self, workflow_id: &str) -> Lookup {
        match self.watched.find(workflow_id) {
            Some(lookup) if self.watched.healthy.load(Ordering::Relaxed) => lookup,
            _ => self.read(workflow_id).await,
        }
    }

    /// Reads the object with this name, or else looks for the id in the status of all.
    async fn read(&self, workflow_id: &str) -> Lookup {
        if !OBJECT_NAME.accepts(workflow_id) {
            return Err(LookupError::not_found(workflow_id));
        }
        let failed = |error| {
            let why = in_full(&error);
            LookupError::Unavailable(format!("read RemediationWorkflow {workflow_id:?}: {why}"))
        };
        let named = self.api.get_opt(workflow_id).await.map_err(failed)?;
        // Data Storage's ids, which are in a status, are UUIDs.
        let all = if Uuid::try_parse(workflow_id).is_ok() {
            let listed = self.api.list(&ListParams::default()).await;
            listed.map_err(failed)?.items
        } else {
            named.into_iter().collect()
        };
        let all: Entries = all.iter().map(Entry::named).collect();
        let found = find(&all, workflow_id);
        found.unwrap_or_else(|| Err(LookupError::not_found(workflow_id)))
    }
}

/// Watches the objects. After a failure they are listed again: a watch that goes on says nothing until
/// an object changes.
async fn watch(api: Api<DynamicObject>, watched: Arc<Watched>) {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let mut listed = Entries::new();
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => watched.receive(event, &mut listed),
                Err(error) => {
                    watched.healthy.store(false, Ordering::Relaxed);
                    tracing::warn!(%error, "watch of RemediationWorkflows failed, retrying; workflows are read one by one until the watch recovers");
                    break;
                }
            }
        }
        tokio::time::sleep(RELIST_DELAY).await;
    }
}

impl Catalog for ObjectCatalog {
    fn lookup<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup> {
        self.find(workflow_id).boxed()
    }

    fn lookup_now<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup> {
        self.read(workflow_id).boxed()
    }
}

impl Watched {
    fn find(&self, workflow_id: &str) -> Option<Lookup> {
        find(&self.entries.read(), workflow_id)
    }

    /// Applies an event; `listed` collects a list until it is complete.
    fn receive(&self, event: Event<DynamicObject>, listed: &mut Entries) {
        match event {
            Event::Init => return listed.clear(),
            Event::InitApply(object) => return listed.extend([Entry::named(&object)]),
            Event::InitDone => {
                let entries = std::mem::take(listed);
                tracing::info!(workflows = entries.len(), "workflow catalog loaded");
                *self.entries.write() = entries;
                self.healthy.store(true, Ordering::Relaxed);
            }
            Event::Apply(object) => self.entries.write().extend([Entry::named(&object)]),
            Event::Delete(object) => drop(self.entries.write().remove(&object.name_any())),
        }
        let entries = self.entries.read();
        let errors = entries.values();
        let errors: Vec<_> = errors
            .filter_map(|it| it.workflow.as_ref().err().map(ToString::to_string))
            .collect();
        (self.on_rejected)(&errors);
    }
}

/// The object with this name or with this id in its status.
fn find(entries: &Entries, workflow_id: &str) -> Option<Lookup> {
    let mut found = entries
        .iter()
        .filter(|(name, entry)| *name == workflow_id || entry.workflow_id == workflow_id);
    let (name, entry) = found.next()?;
    if let Some((other, _)) = found.next() {
        let why = format!("RemediationWorkflows {name:?} and {other:?} both have this id");
        return Some(Err(LookupError::invalid(workflow_id, &why)));
    }
    Some(entry.lookup(workflow_id))
}

impl Entry {
    /// The entry of an object, with the object's name.
    fn named(object: &DynamicObject) -> (String, Self) {
        (object.name_any(), Self::read(object))
    }

    fn read(object: &DynamicObject) -> Self {
        let part = |key: &str| object.data.get(key).unwrap_or(&Value::Null);
        let status = part("status");
        let workflow_id = status.get("workflowId").and_then(Value::as_str);
        let read = Workflow::read_object(&object.name_any(), part("spec"), status);
        let workflow = match read {
            Ok(ReadWorkflow { workflow, warnings }) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                Ok(Arc::new(workflow))
            }
            Err(error) => {
                tracing::error!(%error, "workflow set aside");
                Err(error)
            }
        };
        Self {
            workflow_id: workflow_id.unwrap_or_default().to_owned(),
            workflow,
        }
    }

    fn lookup(&self, workflow_id: &str) -> Lookup {
        let workflow = self.workflow.clone();
        workflow.map_err(|error| LookupError::invalid(workflow_id, &error.reasons()))
    }
}
