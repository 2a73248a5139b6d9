//! A TLS client of the webhook that sends given bytes, valid HTTP or not.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cluster::pki::Identity;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens TLS connections to one address.
#[derive(Clone)]
pub struct TlsClient {
    connector: TlsConnector,
    address: String,
}

impl TlsClient {
    /// `authority` is the trusted CA certificate as PEM, `identity` what the client shows.
    pub(super) fn new(
        address: String,
        authority: &str,
        identity: Option<&Identity>,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![CertificateDer::from_pem_slice(
                    identity.certificate.as_bytes(),
                )?];
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self { connector, address })
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let (host, _) = self.address.split_once(':').context("host:port")?;
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(self.connector.connect(name, stream).await?)
    }

    /// Opens a connection and sends `bytes`.
    pub async fn open(&self, bytes: &[u8]) -> Result<TlsStream<TcpStream>> {
        let mut stream = self.connect().await?;
        stream.write_all(bytes).await?;
        Ok(stream)
    }

    /// Sends `bytes` and returns the response, at least up to the end of its headers; none if the
    /// server closes the connection instead.
    pub async fn send(&self, bytes: &[u8]) -> Result<Option<String>> {
        let (mut read, mut write) = split(self.connect().await?);
        // A server may respond, and stop reading, before the whole request is sent.
        let sending = async {
            let _ = write.write_all(bytes).await;
            std::future::pending::<()>().await;
        };
        let receiving = async {
            let mut answer = Vec::new();
            while !answer.windows(4).any(|it| it == b"\r\n\r\n") {
                if matches!(read.read_buf(&mut answer).await, Ok(0) | Err(_)) {
                    return None;
                }
            }
            Some(String::from_utf8_lossy(&answer).into_owned())
        };
        let response = tokio::time::timeout(RESPONSE_TIMEOUT, async {
            tokio::select! {
                () = sending => None,
                response = receiving => response,
            }
        });
        response.await.context("no response")
    }
}
