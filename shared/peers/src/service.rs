//! The HTTP client of a service around wfe.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, redirect};
use thiserror::Error;
use url::Url;

/// Short enough that the deadline of a request ends after the deadline of the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Short, because a request on an idle connection fails if the server has just closed it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the HTTP client could not be created.
#[derive(Debug, Error)]
pub enum ServiceError {
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

/// The client and the base URL, without connecting. `ca`: a PEM file with the certificate authorities to
/// trust; those of the system if absent.
pub(crate) fn service(mut url: Url, ca: Option<&Path>) -> Result<(Client, Url), ServiceError> {
    if !["http", "https"].contains(&url.scheme()) || url.cannot_be_a_base() {
        return Err(ServiceError::Url(url));
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
        Some(path) => client.tls_certs_only(read_authorities(path)?),
        // Plain HTTP needs no certificate authorities, and the image may have none.
        None if url.scheme() == "http" => client.tls_certs_only([]),
        None => client,
    };
    Ok((client.build()?, url))
}

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, ServiceError> {
    let pem = std::fs::read(path).map_err(|source| ServiceError::Ca {
        path: path.to_owned(),
        source,
    })?;
    Ok(Certificate::from_pem_bundle(&pem)?)
}
