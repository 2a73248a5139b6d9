//! A stand-in for the Data Storage service: its audit and catalog APIs, stored in `SQLite`, with faults
//! on demand. Requests and responses are checked against openapi.yaml.
//!
//! Like the observed real service: the schema and its error responses, columns that answer 500,
//! dropped keys of `event_data`, no idempotency, paging, the order of checks (content before
//! token), `TokenReview` and `SubjectAccessReview`. Unlike the real service: events are lost at the
//! end, unknown keys of `error_details` are kept, queries filter by correlation, type and time, the
//! Content-Type is not checked, and a request without response hangs until the client closes
//! the connection, not for 30 s.

#![expect(clippy::indexing_slicing, reason = "of JSON: what is missing is null")]

mod catalog;
mod fault;
mod openapi;
mod problem;
mod routes;
mod rules;
mod store;
mod workflows;

pub use self::fault::CatalogFault;

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use wfe_peers::audit::TrailEvent;

use self::openapi::OpenApi;
use self::store::{Query, Store};
use crate::authorizer::Authorizer;

/// A fault in the handling of a batch of events.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The response is delayed; nothing is stored if the client has closed the connection by then.
    Slow(Duration),
    /// Batches and queries are answered with this status; nothing is stored.
    Answer(u16),
    /// Batches of more bytes are answered with 413, as by a proxy; nothing is stored.
    Limit(usize),
    /// The database is down: requests are answered with 500, and readiness fails.
    DatabaseDown,
    /// The batch is stored, the response is lost.
    LoseAnswer,
    /// The batch is stored after the delay, even when the client has gone, and never answered.
    CommitLate(Duration),
}

/// State shared by the handlers.
struct Inner {
    store: Mutex<Store>,
    document: Arc<OpenApi>,
    authorizer: Authorizer,
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    /// The active fault, and for how many more batches.
    current: Option<(Fault, usize)>,
    /// Text in an event that makes the database fail.
    failing_text: Option<String>,
    keeps_engine: bool,
    batches: usize,
    queries: usize,
    /// The fault of lookups of a workflow.
    catalog: Option<CatalogFault>,
    lookups: usize,
}

/// A running Data Storage; stops when the value is dropped.
pub struct DataStorage {
    inner: Arc<Inner>,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

impl DataStorage {
    /// Serves on `address`, without TLS; everything is kept in the file `database`.
    pub async fn open(
        address: SocketAddr,
        authorizer: Authorizer,
        database: &Path,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Self::listen(listener, authorizer, None, Store::open(database)?)
    }

    /// Serves on a free port of `host`, with this certificate and key, both PEM; everything is kept in
    /// memory.
    pub async fn start_with_tls(
        host: &str,
        authorizer: Authorizer,
        certificate: &str,
        key: &str,
    ) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((host, 0)).await?;
        Self::listen(listener, authorizer, Some(tls), Store::in_memory()?)
    }

    fn listen(
        listener: TcpListener,
        authorizer: Authorizer,
        tls: Option<TlsAcceptor>,
        store: Store,
    ) -> Result<Self> {
        let storage = Self {
            inner: Arc::new(Inner {
                store: Mutex::new(store),
                document: Arc::new(OpenApi::new()?),
                authorizer,
                faults: Mutex::default(),
            }),
            address: listener.local_addr()?,
            tls,
            serving: Mutex::default(),
        };
        storage.serve(listener);
        Ok(storage)
    }

    fn serve(&self, listener: TcpListener) {
        let (routes, tls) = (routes::routes(self.inner.clone()), self.tls.clone());
        let serving = tokio::spawn(accept(listener, routes, tls));
        *lock(&self.serving) = Some(serving);
    }

    /// The base URL.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Stops serving: connections are closed and new ones refused. Stored events are kept.
    pub async fn stop(&self) {
        let serving = lock(&self.serving).take();
        if let Some(serving) = serving {
            serving.abort();
            // Waits for the abort, which closes the socket.
            let _ = serving.await;
        }
    }

    /// Serves again on the same address.
    pub async fn resume(&self) -> Result<()> {
        self.serve(TcpListener::bind(self.address).await?);
        Ok(())
    }

    /// Applies `fault` to each batch from now on.
    pub fn set_fault(&self, fault: Fault) {
        self.set_fault_times(fault, usize::MAX);
    }

    /// Applies `fault` to the next `times` batches.
    pub fn set_fault_times(&self, fault: Fault, times: usize) {
        self.faults().current = Some((fault, times));
    }

    /// Ends the current fault.
    pub fn clear_fault(&self) {
        self.faults().current = None;
    }

    /// Makes the database fail on events that contain `text`.
    pub fn fail_on(&self, text: &str) {
        self.faults().failing_text = Some(text.to_owned());
    }

    /// Stores `execution_engine`, as a newer server will.
    pub fn keep_engine(&self) {
        self.faults().keeps_engine = true;
    }

    /// Numbers of batches and of queries received.
    pub fn requests(&self) -> (usize, usize) {
        let faults = self.faults();
        (faults.batches, faults.queries)
    }

    /// Number of lookups of a workflow received.
    pub fn lookups(&self) -> usize {
        self.faults().lookups
    }

    /// Applies `fault` to each lookup of a workflow from now on; `None`: no more.
    pub fn set_catalog_fault(&self, fault: Option<CatalogFault>) {
        self.faults().catalog = fault;
    }

    /// Registers a workflow document; returns its id.
    pub fn register(&self, content: &str) -> Result<String> {
        let registered = workflows::register(lock(&self.inner.store).database(), content)?;
        let entry = registered.map_err(|_| anyhow!("the document is invalid or registered"))?;
        Ok(entry["workflowId"].as_str().unwrap_or_default().to_owned())
    }

    /// The entry of a workflow.
    pub fn entry(&self, workflow_id: &str) -> Result<Value> {
        let found = workflows::get(lock(&self.inner.store).database(), workflow_id)?;
        found.context("no such workflow")
    }

    /// Changes the entry of a workflow in a way that the API does not.
    pub fn change_entry(&self, workflow_id: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut entry = self.entry(workflow_id)?;
        change(&mut entry);
        workflows::put(lock(&self.inner.store).database(), &entry)
    }

    /// Deletes a workflow.
    pub fn forget(&self, workflow_id: &str) -> Result<()> {
        workflows::delete(lock(&self.inner.store).database(), workflow_id)
    }

    /// All stored events, the oldest first.
    pub fn events(&self) -> Result<Vec<TrailEvent>> {
        let everything = Query {
            limit: usize::from(u16::MAX),
            ..Query::default()
        };
        let found = lock(&self.inner.store).find(&everything)?;
        let events = found.0.into_iter().rev();
        let events = events.map(|event| serde_json::from_value(event).context("an event"));
        events.collect()
    }

    /// Event types by WorkflowExecution name, the oldest event first.
    pub fn trails(&self) -> Result<HashMap<String, Vec<String>>> {
        let mut trails: HashMap<_, Vec<_>> = HashMap::new();
        for event in self.events()? {
            let trail = trails.entry(event.resource_id).or_default();
            trail.push(event.event_type);
        }
        Ok(trails)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.inner.faults)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Drop for DataStorage {
    fn drop(&mut self) {
        if let Some(serving) = lock(&self.serving).take() {
            serving.abort();
        }
    }
}

/// Serves each connection in a task that is aborted together with this one.
async fn accept(listener: TcpListener, routes: Router, tls: Option<TlsAcceptor>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (routes, tls) = (TowerToHyperService::new(routes.clone()), tls.clone());
        connections.spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            // Errors are ignored: clients may disconnect.
            match tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let _ = builder.serve_connection(TokioIo::new(stream), routes).await;
                    }
                }
                None => {
                    let _ = builder.serve_connection(TokioIo::new(stream), routes).await;
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
