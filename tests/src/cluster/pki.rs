//! Issues certificates and writes kubeconfigs.

use std::fs;
use std::path::Path;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

/// A CA that signs server and client certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The CA certificate as PEM.
    pub certificate: String,
}

/// A certificate and its key, as PEM.
pub(crate) struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = Self::params()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// Loads the CA of a running cluster, to issue more client certificates.
    pub(crate) fn load(certificate: &Path, key: &Path) -> Result<Self> {
        let issuer = Issuer::new(
            Self::params()?,
            KeyPair::from_pem(&fs::read_to_string(key)?)?,
        );
        Ok(Self {
            issuer,
            certificate: fs::read_to_string(certificate)?,
        })
    }

    fn params() -> Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "wfe-cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        Ok(params)
    }

    /// The CA key as PEM.
    pub(crate) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues an identity for a user and, if given, a group. As a server, the certificate is valid
    /// for `names` (DNS names and IP addresses).
    pub(crate) fn issue(
        &self,
        user: &str,
        group: Option<&str>,
        names: &[&str],
    ) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>(),
        )?;
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        Ok(Identity {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A kubeconfig for `identity`.
    pub(crate) fn kubeconfig(&self, server: &str, identity: &Identity) -> Value {
        let user = json!({
            "client-certificate-data": STANDARD.encode(&identity.certificate),
            "client-key-data": STANDARD.encode(&identity.key),
        });
        kubeconfig(server, &self.certificate, &user, "default")
    }
}

/// A kubeconfig with the given user entry and namespace, as JSON, which is also YAML.
pub(crate) fn kubeconfig(server: &str, ca: &str, user: &Value, namespace: &str) -> Value {
    let cluster = json!({ "server": server, "certificate-authority-data": STANDARD.encode(ca) });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "wfe", "cluster": cluster }],
        "users": [{ "name": "wfe", "user": user }],
        "contexts": [{ "name": "wfe", "context": { "cluster": "wfe", "user": "wfe", "namespace": namespace } }],
        "current-context": "wfe",
    })
}
