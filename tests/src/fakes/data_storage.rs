//! A stand-in for Data Storage: the API of the audit trail as the real service was seen to have it,
//! over `SQLite`, and what can go wrong with it, on demand.
//!
//! What is alike: the schema and its refusals, the columns that answer 500, the keys of `event_data`
//! that are dropped, no idempotency, paging, the order of the checks (content before token),
//! `TokenReview` and `SubjectAccessReview`. What is not: nothing is kept after the end, unknown keys
//! of `error_details` stay, questions are filtered by correlation, type and time only, a
//! Content-Type is not asked for, and who never answers does so until the client goes, not for 30 s.

mod routes;
mod rules;
mod store;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use jsonschema::Validator;
use kube::Client;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use wfe_peers::audit::TrailEvent;

use self::store::{Query, Store};
use crate::cluster::pki::Authority;

/// What goes wrong with a batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It is answered after so long; when the client has gone by then, nothing is stored.
    Slow(Duration),
    /// This status is the answer, to questions too; nothing is stored.
    Answer(u16),
    /// The database is down: 500, and not ready.
    DatabaseDown,
    /// It is stored, the answer is lost.
    LoseAnswer,
    /// It is stored after so long, whether anybody still waits or not, and never answered.
    CommitLate(Duration),
}

/// Who may come in.
pub enum Door {
    /// Whoever has one of these tokens.
    Tokens(HashSet<String>),
    /// Whoever the API server knows, and lets create `services/data-storage-service` in this
    /// namespace, as the real one asks it.
    Review(Client, String),
}

/// What the handlers share.
struct Inner {
    store: Mutex<Store>,
    schema: Validator,
    door: Door,
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    /// What goes wrong, and how often.
    current: Option<(Fault, usize)>,
    /// What the database fails on.
    poison: Option<String>,
    keeps_engine: bool,
    batches: usize,
    questions: usize,
}

/// A running stand-in; ends with the value.
pub struct DataStorage {
    inner: Arc<Inner>,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    /// Of the authority that its certificate is from.
    pub ca: Option<String>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

impl DataStorage {
    /// Serves on a free port of `host`, without TLS.
    pub async fn start(host: &str, door: Door) -> Result<Self> {
        Self::listen(host, door, None, None).await
    }

    /// Serves on a free port of `host`, with a certificate of an authority of its own.
    pub async fn start_with_tls(host: &str, door: Door) -> Result<Self> {
        let authority = Authority::new()?;
        let identity = authority.issue("data-storage", None, &[host])?;
        let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let tls = TlsAcceptor::from(Arc::new(config));
        Self::listen(host, door, Some(tls), Some(authority.certificate)).await
    }

    async fn listen(
        host: &str,
        door: Door,
        tls: Option<TlsAcceptor>,
        ca: Option<String>,
    ) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await?;
        let storage = Self {
            inner: Arc::new(Inner {
                store: Mutex::new(Store::new()?),
                schema: rules::schema()?,
                door,
                faults: Mutex::default(),
            }),
            address: listener.local_addr()?,
            tls,
            ca,
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

    /// Where it is.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Ends: connections are cut, new ones refused. What is stored stays.
    pub async fn stop(&self) {
        let serving = lock(&self.serving).take();
        if let Some(serving) = serving {
            serving.abort();
            // The socket is closed then.
            let _ = serving.await;
        }
    }

    /// Serves again where it did.
    pub async fn resume(&self) -> Result<()> {
        self.serve(TcpListener::bind(self.address).await?);
        Ok(())
    }

    /// From now on `fault` happens, to each batch.
    pub fn break_with(&self, fault: Fault) {
        self.break_times(fault, usize::MAX);
    }

    /// `fault` happens to the next `times` batches.
    pub fn break_times(&self, fault: Fault, times: usize) {
        self.faults().current = Some((fault, times));
    }

    /// All is well again.
    pub fn mend(&self) {
        self.faults().current = None;
    }

    /// The database fails on whatever has this text.
    pub fn poison(&self, text: &str) {
        self.faults().poison = Some(text.to_owned());
    }

    /// Keeps `execution_engine`, as a newer server will.
    pub fn keep_engine(&self) {
        self.faults().keeps_engine = true;
    }

    /// How many batches, and how many questions have come.
    pub fn requests(&self) -> (usize, usize) {
        let faults = self.faults();
        (faults.batches, faults.questions)
    }

    /// Every event, the oldest first.
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

    /// Of each WorkflowExecution the types of its events, the oldest first.
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
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for DataStorage {
    fn drop(&mut self) {
        if let Some(serving) = lock(&self.serving).take() {
            serving.abort();
        }
    }
}

/// Serves each connection in a task of this one: they end with it.
async fn accept(listener: TcpListener, routes: Router, tls: Option<TlsAcceptor>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (routes, tls) = (TowerToHyperService::new(routes.clone()), tls.clone());
        connections.spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            // A client that goes away is nobody's error.
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
