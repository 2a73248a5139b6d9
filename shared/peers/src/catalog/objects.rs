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
use wfe_model::workflow::{RemediationWorkflow, Workflow, WorkflowError};

use super::source::{Catalog, Lookup, LookupError, OnRejected, logged};
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

    /// Reads the object with this name, or all, if it may be the id in a status.
    async fn read(&self, workflow_id: &str) -> Lookup {
        if !OBJECT_NAME.accepts(workflow_id) {
            return Err(LookupError::not_found(workflow_id));
        }
        let failed = |error| {
            let why = in_full(&error);
            LookupError::Unavailable(format!("read RemediationWorkflow {workflow_id:?}: {why}"))
        };
        // Data Storage's ids, which are in a status, are UUIDs.
        let all = if Uuid::try_parse(workflow_id).is_ok() {
            let listed = self.api.list(&ListParams::default()).await;
            listed.map_err(failed)?.items
        } else {
            let named = self.api.get_opt(workflow_id).await;
            named.map_err(failed)?.into_iter().collect()
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
            Ok(read) => Ok(Arc::new(logged(read))),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;
    use tokio::sync::Notify;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const ID: &str = "0b6b1b0a-6a3c-4c3a-9d55-6a3c4c3a9d55";

    fn object(name: &str, workflow_id: &str) -> Value {
        let bundle = format!("r.io/w@sha256:{HEX}");
        json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationWorkflow",
            "metadata": { "name": name, "namespace": "catalog", "resourceVersion": "1" },
            "spec": { "version": "1", "execution": { "engine": "job", "bundle": bundle } },
            "status": { "workflowId": workflow_id },
        })
    }

    /// An API server whose lists have these objects, in turn; each watch fails once it is told to.
    #[derive(Clone)]
    struct ApiServer {
        lists: Arc<Vec<Vec<Value>>>,
        listed: Arc<AtomicUsize>,
        fails: Arc<Notify>,
    }

    impl ApiServer {
        fn new(lists: Vec<Vec<Value>>) -> Self {
            Self {
                lists: Arc::new(lists),
                listed: Arc::default(),
                fails: Arc::default(),
            }
        }

        async fn respond(self, request: Request<Body>) -> Response<Body> {
            let uri = request.uri();
            let watches = uri.query().is_some_and(|it| it.contains("watch"));
            if watches {
                self.fails.notified().await;
                return response(
                    500,
                    &json!({ "kind": "Status", "code": 500, "status": "Failure" }),
                );
            }
            let name = uri.path().rsplit('/').next().unwrap_or_default();
            if name != "remediationworkflows" {
                return response(
                    404,
                    &json!({ "kind": "Status", "code": 404, "status": "Failure", "reason": "NotFound" }),
                );
            }
            let number = self.listed.fetch_add(1, Ordering::Relaxed);
            let items = self.lists.get(number.min(self.lists.len() - 1));
            response(
                200,
                &json!({
                    "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationWorkflowList",
                    "metadata": { "resourceVersion": "1" }, "items": items,
                }),
            )
        }

        /// The catalog, and a signal for each time that all objects were listed.
        fn catalog(&self) -> (ObjectCatalog, UnboundedReceiver<()>) {
            let this = self.clone();
            let service = tower::service_fn(move |request| {
                let this = this.clone();
                async move { Ok::<_, std::io::Error>(this.respond(request).await) }
            });
            let client = Client::new(service, "catalog");
            let (loaded, signals) = unbounded_channel();
            let stop = CancellationToken::new();
            let catalog = ObjectCatalog::start(&client, "catalog", stop, move |_| {
                let _ = loaded.send(());
            });
            (catalog, signals)
        }
    }

    fn response(status: u16, body: &Value) -> Response<Body> {
        let body = Body::from(body.to_string().into_bytes());
        let response = Response::builder().status(status).body(body);
        response.expect("a response")
    }

    /// Until a watch that failed has recovered, lookups are reads; then all objects are known again,
    /// although none has changed.
    #[tokio::test(start_paused = true)]
    async fn failed_watch_is_replaced_by_a_new_list() {
        let server = ApiServer::new(vec![
            vec![object("a", "")],
            vec![object("a", ""), object("b", "")],
        ]);
        let (catalog, mut loaded) = server.catalog();
        loaded.recv().await.expect("listed");
        catalog.lookup("a").await.expect("found");
        let missing = catalog.lookup("b").await;
        assert!(
            matches!(missing, Err(LookupError::Unusable(_))),
            "{missing:?}"
        );
        server.fails.notify_one();
        loaded.recv().await.expect("listed again");
        catalog.lookup("b").await.expect("listed again");
    }

    /// An id in a status is found also where the watch has not delivered it, and two are none.
    #[tokio::test(start_paused = true)]
    async fn id_in_status_is_found_and_must_be_unique() {
        let server = ApiServer::new(vec![vec![object("a", "")], vec![object("a", ID)]]);
        let (catalog, mut loaded) = server.catalog();
        loaded.recv().await.expect("listed");
        catalog.lookup(ID).await.expect("listed");
        let server = ApiServer::new(vec![vec![object("a", ID), object("b", ID)]]);
        let (catalog, mut loaded) = server.catalog();
        loaded.recv().await.expect("listed");
        let ambiguous = catalog.lookup(ID).await.expect_err("ambiguous").to_string();
        let says = "RemediationWorkflows \"a\" and \"b\" both have this id";
        assert!(ambiguous.contains(says), "{ambiguous}");
    }
}
