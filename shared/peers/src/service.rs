//! The connection to a service around wfe.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode, redirect};
use thiserror::Error;
use url::Url;

use crate::token::BearerToken;

/// Short enough that the deadline of a request ends after the deadline of the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Short, because a request on an idle connection fails if the server has just closed it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Address of a service, and credentials for it.
#[derive(Debug)]
pub struct ServiceOptions {
    /// Base URL, for example `https://data-storage-service.kubernaut-system.svc:8080`.
    pub url: Url,
    /// PEM file with the certificate authorities to trust; those of the system if absent.
    pub ca: Option<PathBuf>,
    /// The bearer token; none is sent if absent.
    pub token: Option<BearerToken>,
    /// Whether a token may be sent over plain HTTP, where it can be read on the network.
    pub plain_http: PlainHttp,
}

/// Whether a token may be sent over plain HTTP.
#[derive(Clone, Copy, Debug)]
pub enum PlainHttp {
    /// It may.
    Allowed,
    /// It may not, unless this flag is set.
    Needs(&'static str),
}

impl PlainHttp {
    /// As the flag `flag` says, which is set or not.
    pub fn flag(flag: &'static str, set: bool) -> Self {
        if set {
            Self::Allowed
        } else {
            Self::Needs(flag)
        }
    }
}

/// Why the connection could not be created.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// A token would be sent over plain HTTP.
    #[error(
        "{url} would show the bearer token on the network: use https://, or allow it with {flag}"
    )]
    PlainHttp {
        /// The URL.
        url: Url,
        /// The flag that allows it.
        flag: &'static str,
    },
    /// The URL is not an HTTP URL.
    #[error("invalid URL {0}: must start with http:// or https://")]
    Url(Url),
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

/// Sends requests to a service.
#[derive(Debug)]
pub(crate) struct Connection {
    client: Client,
    base: Url,
    token: Option<BearerToken>,
}

impl Connection {
    /// Creates the HTTP client, without connecting.
    pub(crate) fn new(options: ServiceOptions) -> Result<Self, ServiceError> {
        let ServiceOptions {
            mut url,
            ca,
            token,
            plain_http,
        } = options;
        if !["http", "https"].contains(&url.scheme()) || url.cannot_be_a_base() {
            return Err(ServiceError::Url(url));
        }
        if url.scheme() == "http"
            && token.is_some()
            && let PlainHttp::Needs(flag) = plain_http
        {
            return Err(ServiceError::PlainHttp { url, flag });
        }
        // Without a trailing slash, `Url::join` would replace the last part of the path.
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .user_agent(concat!("wfe/", env!("CARGO_PKG_VERSION")));
        let client = match ca {
            Some(path) => client.tls_certs_only(read_authorities(&path)?),
            // Plain HTTP needs no certificate authorities, and the image may have none.
            None if url.scheme() == "http" => client.tls_certs_only([]),
            None => client,
        };
        Ok(Self {
            client: client.build()?,
            base: url,
            token,
        })
    }

    /// The base URL.
    pub(crate) fn url(&self) -> &Url {
        &self.base
    }

    /// A request with the current token; the error says why there is none.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        deadline: Duration,
    ) -> Result<RequestBuilder, String> {
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

    /// Replaces the token if the service did not accept it.
    pub(crate) fn heed(&self, response: &Response) {
        let rejected = response.status() == StatusCode::UNAUTHORIZED;
        if let Some(token) = self.token.as_ref().filter(|_| rejected) {
            token.reject();
        }
    }
}

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, ServiceError> {
    let pem = std::fs::read(path).map_err(|source| ServiceError::Ca {
        path: path.to_owned(),
        source,
    })?;
    Ok(Certificate::from_pem_bundle(&pem)?)
}
