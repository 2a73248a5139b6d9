//! Which clients are answered: with `--client-ca`, only those with a certificate of that authority and
//! one of the names in `--client-name`, which the API server has been given for webhooks. Others are
//! refused in the TLS handshake.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why the file with the certificate authority cannot be loaded.
#[derive(Debug, Error)]
pub enum ClientAuthorityError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The file is not PEM.
    #[error("{} is not valid PEM", path.display())]
    Pem {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// The file has no certificate of an authority.
    #[error("{} has no valid certificate of an authority", path.display())]
    Invalid {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong.
        source: VerifierBuilderError,
    },
}

/// Verifies the certificates of clients. The authority can be replaced at run time.
#[derive(Debug)]
pub struct KnownClients {
    path: PathBuf,
    names: Vec<String>,
    content: Mutex<Vec<u8>>,
    current: ArcSwap<Verifier>,
}

/// As [`ArcSwap`] takes no pointer to a trait.
#[derive(Debug)]
struct Verifier(Arc<dyn ClientCertVerifier>);

impl KnownClients {
    /// Reads the authorities in the PEM file `path`. A client needs one of `names`, as the common name or
    /// a DNS name; any will do if there are none.
    pub fn load(path: &Path, names: Vec<String>) -> Result<Arc<Self>, ClientAuthorityError> {
        let content = read(path)?;
        let current = ArcSwap::from_pointee(parse(path, &content)?);
        Ok(Arc::new(Self {
            path: path.to_owned(),
            names,
            content: Mutex::new(content),
            current,
        }))
    }

    /// Reads the file once and returns whether the authorities were replaced.
    pub fn refresh(&self) -> Result<bool, ClientAuthorityError> {
        let found = read(&self.path)?;
        let mut content = self.content.lock();
        if *content == found {
            return Ok(false);
        }
        self.current.store(Arc::new(parse(&self.path, &found)?));
        *content = found;
        Ok(true)
    }

    fn has_known_name(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.names.is_empty() {
            return true;
        }
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return false;
        };
        let common = parsed.subject().iter_common_name();
        let common = common.filter_map(|it| it.as_str().ok());
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let alternative = alternative.iter().flat_map(|it| &it.value.general_names);
        let dns = alternative.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        });
        let mut names = common.chain(dns);
        names.any(|name| self.names.iter().any(|known| known == name))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientAuthorityError> {
    fs::read(path).map_err(|source| ClientAuthorityError::Read {
        path: path.to_owned(),
        source,
    })
}

fn parse(path: &Path, pem: &[u8]) -> Result<Verifier, ClientAuthorityError> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|source| ClientAuthorityError::Pem {
        path: path.to_owned(),
        source,
    })?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier
        .map(Verifier)
        .map_err(|source| ClientAuthorityError::Invalid {
            path: path.to_owned(),
            source,
        })
}

impl ClientCertVerifier for KnownClients {
    /// None: a client that has one certificate for webhooks sends it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let current = self.current.load();
        let verified = (current.0).verify_client_cert(end_entity, intermediates, now)?;
        if !self.has_known_name(end_entity) {
            let refused = CertificateError::ApplicationVerificationFailure;
            return Err(Error::InvalidCertificate(refused));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.current.load();
        verifier.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.current.load();
        verifier.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current.load().0.supported_verify_schemes()
    }
}
