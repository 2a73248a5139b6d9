//! A catalog of the RemediationWorkflow objects of a namespace.
//!
//! The objects are watched; what is kept of each is the compiled workflow. A workflow that the watch
//! has not delivered is read from the API server, because the watch may lag behind a create, and so
//! is every workflow while the watch is broken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use wfe_model::pattern::OBJECT_NAME;
use wfe_model::text::in_full;
use wfe_model::workflow::{ReadWorkflow, RemediationWorkflow, Workflow, WorkflowError};

use super::source::{Catalog, Lookup, LookupError, OnRejected};
use crate::client::WATCH_SECONDS;

/// A catalog of objects.
pub struct ObjectCatalog {
    api: Api<DynamicObject>,
    watched: Arc<Watched>,
}

/// The objects that the watch has delivered.
struct Watched {
    /// By the object's name.
    entries: RwLock<BTreeMap<String, Entry>>,
    /// Whether the watch has delivered an event since its last failure.
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
        let every = watcher::Config::default().timeout(WATCH_SECONDS);
        let watch = watcher(api.clone(), every)
            .default_backoff()
            .take_until(stop.cancelled_owned());
        tokio::spawn({
            let (watched, mut listed) = (watched.clone(), BTreeMap::new());
            watch.for_each(move |event| {
                watched.receive(event, &mut listed);
                std::future::ready(())
            })
        });
        Self { api, watched }
    }

    async fn find(&self, workflow_id: &str) -> Lookup {
        match self.watched.find(workflow_id)? {
            Some((_, lookup)) if self.watched.is_healthy() => lookup,
            _ => self.read(workflow_id).await,
        }
    }

    /// Reads the object with this name, or with the name that the watch knows for this id.
    async fn read(&self, workflow_id: &str) -> Lookup {
        if !OBJECT_NAME.accepts(workflow_id) {
            return Err(LookupError::not_found(workflow_id));
        }
        let known = self.watched.find(workflow_id)?;
        let name = known.map_or_else(|| workflow_id.to_owned(), |(name, _)| name);
        let found = self.api.get_opt(&name).await.map_err(|error| {
            let why = in_full(&error);
            LookupError::Unavailable(format!("read RemediationWorkflow {name:?}: {why}"))
        })?;
        let found = found.map(|object| Entry::read(&object));
        let found = found.filter(|it| name == workflow_id || it.workflow_id == workflow_id);
        match found {
            Some(entry) => entry.lookup(workflow_id),
            None if self.watched.is_healthy() => Err(LookupError::not_found(workflow_id)),
            // It may be the id in a status, which cannot be asked for.
            None => Err(LookupError::Unavailable(
                "the watch of RemediationWorkflows is broken, and none has this name".to_owned(),
            )),
        }
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
    fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// The object with this name or with this id in its status, as the watch has delivered it: its
    /// name, and the result of a lookup. The error: there is more than one.
    fn find(&self, workflow_id: &str) -> Result<Option<(String, Lookup)>, LookupError> {
        let entries = self.entries.read();
        let mut found = entries
            .iter()
            .filter(|(name, entry)| *name == workflow_id || entry.workflow_id == workflow_id);
        let Some((name, entry)) = found.next() else {
            return Ok(None);
        };
        if let Some((other, _)) = found.next() {
            let why = format!("RemediationWorkflows {name:?} and {other:?} both have this id");
            return Err(LookupError::invalid(workflow_id, &why));
        }
        Ok(Some((name.clone(), entry.lookup(workflow_id))))
    }

    /// Applies an event; `listed` collects a list until it is complete.
    fn receive(
        &self,
        event: Result<Event<DynamicObject>, watcher::Error>,
        listed: &mut BTreeMap<String, Entry>,
    ) {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                listed.insert(object.name_any(), Entry::read(&object));
                return;
            }
            Ok(Event::InitDone) => {
                *self.entries.write() = std::mem::take(listed);
                self.healthy.store(true, Ordering::Relaxed);
                tracing::info!(
                    workflows = self.entries.read().len(),
                    "workflow catalog loaded"
                );
            }
            Ok(Event::Apply(object)) => {
                let entry = Entry::read(&object);
                self.entries.write().insert(object.name_any(), entry);
                self.healthy.store(true, Ordering::Relaxed);
            }
            Ok(Event::Delete(object)) => {
                self.entries.write().remove(&object.name_any());
            }
            Err(error) => {
                self.healthy.store(false, Ordering::Relaxed);
                tracing::warn!(%error, "watch of RemediationWorkflows failed, retrying; workflows are read one by one until the watch recovers");
                return;
            }
        }
        let entries = self.entries.read();
        let errors = entries.values();
        let errors: Vec<_> = errors
            .filter_map(|it| it.workflow.as_ref().err().map(ToString::to_string))
            .collect();
        (self.on_rejected)(&errors);
    }
}

impl Entry {
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
