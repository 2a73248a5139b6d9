//! The catalog of Data Storage.
//!
//! Observed behaviour of the service: an id that is no UUID is answered with 500; a workflow of any
//! status is returned; "not found" is 404 with a problem type, any other 404 is that of a wrong URL.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use moka::future::Cache;
use parking_lot::Mutex;
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use uuid::Uuid;
use wfe_model::text::in_full;
use wfe_model::workflow::{Record, Workflow};

use super::circuit::Circuit;
use super::source::{Catalog, Lookup, LookupError, OnRejected, logged};
use crate::data_storage::{DataStorage, NAME};
use crate::response::{read_body, refused};

/// How long an answer is used: an entry never changes, but for its status.
const ANSWER_TTL: Duration = Duration::from_secs(3);
/// Bounds the memory of the caches.
const MAX_ENTRIES: u64 = 1_000;
/// Bounds the memory of a response: a workflow document is a few KiB.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Problem type of "not found".
const NOT_FOUND: &str = "/workflow-not-found";

/// Why the lookup has no entry.
enum Failure {
    /// The server does not respond, or with 5xx.
    Down(String),
    /// It responds, but not with an entry, or it must not be asked now.
    Odd(String),
}

/// The catalog of Data Storage. Concurrent lookups of a workflow share a request.
pub struct DataStorageCatalog {
    server: Arc<DataStorage>,
    deadline: Duration,
    answers: Cache<String, Lookup>,
    /// What was read from each entry, to compile it again only when it has changed.
    read: Cache<String, (Record, Lookup)>,
    circuit: Mutex<Circuit>,
    /// Why an entry cannot be run, by its id.
    rejected: Mutex<BTreeMap<String, String>>,
    on_rejected: OnRejected,
}

impl DataStorageCatalog {
    /// A catalog of `server`. `on_rejected` receives the errors of the entries that were looked up
    /// and cannot be run.
    pub fn new(
        server: Arc<DataStorage>,
        deadline: Duration,
        on_rejected: impl Fn(&[String]) + Send + Sync + 'static,
    ) -> Self {
        let answers = Cache::builder().max_capacity(MAX_ENTRIES);
        Self {
            server,
            deadline,
            answers: answers.time_to_live(ANSWER_TTL).build(),
            read: Cache::new(MAX_ENTRIES),
            circuit: Mutex::default(),
            rejected: Mutex::default(),
            on_rejected: Box::new(on_rejected),
        }
    }

    async fn find(&self, workflow_id: &str) -> Lookup {
        if !is_canonical(workflow_id) {
            return Err(LookupError::not_found(workflow_id));
        }
        let asked = self.ask(workflow_id);
        let answer = self.answers.try_get_with_by_ref(workflow_id, asked).await;
        answer.unwrap_or_else(|why: Arc<String>| Err(LookupError::Unavailable(why.to_string())))
    }

    /// Asks the server, if the circuit lets it.
    async fn ask(&self, workflow_id: &str) -> Result<Lookup, String> {
        self.circuit.lock().admit(Instant::now())?;
        let fetched = tokio::time::timeout(self.deadline, self.fetch(workflow_id));
        let fetched = fetched.await.unwrap_or_else(|_| {
            let seconds = self.deadline.as_secs();
            Err(Failure::Down(format!("no response within {seconds} s")))
        });
        let down = match &fetched {
            Err(Failure::Down(why)) => Some(why.as_str()),
            Ok(_) | Err(Failure::Odd(_)) => None,
        };
        self.circuit.lock().record(down, Instant::now());
        let fetched = fetched.map_err(|(Failure::Down(why) | Failure::Odd(why))| why)?;
        let Some(record) = fetched else {
            self.report(workflow_id, None);
            return Ok(Err(LookupError::not_found(workflow_id)));
        };
        let summary = record.without_content();
        if let Some((known, lookup)) = self.read.get(workflow_id).await
            && known == summary
        {
            return Ok(lookup);
        }
        let lookup = self.read(&record);
        let read = (summary, lookup.clone());
        self.read.insert(workflow_id.to_owned(), read).await;
        Ok(lookup)
    }

    /// The entry; `None`: the catalog does not have it.
    async fn fetch(&self, workflow_id: &str) -> Result<Option<Record>, Failure> {
        let mut response = self.send(workflow_id).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            // The token may just have been rotated.
            response = self.send(workflow_id).await?;
        }
        match response.status() {
            StatusCode::OK => {
                let entry = entry(workflow_id, response).await;
                entry.map(Some).map_err(Failure::Odd)
            }
            StatusCode::NOT_FOUND => {
                let refused = refused(NAME, response).await;
                if refused.kind.ends_with(NOT_FOUND) {
                    return Ok(None);
                }
                let (text, url) = (refused.text, self.server.url());
                Err(Failure::Odd(format!(
                    "{text}: {url} is not the URL of Data Storage: correct --data-storage-url"
                )))
            }
            StatusCode::FORBIDDEN => {
                let text = refused(NAME, response).await.text;
                Err(Failure::Odd(format!(
                    "{text}: grant the verb create on services/data-storage-service in its namespace"
                )))
            }
            status if status.is_server_error() => {
                Err(Failure::Down(refused(NAME, response).await.text))
            }
            _ => Err(Failure::Odd(refused(NAME, response).await.text)),
        }
    }

    async fn send(&self, workflow_id: &str) -> Result<Response, Failure> {
        let path = format!("api/v1/workflows/{workflow_id}");
        // The deadline of the lookup, which has two requests at most, ends first.
        let request = self.server.request(Method::GET, &path, 2 * self.deadline);
        let request = request.await.map_err(Failure::Odd)?;
        let response = request.send().await;
        let response = response.map_err(|error| Failure::Down(in_full(&error)))?;
        self.server.heed(&response);
        Ok(response)
    }

    /// Compiles an entry.
    fn read(&self, record: &Record) -> Lookup {
        match Workflow::read_record(record) {
            Ok(read) => {
                self.report(&record.workflow_id, None);
                Ok(Arc::new(logged(read)))
            }
            Err(error) => {
                let why = error.to_string();
                tracing::error!(error = why, "workflow set aside");
                self.report(&record.workflow_id, Some(&why));
                Err(LookupError::invalid(&record.workflow_id, &error.reasons()))
            }
        }
    }

    /// Notes why an entry cannot be run, or that it can.
    fn report(&self, workflow_id: &str, why: Option<&str>) {
        let mut rejected = self.rejected.lock();
        let known = match why {
            Some(why) => rejected.insert(workflow_id.to_owned(), why.to_owned()),
            None => rejected.remove(workflow_id),
        };
        if known.as_deref() != why {
            let errors: Vec<_> = rejected.values().cloned().collect();
            (self.on_rejected)(&errors);
        }
    }
}

impl Catalog for DataStorageCatalog {
    fn lookup<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup> {
        self.find(workflow_id).boxed()
    }

    fn lookup_now<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup> {
        let forgotten = self.answers.invalidate(workflow_id);
        forgotten.then(move |()| self.find(workflow_id)).boxed()
    }
}

/// Whether an id is a UUID as Data Storage writes it. Data Storage accepts other spellings, with which
/// one workflow would have several ids in the history.
fn is_canonical(workflow_id: &str) -> bool {
    let parsed = Uuid::try_parse(workflow_id);
    parsed.is_ok_and(|it| it.hyphenated().to_string() == workflow_id)
}

/// The entry in a response, checked to be the one that was asked for, and complete.
async fn entry(workflow_id: &str, response: Response) -> Result<Record, String> {
    let fail = |why: &str| format!("Data Storage's response is not the workflow: {why}");
    let body = read_body(response, MAX_BODY_BYTES).await;
    let body = body.map_err(|_| fail("it is too long, or was cut off"))?;
    let record: Record = serde_json::from_slice(&body).map_err(|error| fail(&error.to_string()))?;
    if record.workflow_id != workflow_id {
        return Err(fail("workflowId is another one"));
    }
    let hash = hex::encode(Sha256::digest(record.content.as_bytes()));
    if record.content_hash != hash {
        return Err(fail("contentHash is not that of content"));
    }
    Ok(record)
}
