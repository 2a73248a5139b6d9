//! Audit sink that sends events to Data Storage over HTTP.
//!
//! Observed behaviour of the service: it stores all events of a batch or none, it does not detect
//! duplicates, and it responds with 500 both if its database is down and if a string is longer than
//! its column.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wfe_model::audit::{AuditEvent, Identity};
use wfe_model::text::{cut, in_full};

use super::content::{Content, hash_parameters, report_other};
use super::sink::{AuditSink, NotRecorded, Unasked};
use super::trail::{StoredIdentity, TrailEvent};
use crate::data_storage::{DataStorage, NAME, is_own};
use crate::response::refused;

/// A healthy server responds to a health check at once.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Events per page. An event can have 64 Ki characters of parameters.
const PAGE_SIZE: usize = 100;
/// Number of correlation ids that are queried concurrently.
const MAX_CONCURRENT_QUERIES: usize = 4;
/// Audit sink that sends events to Data Storage.
#[derive(Debug)]
pub struct HttpSink {
    server: Arc<DataStorage>,
    deadline: Duration,
}

/// A definite answer to a batch.
enum Sent {
    Stored,
    /// Larger than the server, or a proxy before it, accepts.
    TooLarge(String),
}

/// Response to a query.
#[derive(Deserialize)]
struct Page<E> {
    data: Vec<E>,
    pagination: Pagination,
}

#[derive(Deserialize)]
struct Pagination {
    has_more: bool,
}

impl HttpSink {
    /// A sink of `server`. `deadline` is longer than the server's own: the server closes a connection
    /// after 30 s and does not commit the request afterwards.
    pub fn new(server: Arc<DataStorage>, deadline: Duration) -> Self {
        Self { server, deadline }
    }

    /// All events of a correlation id, in the order of the pages.
    pub async fn trail(&self, correlation_id: &str) -> Result<Vec<TrailEvent>, Unasked> {
        let query = vec![("correlation_id", correlation_id.to_owned())];
        self.pages(query).await
    }

    /// Stores events. The parameters of a single event that is too large are hashed: its other fields
    /// are of a size that every server accepts.
    async fn store(&self, events: &[AuditEvent]) -> Result<(), NotRecorded> {
        let mut body: Vec<_> = events.iter().map(storable).collect();
        let mut sent = self.send(&body).await?;
        if let (Sent::TooLarge(_), [event]) = (&sent, body.as_mut_slice()) {
            hash_parameters(event);
            sent = self.send(&body).await?;
        }
        match sent {
            Sent::Stored => Ok(()),
            Sent::TooLarge(why) => Err(NotRecorded::Refused(why)),
        }
    }

    async fn send(&self, body: &[Value]) -> Result<Sent, NotRecorded> {
        let path = "api/v1/audit/events/batch";
        let request = self.server.request(Method::POST, path, self.deadline).await;
        let request = request.map_err(NotRecorded::Unavailable)?;
        let began = Instant::now();
        let settled_after = || self.deadline.saturating_sub(began.elapsed());
        let response = match request.json(body).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_builder() => {
                return Err(NotRecorded::Unavailable(in_full(&error)));
            }
            Err(error) => {
                let (why, settled_after) = (in_full(&error), settled_after());
                return Err(NotRecorded::Unanswered { why, settled_after });
            }
        };
        self.server.heed(&response);
        let status = response.status();
        if status == StatusCode::CREATED {
            return Ok(Sent::Stored);
        }
        let from_data_storage = is_own(&response);
        let why = refused(NAME, response).await.text;
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return Ok(Sent::TooLarge(why));
        }
        Err(match status {
            StatusCode::BAD_REQUEST if from_data_storage => NotRecorded::Refused(why),
            // Either the database is down or the content of an event causes the error.
            StatusCode::INTERNAL_SERVER_ERROR if from_data_storage => match self.health().await {
                Ok(()) => NotRecorded::Failed(why),
                Err(_) => NotRecorded::Unanswered {
                    why,
                    settled_after: Duration::ZERO,
                },
            },
            StatusCode::SERVICE_UNAVAILABLE if from_data_storage => NotRecorded::Unavailable(why),
            // A proxy may respond so although Data Storage processes the request.
            status if status.is_success() || status.is_server_error() => {
                let settled_after = settled_after();
                NotRecorded::Unanswered { why, settled_after }
            }
            _ => NotRecorded::Unavailable(why),
        })
    }

    /// For each event, whether it is stored. Sends one query for each correlation id, limited to
    /// the time span of its events.
    async fn find(&self, events: &[AuditEvent]) -> Result<Vec<bool>, Unasked> {
        let mut correlations: HashMap<&str, (Timestamp, Timestamp)> = HashMap::new();
        for event in events {
            let at = event.event_timestamp;
            let span = correlations
                .entry(&event.correlation_id)
                .or_insert((at, at));
            *span = (span.0.min(at), span.1.max(at));
        }
        let queries = correlations.into_iter().map(|(correlation_id, span)| {
            let (since, until) = span;
            vec![
                ("correlation_id", correlation_id.to_owned()),
                ("since", since.to_string()),
                ("until", until.to_string()),
            ]
        });
        let requests = queries.map(|query| self.pages::<Value>(query));
        let requests: Vec<_> = requests.collect();
        let responses = futures::stream::iter(requests).buffer_unordered(MAX_CONCURRENT_QUERIES);
        let pages: Vec<Vec<Value>> = responses.try_collect().await?;
        let mut stored: HashMap<Identity, Vec<Value>> = HashMap::new();
        for event in pages.into_iter().flatten() {
            let identity = StoredIdentity::deserialize(&event);
            let identity = identity.map_err(|error| Unasked(error.to_string()))?;
            let same = stored.entry(to_microseconds(identity.identity()));
            same.or_default().push(event);
        }
        let is_stored = |event: &AuditEvent| {
            let Some(same) = stored.get(&to_microseconds(event.identity())) else {
                return false;
            };
            let content = Content::read(&storable(event));
            let is_stored = same.iter().any(|it| content.matches(it));
            if !is_stored {
                report_other(&event.identity());
            }
            is_stored
        };
        Ok(events.iter().map(is_stored).collect())
    }

    /// All events that match a query, from all pages.
    async fn pages<E: DeserializeOwned>(
        &self,
        query: Vec<(&'static str, String)>,
    ) -> Result<Vec<E>, Unasked> {
        let mut found = Vec::new();
        loop {
            let path = "api/v1/audit/events";
            let page = [
                ("limit", PAGE_SIZE.to_string()),
                ("offset", found.len().to_string()),
            ];
            let request = self.server.request(Method::GET, path, self.deadline).await;
            let request = request.map_err(Unasked)?.query(&query).query(&page);
            let failed = |error: reqwest::Error| Unasked(in_full(&error));
            let response = request.send().await.map_err(failed)?;
            self.server.heed(&response);
            if response.status() != StatusCode::OK {
                return Err(Unasked(refused(NAME, response).await.text));
            }
            let page: Page<E> = response.json().await.map_err(failed)?;
            let (more, empty) = (page.pagination.has_more, page.data.is_empty());
            found.extend(page.data);
            if !more || empty {
                return Ok(found);
            }
        }
    }

    async fn health(&self) -> Result<(), Unasked> {
        let path = "health/ready";
        let request = self.server.anonymous(Method::GET, path, HEALTH_TIMEOUT);
        let response = request.map_err(Unasked)?.send().await;
        let response = response.map_err(|error| Unasked(in_full(&error)))?;
        // Other statuses may come from a proxy that does not serve this path.
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Ok(());
        }
        Err(Unasked(refused(NAME, response).await.text))
    }
}

/// Truncates the timestamp to microseconds, the precision of Data Storage.
fn to_microseconds(identity: Identity) -> Identity {
    let microseconds = TimestampRound::new()
        .smallest(Unit::Microsecond)
        .mode(RoundMode::Floor);
    let timestamp = identity.timestamp.round(microseconds);
    Identity {
        timestamp: timestamp.unwrap_or(identity.timestamp),
        ..identity
    }
}

/// Converts an event to JSON that Data Storage can store. The service always responds with 500 to a
/// string that has a NUL or is longer than its column.
fn storable(event: &AuditEvent) -> Value {
    const COLUMNS: [(&str, usize); 6] = [
        ("actor_id", 255),
        ("resource_id", 255),
        ("correlation_id", 255),
        ("namespace", 253),
        ("resource_type", 100),
        ("actor_type", 50),
    ];
    let mut value = serde_json::to_value(event).unwrap_or_default();
    remove_nul(&mut value);
    for (column, maximum) in COLUMNS {
        if let Some(Value::String(text)) = value.get_mut(column) {
            *text = cut(text, maximum);
        }
    }
    value
}

fn remove_nul(value: &mut Value) {
    match value {
        Value::String(text) => text.retain(|it| it != '\0'),
        Value::Array(values) => values.iter_mut().for_each(remove_nul),
        Value::Object(values) => values.values_mut().for_each(remove_nul),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl AuditSink for HttpSink {
    fn record<'a>(&'a self, events: &'a [AuditEvent]) -> BoxFuture<'a, Result<(), NotRecorded>> {
        self.store(events).boxed()
    }

    fn recorded<'a>(
        &'a self,
        events: &'a [AuditEvent],
    ) -> BoxFuture<'a, Result<Vec<bool>, Unasked>> {
        self.find(events).boxed()
    }

    fn settles_within(&self) -> Duration {
        self.deadline
    }

    fn is_well(&self) -> BoxFuture<'_, Result<(), Unasked>> {
        self.health().boxed()
    }
}
