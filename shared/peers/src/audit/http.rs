//! Audit events in Data Storage, over HTTP.
//!
//! What the service does with a batch was measured: all or nothing, no idempotency, the same answer
//! (500) for a database that is down and for a string that does not fit its column.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Certificate, Client, RequestBuilder, Response, StatusCode, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use url::Url;
use wfe_model::audit::{AuditEvent, Identity};
use wfe_model::text::cut;

use super::trail::Known;
use super::{AuditSink, NotRecorded, TrailEvent, Unasked};
use wfe_model::text::in_full;

/// The server closes a connection without an answer after 30 s, and does not commit after that.
const DEADLINE: Duration = Duration::from_secs(35);
/// Of the deadline enough is left to know that the server's own is over.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A server that goes away closes connections just when they are used again.
const IDLE_FOR: Duration = Duration::from_secs(10);
/// Whether it is well is known at once, or it is not well.
const WELL_WITHIN: Duration = Duration::from_secs(2);
/// Events may have 64 KiB of parameters.
const PAGE: usize = 100;
/// Correlations that are asked about at the same time.
const QUERIES: usize = 4;
/// Of a refusal: what follows repeats the values that were sent.
const MOST_SAID: usize = 200;

/// Where Data Storage is, and who we are there.
#[derive(Clone, Debug)]
pub struct HttpSinkOptions {
    /// `https://data-storage.kubernaut-system:8080`.
    pub url: Url,
    /// PEM file with the authorities that its certificate may be from; else those of the system.
    pub ca: Option<PathBuf>,
    /// File with the bearer token; read for each request, since it rotates.
    pub token_file: Option<PathBuf>,
    /// How long a request may take, where it is not [`DEADLINE`].
    pub deadline: Option<Duration>,
}

/// Why there is no sink.
#[derive(Debug, Error)]
pub enum HttpSinkError {
    /// The URL is no place for requests.
    #[error("{0} is no http or https URL")]
    Url(Url),
    /// The authorities cannot be read.
    #[error("read {}", path.display())]
    Ca {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No client can be made of it.
    #[error("prepare the HTTP client")]
    Client(#[from] reqwest::Error),
}

/// See the module.
#[derive(Debug)]
pub struct HttpSink {
    client: Client,
    base: Url,
    token_file: Option<PathBuf>,
    deadline: Duration,
}

/// What is kept of an answer to a question.
#[derive(Deserialize)]
struct Page<E> {
    data: Vec<E>,
    pagination: Pagination,
}

#[derive(Deserialize)]
struct Pagination {
    has_more: bool,
}

/// RFC 9457, as far as anybody reads it.
#[derive(Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

impl HttpSink {
    /// Prepares the client; nothing is asked yet.
    pub fn new(options: HttpSinkOptions) -> Result<Self, HttpSinkError> {
        let mut base = options.url;
        if !["http", "https"].contains(&base.scheme()) || base.cannot_be_a_base() {
            return Err(HttpSinkError::Url(base));
        }
        // Else the last part of a path would be replaced.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_WITHIN)
            .pool_idle_timeout(IDLE_FOR)
            .user_agent(concat!("wfe/", env!("CARGO_PKG_VERSION")));
        let client = match &options.ca {
            Some(path) => client.tls_certs_only(read_authorities(path)?),
            // Without TLS nobody needs authorities, and an image may have none.
            None if base.scheme() == "http" => client.tls_certs_only([]),
            None => client,
        };
        Ok(Self {
            client: client.build()?,
            base,
            token_file: options.token_file,
            deadline: options.deadline.unwrap_or(DEADLINE),
        })
    }

    /// Every event of a correlation, in the order of the pages.
    pub async fn trail(&self, correlation_id: &str) -> Result<Vec<TrailEvent>, Unasked> {
        let question = vec![("correlation_id", correlation_id.to_owned())];
        self.pages(question).await
    }

    fn at(&self, path: &str) -> Result<Url, String> {
        self.base.join(path).map_err(|error| error.to_string())
    }

    /// With the token of this moment.
    async fn authorized(&self, request: RequestBuilder) -> Result<RequestBuilder, String> {
        let Some(path) = &self.token_file else {
            return Ok(request);
        };
        let token = tokio::fs::read_to_string(path).await;
        let token = token.map_err(|error| format!("read {}: {error}", path.display()))?;
        Ok(request.bearer_auth(token.trim()))
    }

    async fn send(&self, events: &[AuditEvent]) -> Result<(), NotRecorded> {
        let body: Vec<_> = events.iter().map(fitting).collect();
        let url = self.at("api/v1/audit/events/batch");
        let request = self
            .client
            .post(url.map_err(NotRecorded::Unavailable)?)
            .timeout(self.deadline)
            .json(&body);
        let request = self.authorized(request).await;
        let began = Instant::now();
        let settled_after = || self.deadline.saturating_sub(began.elapsed());
        let response = match request.map_err(NotRecorded::Unavailable)?.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_builder() => {
                return Err(NotRecorded::Unavailable(in_full(&error)));
            }
            Err(error) => {
                let (why, settled_after) = (in_full(&error), settled_after());
                return Err(NotRecorded::Unanswered { why, settled_after });
            }
        };
        let status = response.status();
        if status == StatusCode::CREATED {
            return Ok(());
        }
        // Else it is the word of something else that answers at this address.
        let own = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|it| it == "application/problem+json");
        let why = said(response).await;
        Err(match status {
            StatusCode::BAD_REQUEST if own => NotRecorded::Refused(why),
            StatusCode::PAYLOAD_TOO_LARGE => NotRecorded::Refused(why),
            // Its own word, when it fails on what it was sent.
            StatusCode::INTERNAL_SERVER_ERROR if own => match self.well().await {
                Ok(()) => NotRecorded::Failed(why),
                Err(_) => NotRecorded::Unanswered {
                    why,
                    settled_after: Duration::ZERO,
                },
            },
            // Nobody knows what became of it behind a gateway, or after another success.
            StatusCode::SERVICE_UNAVAILABLE if own => NotRecorded::Unavailable(why),
            status if status.is_success() || status.is_server_error() => {
                let settled_after = settled_after();
                NotRecorded::Unanswered { why, settled_after }
            }
            _ => NotRecorded::Unavailable(why),
        })
    }

    /// One question for each correlation, for the time in which its events happened.
    async fn has(&self, events: &[AuditEvent]) -> Result<Vec<bool>, Unasked> {
        let mut correlations: HashMap<&str, (Timestamp, Timestamp)> = HashMap::new();
        for event in events {
            let at = event.event_timestamp;
            let span = correlations
                .entry(&event.correlation_id)
                .or_insert((at, at));
            *span = (span.0.min(at), span.1.max(at));
        }
        let questions = correlations.into_iter().map(|(correlation_id, span)| {
            let (since, until) = span;
            vec![
                ("correlation_id", correlation_id.to_owned()),
                ("since", since.to_string()),
                ("until", until.to_string()),
            ]
        });
        let asked = questions.map(|question| self.pages::<Known>(question));
        let asked: Vec<_> = asked.collect();
        let asked = futures::stream::iter(asked).buffer_unordered(QUERIES);
        let known: Vec<Vec<Known>> = asked.try_collect().await?;
        let known = known.into_iter().flatten().map(Known::identity);
        let known: HashSet<_> = known.map(to_the_microsecond).collect();
        let has = |event: &AuditEvent| known.contains(&to_the_microsecond(event.identity()));
        Ok(events.iter().map(has).collect())
    }

    /// All pages of an answer.
    async fn pages<E: DeserializeOwned>(
        &self,
        question: Vec<(&'static str, String)>,
    ) -> Result<Vec<E>, Unasked> {
        let mut found = Vec::new();
        loop {
            let url = self.at("api/v1/audit/events").map_err(Unasked)?;
            let page = [
                ("limit", PAGE.to_string()),
                ("offset", found.len().to_string()),
            ];
            let request = self
                .client
                .get(url)
                .timeout(self.deadline)
                .query(&question)
                .query(&page);
            let request = self.authorized(request).await.map_err(Unasked)?;
            let unasked = |error: reqwest::Error| Unasked(in_full(&error));
            let response = request.send().await.map_err(unasked)?;
            if response.status() != StatusCode::OK {
                return Err(Unasked(said(response).await));
            }
            let page: Page<E> = response.json().await.map_err(unasked)?;
            let (more, empty) = (page.pagination.has_more, page.data.is_empty());
            found.extend(page.data);
            if !more || empty {
                return Ok(found);
            }
        }
    }

    async fn well(&self) -> Result<(), Unasked> {
        let url = self.at("health/ready").map_err(Unasked)?;
        let asked = self.client.get(url).timeout(WELL_WITHIN).send().await;
        let response = asked.map_err(|error| Unasked(in_full(&error)))?;
        // Anything else is the word of something before it, which may not know this path.
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Ok(());
        }
        Err(Unasked(said(response).await))
    }
}

/// Finer digits do not survive.
fn to_the_microsecond(identity: Identity) -> Identity {
    let microseconds = TimestampRound::new()
        .smallest(Unit::Microsecond)
        .mode(RoundMode::Floor);
    let timestamp = identity.timestamp.round(microseconds);
    Identity {
        timestamp: timestamp.unwrap_or(identity.timestamp),
        ..identity
    }
}

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, HttpSinkError> {
    let pem = std::fs::read(path).map_err(|source| HttpSinkError::Ca {
        path: path.to_owned(),
        source,
    })?;
    Ok(Certificate::from_pem_bundle(&pem)?)
}

/// An answer that is not the one that was hoped for, in a line: nothing of what was sent.
async fn said(response: Response) -> String {
    /// Refusals are short, or repeat what was sent.
    const MOST_READ: usize = 1 << 16;
    let status = response.status();
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(bytes)) = stream.next().await {
        body.extend_from_slice(&bytes);
        if body.len() > MOST_READ {
            break;
        }
    }
    let problem: Option<Problem> = serde_json::from_slice(&body).ok();
    let detail = problem.and_then(|it| it.detail.or(it.title));
    let detail = detail.as_deref().and_then(|it| it.lines().next());
    let detail = detail.map(|it| format!(": {}", cut(it, MOST_SAID)));
    format!(
        "Data Storage answered {status}{}",
        detail.unwrap_or_default()
    )
}

/// An event as the service can store it: a NUL in any string, or more than a column holds, is a 500
/// for ever.
fn fitting(event: &AuditEvent) -> Value {
    const COLUMNS: [(&str, usize); 6] = [
        ("actor_id", 255),
        ("resource_id", 255),
        ("correlation_id", 255),
        ("namespace", 253),
        ("resource_type", 100),
        ("actor_type", 50),
    ];
    let mut value = serde_json::to_value(event).unwrap_or_default();
    without_nul(&mut value);
    for (column, most) in COLUMNS {
        if let Some(Value::String(text)) = value.get_mut(column) {
            *text = cut(text, most);
        }
    }
    value
}

fn without_nul(value: &mut Value) {
    match value {
        Value::String(text) => text.retain(|it| it != '\0'),
        Value::Array(values) => values.iter_mut().for_each(without_nul),
        Value::Object(values) => values.values_mut().for_each(without_nul),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl AuditSink for HttpSink {
    fn record<'a>(&'a self, events: &'a [AuditEvent]) -> BoxFuture<'a, Result<(), NotRecorded>> {
        self.send(events).boxed()
    }

    fn recorded<'a>(
        &'a self,
        events: &'a [AuditEvent],
    ) -> BoxFuture<'a, Result<Vec<bool>, Unasked>> {
        self.has(events).boxed()
    }

    fn is_well(&self) -> BoxFuture<'_, Result<(), Unasked>> {
        self.well().boxed()
    }
}
