//! The TLS serving certificate, reloaded when the content of its files changes.
//!
//! The files are polled: the kubelet updates a mounted Secret by swapping the `..data` symlink, and
//! a file watch reports at most the first swap. If the new key does not match the new certificate,
//! the error is logged and the previous pair stays in use.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::clients::KnownClients;

/// Short, so that a renewed certificate is served before the previous certificate expires; reading
/// two small files is cheap.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Why the certificate and key files cannot be loaded.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("tls.crt or tls.key is not valid PEM")]
    Pem(#[from] pem::Error),
    /// The private key does not belong to the certificate, or its type is not supported.
    #[error("tls.key does not match tls.crt")]
    KeyMismatch(#[from] rustls::Error),
    /// `tls.crt` contains no X.509 certificate.
    #[error("tls.crt contains no valid certificate")]
    NoCertificate,
}

/// A certificate that can be replaced at run time: new handshakes use the new certificate, open
/// connections are not affected.
#[derive(Debug)]
pub struct ServingCertificate {
    directory: PathBuf,
    content: parking_lot::Mutex<Content>,
    current: ArcSwap<CertifiedKey>,
}

/// Bytes of both files, for comparison.
#[derive(Debug, PartialEq)]
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Content {
    fn read(directory: &Path) -> Result<Self, CertificateError> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read(&path).map_err(|source| CertificateError::Read { path, source })
        };
        Ok(Self {
            certificate: read("tls.crt")?,
            key: read("tls.key")?,
        })
    }

    fn parse(&self) -> Result<CertifiedKey, CertificateError> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<_, _>>()?;
        if chain.is_empty() {
            return Err(CertificateError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)?;
        Ok(CertifiedKey::from_der(chain, key, &default_provider())?)
    }
}

impl ServingCertificate {
    /// Reads `tls.crt` and `tls.key`.
    pub fn load(directory: &Path) -> Result<Arc<Self>, CertificateError> {
        let content = Content::read(directory)?;
        let current = ArcSwap::from_pointee(content.parse()?);
        Ok(Arc::new(Self {
            directory: directory.to_owned(),
            content: content.into(),
            current,
        }))
    }

    /// Reads the files once and returns whether the served certificate was replaced.
    pub fn refresh(&self) -> Result<bool, CertificateError> {
        let found = Content::read(&self.directory)?;
        let mut content = self.content.lock();
        if *content == found {
            return Ok(false);
        }
        self.current.store(Arc::new(found.parse()?));
        *content = found;
        Ok(true)
    }

    /// Validity period (`notBefore..notAfter`) in seconds since the Unix epoch.
    pub fn validity(&self) -> Result<Range<i64>, CertificateError> {
        let current = self.current.load();
        let first = current
            .cert
            .first()
            .ok_or(CertificateError::NoCertificate)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(first)
            .map_err(|_| CertificateError::NoCertificate)?;
        let validity = parsed.validity();
        Ok(validity.not_before.timestamp()..validity.not_after.timestamp())
    }
}

/// TLS 1.2 and 1.3; each handshake uses the current certificate, and the current authority of clients.
pub fn tls(
    certificate: Arc<ServingCertificate>,
    known_clients: Option<Arc<KnownClients>>,
) -> ServerConfig {
    let builder = ServerConfig::builder();
    let verifies = known_clients.is_some();
    let builder = match known_clients {
        Some(known) => builder.with_client_cert_verifier(known),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificate);
    if verifies {
        // A resumed session would not be verified again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// What is reloaded when its files change.
pub struct Reload {
    /// The serving certificate.
    pub certificate: Arc<ServingCertificate>,
    /// The authority of clients.
    pub known_clients: Option<Arc<KnownClients>>,
}

impl Reload {
    /// Polls the files until `stop` is cancelled; calls `observe` after each poll.
    pub async fn on_change(self, stop: CancellationToken, observe: impl Fn(&ServingCertificate)) {
        loop {
            report("serving certificate", self.certificate.refresh());
            if let Some(known) = &self.known_clients {
                report("client authority", known.refresh());
            }
            observe(&self.certificate);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }
}

fn report<E: std::error::Error>(what: &str, refreshed: Result<bool, E>) {
    match refreshed {
        Ok(true) => tracing::info!("{what} reloaded"),
        Ok(false) => {}
        Err(error) => {
            let cause = error.source().map(ToString::to_string);
            tracing::error!(%error, cause, "{what} reload failed, keeping the previous one");
        }
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_pair() -> (String, String) {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn write(directory: &Path, (certificate, key): &(String, String)) {
        fs::write(directory.join("tls.crt"), certificate).expect("written");
        fs::write(directory.join("tls.key"), key).expect("written");
    }

    fn served(certificate: &ServingCertificate) -> Vec<u8> {
        certificate.current.load().cert[0].to_vec()
    }

    #[test]
    fn refresh_symlink_swapped_twice_serves_each_new_certificate() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let swap_to = |name: &str| {
            fs::create_dir(path(name)).expect("made");
            write(&path(name), &key_pair());
            std::os::unix::fs::symlink(name, path("..data_tmp")).expect("linked");
            fs::rename(path("..data_tmp"), path("..data")).expect("swapped");
        };
        swap_to("..1");
        for name in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), path(name)).expect("linked");
        }
        let certificate = ServingCertificate::load(directory.path()).expect("loaded");
        assert!(
            !certificate.refresh().expect("read"),
            "the files are unchanged"
        );
        for name in ["..2", "..3"] {
            let before = served(&certificate);
            swap_to(name);
            assert!(certificate.refresh().expect("read"), "{name} is new");
            assert_ne!(served(&certificate), before);
        }
        assert!(
            certificate
                .validity()
                .expect("readable")
                .contains(&1_700_000_000)
        );
    }

    #[test]
    fn refresh_mismatched_key_keeps_previous_certificate() {
        let directory = tempfile::tempdir().expect("a directory");
        let (first, second) = (key_pair(), key_pair());
        write(directory.path(), &first);
        let certificate = ServingCertificate::load(directory.path()).expect("loaded");
        let before = served(&certificate);
        write(directory.path(), &(second.0.clone(), first.1));
        assert!(matches!(
            certificate.refresh(),
            Err(CertificateError::KeyMismatch(_))
        ));
        assert_eq!(served(&certificate), before);
        write(directory.path(), &second);
        assert!(certificate.refresh().expect("the key matches"));
        fs::write(directory.path().join("tls.key"), "nothing").expect("written");
        assert!(matches!(
            certificate.refresh(),
            Err(CertificateError::Pem(_))
        ));
    }
}
