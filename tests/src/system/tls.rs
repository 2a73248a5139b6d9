//! A client of the webhook that says exactly what it is told to.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// Speaks HTTP/1.1 with TLS to one address.
#[derive(Clone)]
pub struct TlsClient {
    connector: TlsConnector,
    address: String,
}

impl TlsClient {
    /// Trusts the authority whose certificate is given as PEM.
    pub(super) fn new(address: String, authority: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self { connector, address })
    }

    /// A connection.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let (host, _) = self.address.split_once(':').context("host:port")?;
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(self.connector.connect(name, stream).await?)
    }

    /// A connection on which `bytes` have been said.
    pub async fn open(&self, bytes: &[u8]) -> Result<TlsStream<TcpStream>> {
        let mut stream = self.connect().await?;
        stream.write_all(bytes).await?;
        Ok(stream)
    }

    /// What is answered to `bytes`, up to the end of the headers at least; none, where the
    /// connection is ended instead.
    pub async fn say(&self, bytes: &[u8]) -> Result<Option<String>> {
        let (mut read, mut write) = split(self.connect().await?);
        // It may be answered before all is said, and not be heard any more then.
        let saying = async {
            let _ = write.write_all(bytes).await;
            std::future::pending::<()>().await;
        };
        let hearing = async {
            let mut answer = Vec::new();
            while !answer.windows(4).any(|it| it == b"\r\n\r\n") {
                if matches!(read.read_buf(&mut answer).await, Ok(0) | Err(_)) {
                    return None;
                }
            }
            Some(String::from_utf8_lossy(&answer).into_owned())
        };
        let heard = tokio::time::timeout(ANSWERS_WITHIN, async {
            tokio::select! {
                () = saying => None,
                heard = hearing => heard,
            }
        });
        heard.await.context("no answer")
    }
}
