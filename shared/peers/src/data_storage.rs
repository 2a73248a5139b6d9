//! Connection to Data Storage, for its two users: the audit sink and the workflow catalog.
//!
//! Observed behaviour of the service: 401 is also the answer while it cannot reach its own API
//! server; errors are `application/problem+json`, but for unknown paths and panics.

use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use thiserror::Error;
use tokio::time::Instant;
use url::Url;

use crate::service::{ServiceError, service};
use crate::token::BearerToken;

/// Longest pause that Data Storage can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Pause after a 429 that does not say how long.
const DEFAULT_PAUSE: u64 = 1;

/// Address of Data Storage, and credentials for it.
#[derive(Debug)]
pub struct DataStorageOptions {
    /// Base URL, for example `https://data-storage.kubernaut-system:8080`.
    pub url: Url,
    /// PEM file with the certificate authorities to trust; those of the system if absent.
    pub ca: Option<PathBuf>,
    /// The bearer token; none is sent if absent.
    pub token: Option<BearerToken>,
    /// Whether a token may be sent over plain HTTP, where it can be read on the network.
    pub plain_http: bool,
}

/// Why the connection could not be created.
#[derive(Debug, Error)]
pub enum DataStorageError {
    /// A token would be sent over plain HTTP.
    #[error(
        "{0} would show the bearer token on the network: use https://, or allow it with --data-storage-plain-http"
    )]
    PlainHttp(Url),
    /// The HTTP client could not be created.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Sends requests to Data Storage.
#[derive(Debug)]
pub struct DataStorage {
    client: Client,
    base: Url,
    token: Option<BearerToken>,
    /// Until when Data Storage wants no requests.
    paused_until: Mutex<Option<Instant>>,
}

impl DataStorage {
    /// Creates the HTTP client, without connecting.
    pub fn new(options: DataStorageOptions) -> Result<Self, DataStorageError> {
        let (url, has_token) = (&options.url, options.token.is_some());
        if url.scheme() == "http" && has_token && !options.plain_http {
            return Err(DataStorageError::PlainHttp(options.url));
        }
        let (client, base) = service(options.url, options.ca.as_deref())?;
        Ok(Self {
            client,
            base,
            token: options.token,
            paused_until: Mutex::default(),
        })
    }

    /// The base URL.
    pub(crate) fn url(&self) -> &Url {
        &self.base
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
        let request = self.anonymous(method, path, deadline)?;
        match &self.token {
            Some(token) => Ok(request.bearer_auth(token.get().await?)),
            None => Ok(request),
        }
    }

    /// A request without a token.
    pub(crate) fn anonymous(
        &self,
        method: Method,
        path: &str,
        deadline: Duration,
    ) -> Result<RequestBuilder, String> {
        let url = self.base.join(path).map_err(|error| error.to_string())?;
        Ok(self.client.request(method, url).timeout(deadline))
    }

    /// Looks at the status of a response: a token that was not accepted is replaced, a pause that
    /// was asked for is kept.
    pub(crate) fn heed(&self, response: &Response) {
        match response.status() {
            StatusCode::UNAUTHORIZED => {
                if let Some(token) = &self.token {
                    token.reject();
                }
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = response.headers().get(RETRY_AFTER);
                let seconds = seconds.and_then(|it| it.to_str().ok()?.parse().ok());
                let pause = Duration::from_secs(seconds.unwrap_or(DEFAULT_PAUSE)).min(MAX_PAUSE);
                let until = Instant::now() + pause;
                let mut paused = self.paused_until.lock();
                *paused = (*paused).max(Some(until));
            }
            _ => {}
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
