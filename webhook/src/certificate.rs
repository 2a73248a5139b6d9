//! The serving certificate, read again when its content changes.
//!
//! The content is compared, every few seconds: the kubelet swaps a link two directories up, which
//! a watch on the file sees once at most. A pair that does not fit is reported and the old one
//! stays.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// Two small files; a swap is to be noticed before the old pair is taken away from clients, too.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Why a pair of files is no certificate to serve with.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No PEM.
    #[error("tls.crt or tls.key is no PEM")]
    Pem(#[from] pem::Error),
    /// No key for this certificate, or none at all.
    #[error("tls.key does not fit tls.crt")]
    Pair(#[from] rustls::Error),
    /// No certificate in the file.
    #[error("tls.crt has no readable certificate")]
    NoCertificate,
}

/// A certificate that may be swapped while connections are open: those go on with the old one.
#[derive(Debug)]
pub struct ServingCertificate {
    directory: PathBuf,
    content: std::sync::Mutex<Content>,
    current: ArcSwap<CertifiedKey>,
}

/// Both files' bytes.
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

    /// Looks at the files once; whether another certificate is served now.
    pub fn refresh(&self) -> Result<bool, CertificateError> {
        let found = Content::read(&self.directory)?;
        let mut content = self
            .content
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *content == found {
            return Ok(false);
        }
        self.current.store(Arc::new(found.parse()?));
        *content = found;
        Ok(true)
    }

    /// From when until when the certificate is valid, in seconds since 1970.
    pub fn valid(&self) -> Result<Range<i64>, CertificateError> {
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

    /// Looks at the files again and again until `stop`; `observe` is called after each look.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken, observe: impl Fn(&Self)) {
        loop {
            match self.refresh() {
                Ok(true) => tracing::info!("the serving certificate was read again"),
                Ok(false) => {}
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(%error, cause, "the serving certificate cannot be read again: the old one stays");
                }
            }
            observe(&self);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
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

    fn pair() -> (String, String) {
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
    fn a_certificate_is_swapped_twice_by_links_as_the_kubelet_does() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let swap_to = |name: &str| {
            fs::create_dir(path(name)).expect("made");
            write(&path(name), &pair());
            std::os::unix::fs::symlink(name, path("..data_tmp")).expect("linked");
            fs::rename(path("..data_tmp"), path("..data")).expect("swapped");
        };
        swap_to("..1");
        for name in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), path(name)).expect("linked");
        }
        let certificate = ServingCertificate::load(directory.path()).expect("loaded");
        assert!(!certificate.refresh().expect("read"), "nothing has changed");
        for name in ["..2", "..3"] {
            let before = served(&certificate);
            swap_to(name);
            assert!(certificate.refresh().expect("read"), "{name} is new");
            assert_ne!(served(&certificate), before);
        }
        assert!(
            certificate
                .valid()
                .expect("readable")
                .contains(&1_700_000_000)
        );
    }

    #[test]
    fn a_key_that_does_not_fit_keeps_the_old_pair_until_it_does() {
        let directory = tempfile::tempdir().expect("a directory");
        let (first, second) = (pair(), pair());
        write(directory.path(), &first);
        let certificate = ServingCertificate::load(directory.path()).expect("loaded");
        let before = served(&certificate);
        write(directory.path(), &(second.0.clone(), first.1));
        assert!(matches!(
            certificate.refresh(),
            Err(CertificateError::Pair(_))
        ));
        assert_eq!(served(&certificate), before);
        write(directory.path(), &second);
        assert!(certificate.refresh().expect("it fits now"));
        fs::write(directory.path().join("tls.key"), "nothing").expect("written");
        assert!(matches!(
            certificate.refresh(),
            Err(CertificateError::Pem(_))
        ));
    }
}
