//! Connection to Data Storage, for its two users: the audit sink and the workflow catalog.
//!
//! Observed behaviour of the service: 401 is also the answer while it cannot reach its own API
//! server; errors are `application/problem+json`, but for unknown paths and panics.

use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use crate::service::{Connection, ServiceError, ServiceOptions};

/// Longest pause that Data Storage can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Pause after a 429 that does not say how long.
const DEFAULT_PAUSE: u64 = 1;

/// Sends requests to Data Storage.
#[derive(Debug)]
pub struct DataStorage {
    connection: Connection,
    /// Until when Data Storage wants no requests.
    paused_until: Mutex<Option<Instant>>,
}

impl DataStorage {
    /// Creates the HTTP client, without connecting.
    pub fn new(options: ServiceOptions) -> Result<Self, ServiceError> {
        Ok(Self {
            connection: Connection::new(options)?,
            paused_until: Mutex::default(),
        })
    }

    /// The base URL.
    pub(crate) fn url(&self) -> &Url {
        self.connection.url()
    }

    /// A request with the current token; the error says why none may be sent now.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        deadline: Duration,
    ) -> Result<RequestBuilder, String> {
        if let Some(until) = *self.paused_until.lock() {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let seconds = left.as_secs() + 1;
                return Err(format!(
                    "Data Storage responded with 429 Too Many Requests and is asked again in {seconds} s"
                ));
            }
        }
        self.connection.request(method, path, deadline).await
    }

    /// A request without a token.
    pub(crate) fn anonymous(
        &self,
        method: Method,
        path: &str,
        deadline: Duration,
    ) -> Result<RequestBuilder, String> {
        self.connection.anonymous(method, path, deadline)
    }

    /// Looks at the status of a response: a token that was not accepted is replaced, a pause that
    /// was asked for is kept.
    pub(crate) fn heed(&self, response: &Response) {
        self.connection.heed(response);
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            let seconds = response.headers().get(RETRY_AFTER);
            let seconds = seconds.and_then(|it| it.to_str().ok()?.parse().ok());
            let pause = Duration::from_secs(seconds.unwrap_or(DEFAULT_PAUSE)).min(MAX_PAUSE);
            let until = Instant::now() + pause;
            let mut paused = self.paused_until.lock();
            *paused = (*paused).max(Some(until));
        }
    }
}

/// Name of the service, for messages.
pub(crate) const NAME: &str = "Data Storage";

/// Whether the response comes from Data Storage: other content types are those of a proxy or of
/// another server.
pub(crate) fn is_own(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE);
    kind.is_some_and(|it| it == "application/problem+json")
}
