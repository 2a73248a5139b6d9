//! Connection to Data Storage, for its two users: the audit sink and the workflow catalog.
//!
//! Observed behaviour of the service: 401 is also the answer while it cannot reach its own API
//! server; errors are `application/problem+json`, but for unknown paths and panics.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode, redirect};
use thiserror::Error;
use tokio::time::Instant;
use url::Url;

use crate::token::BearerToken;

/// Short enough that the deadline of a request ends after the deadline of the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Short, because a request on an idle connection fails if the server has just closed it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// Whether a token may be sent over plain HTTP, where anybody on the way can read it.
    pub plain_http: bool,
}

/// Why the connection could not be created.
#[derive(Debug, Error)]
pub enum DataStorageError {
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
        let mut base = options.url;
        if !["http", "https"].contains(&base.scheme()) || base.cannot_be_a_base() {
            return Err(DataStorageError::Url(base));
        }
        if base.scheme() == "http" && options.token.is_some() && !options.plain_http {
            return Err(DataStorageError::PlainHttp(base));
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

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, DataStorageError> {
    let pem = std::fs::read(path).map_err(|source| DataStorageError::Ca {
        path: path.to_owned(),
        source,
    })?;
    Ok(Certificate::from_pem_bundle(&pem)?)
}
