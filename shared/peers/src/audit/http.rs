//! Audit sink that sends events to Data Storage over HTTP.
//!
//! Observed behaviour of the service: it stores all events of a batch or none, it does not detect
//! duplicates, and it responds with 500 both if its database is down and if a string is longer than
//! its column.

use std::collections::HashMap;
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

use super::content::{Content, hash_parameters, report_other};
use super::sink::{AuditSink, NotRecorded, Unasked};
use super::trail::{StoredIdentity, TrailEvent};
use crate::token::BearerToken;
use wfe_model::text::in_full;

/// Short enough that the deadline of a request ends after the deadline of the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Short, because a request on an idle connection fails if the server has just closed it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A healthy server responds to a health check at once.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Events per page. An event can have 64 Ki characters of parameters.
const PAGE_SIZE: usize = 100;
/// Number of correlation ids that are queried concurrently.
const MAX_CONCURRENT_QUERIES: usize = 4;
/// Maximum length of the detail of an error response; the rest repeats the values that were sent.
const MAX_DETAIL_LENGTH: usize = 200;

/// Address of Data Storage, and credentials for it.
#[derive(Debug)]
pub struct HttpSinkOptions {
    /// Base URL, for example `https://data-storage.kubernaut-system:8080`.
    pub url: Url,
    /// PEM file with the certificate authorities to trust; those of the system if absent.
    pub ca: Option<PathBuf>,
    /// The bearer token; none is sent if absent.
    pub token: Option<BearerToken>,
    /// Whether a token may be sent over plain HTTP, where anybody on the way can read it.
    pub plain_http: bool,
    /// Deadline of a request, longer than the server's own: the server closes a connection after
    /// 30 s and does not commit the request afterwards.
    pub deadline: Duration,
}

/// Why the sink could not be created.
#[derive(Debug, Error)]
pub enum HttpSinkError {
    /// The URL is not an HTTP URL.
    #[error("invalid URL {0}: must start with http:// or https://")]
    Url(Url),
    /// A token would be sent over plain HTTP.
    #[error(
        "{0} would show the bearer token on the network: use https://, or allow it with --data-storage-plain-http"
    )]
    PlainHttp(Url),
    /// The file with the certificate authorities could not be read.
    #[error("read {}", path.display())]
    Ca {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The HTTP client could not be created.
    #[error("create the HTTP client")]
    Client(#[from] reqwest::Error),
}

/// Audit sink that sends events to Data Storage.
#[derive(Debug)]
pub struct HttpSink {
    client: Client,
    base: Url,
    token: Option<BearerToken>,
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

/// Problem details (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

impl HttpSink {
    /// Creates the HTTP client, without connecting.
    pub fn new(options: HttpSinkOptions) -> Result<Self, HttpSinkError> {
        let mut base = options.url;
        if !["http", "https"].contains(&base.scheme()) || base.cannot_be_a_base() {
            return Err(HttpSinkError::Url(base));
        }
        if base.scheme() == "http" && options.token.is_some() && !options.plain_http {
            return Err(HttpSinkError::PlainHttp(base));
        }
        // Without a trailing slash, `Url::join` would replace the last part of the path.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .user_agent(concat!("wfe/", env!("CARGO_PKG_VERSION")));
        let client = match &options.ca {
            Some(path) => client.tls_certs_only(read_authorities(path)?),
            // Plain HTTP needs no certificate authorities, and the image may have none.
            None if base.scheme() == "http" => client.tls_certs_only([]),
            None => client,
        };
        Ok(Self {
            client: client.build()?,
            base,
            token: options.token,
            deadline: options.deadline,
        })
    }

    /// All events of a correlation id, in the order of the pages.
    pub async fn trail(&self, correlation_id: &str) -> Result<Vec<TrailEvent>, Unasked> {
        let query = vec![("correlation_id", correlation_id.to_owned())];
        self.pages(query).await
    }

    fn endpoint(&self, path: &str) -> Result<Url, String> {
        self.base.join(path).map_err(|error| error.to_string())
    }

    /// Adds the current token.
    async fn authorized(&self, request: RequestBuilder) -> Result<RequestBuilder, String> {
        match &self.token {
            Some(token) => Ok(request.bearer_auth(token.get().await?)),
            None => Ok(request),
        }
    }

    /// Looks at the status of a response: a token that was not accepted is replaced.
    fn check_token(&self, response: &Response) {
        if let Some(token) = &self.token
            && response.status() == StatusCode::UNAUTHORIZED
        {
            token.reject();
        }
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
        let url = self.endpoint("api/v1/audit/events/batch");
        let request = self
            .client
            .post(url.map_err(NotRecorded::Unavailable)?)
            .timeout(self.deadline)
            .json(body);
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
        self.check_token(&response);
        let status = response.status();
        if status == StatusCode::CREATED {
            return Ok(Sent::Stored);
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return Ok(Sent::TooLarge(describe(response).await));
        }
        // Other content types are responses of a proxy or of another server.
        let from_data_storage = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|it| it == "application/problem+json");
        let why = describe(response).await;
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
            let url = self.endpoint("api/v1/audit/events").map_err(Unasked)?;
            let page = [
                ("limit", PAGE_SIZE.to_string()),
                ("offset", found.len().to_string()),
            ];
            let request = self
                .client
                .get(url)
                .timeout(self.deadline)
                .query(&query)
                .query(&page);
            let request = self.authorized(request).await.map_err(Unasked)?;
            let failed = |error: reqwest::Error| Unasked(in_full(&error));
            let response = request.send().await.map_err(failed)?;
            self.check_token(&response);
            if response.status() != StatusCode::OK {
                return Err(Unasked(describe(response).await));
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
        let url = self.endpoint("health/ready").map_err(Unasked)?;
        let response = self.client.get(url).timeout(HEALTH_TIMEOUT).send().await;
        let response = response.map_err(|error| Unasked(in_full(&error)))?;
        // Other statuses may come from a proxy that does not serve this path.
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Ok(());
        }
        Err(Unasked(describe(response).await))
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

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, HttpSinkError> {
    let pem = std::fs::read(path).map_err(|source| HttpSinkError::Ca {
        path: path.to_owned(),
        source,
    })?;
    Ok(Certificate::from_pem_bundle(&pem)?)
}

/// Describes an error response in one line, without values that were sent.
async fn describe(response: Response) -> String {
    /// Longer error responses repeat the values that were sent.
    const MAX_BODY_BYTES: usize = 1 << 16;
    let status = response.status();
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(bytes)) = stream.next().await {
        body.extend_from_slice(&bytes);
        if body.len() > MAX_BODY_BYTES {
            break;
        }
    }
    let problem: Option<Problem> = serde_json::from_slice(&body).ok();
    let detail = problem.and_then(|it| it.detail.or(it.title));
    let detail = detail.as_deref().and_then(|it| it.lines().next());
    let detail = detail.map(|it| format!(": {}", cut(it, MAX_DETAIL_LENGTH)));
    format!(
        "Data Storage responded with {status}{}",
        detail.unwrap_or_default()
    )
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
