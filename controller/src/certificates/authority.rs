//! The content of the Secret: an authority, the older ones that are still trusted, and the serving
//! certificate.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use time::OffsetDateTime;
use wfe_core::certificates::{Lifetimes, Serving, Signer, Validity};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// Clocks may differ: a certificate is valid from this long before it was made.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

type Data = BTreeMap<String, ByteString>;

/// What the Secret holds, as PEM. Each may be empty.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The authorities: the current one first, then older ones that have not ended.
    pub authorities: String,
    key: String,
    certificate: String,
    certificate_key: String,
}

impl Content {
    /// Reads the data of the Secret.
    pub fn read(data: Option<&Data>) -> Self {
        let text = |key: &str| {
            let bytes = data.and_then(|it| it.get(key));
            bytes.map_or_else(String::new, |it| {
                String::from_utf8_lossy(&it.0).into_owned()
            })
        };
        Self {
            authorities: text("ca.crt"),
            key: text("ca.key"),
            certificate: text("tls.crt"),
            certificate_key: text("tls.key"),
        }
    }

    /// The data of the Secret.
    pub fn data(self) -> Data {
        let entries = [
            ("ca.crt", self.authorities),
            ("ca.key", self.key),
            ("tls.crt", self.certificate),
            ("tls.key", self.certificate_key),
        ];
        let entries = entries.into_iter().filter(|(_, pem)| !pem.is_empty());
        entries
            .map(|(key, pem)| (key.to_owned(), ByteString(pem.into_bytes())))
            .collect()
    }

    /// The current authority; none if its certificate or key cannot be read, or if they do not belong
    /// together.
    pub fn authority(&self) -> Option<Validity> {
        let pems = parse(&self.authorities);
        let authority = certificate(pems.first()?)?;
        validity(&authority).filter(|_| belongs(&self.key, &authority))
    }

    /// The serving certificate; none if it is not for `name`, if its key is another one, or if no authority
    /// here has signed it.
    pub fn serving(&self, name: &str) -> Option<Serving> {
        let pems = parse(&self.certificate);
        let serving = certificate(pems.first()?)?;
        let names = serving.subject_alternative_name().ok()??;
        let is_host = |it: &GeneralName<'_>| *it == GeneralName::DNSName(name);
        let is_named = names.value.general_names.iter().any(is_host);
        if !is_named || !belongs(&self.certificate_key, &serving) {
            return None;
        }
        let has_signed = |authority: &Pem| {
            let authority = certificate(authority);
            authority.is_some_and(|it| serving.verify_signature(Some(it.public_key())).is_ok())
        };
        let signer = parse(&self.authorities).iter().position(has_signed)?;
        Some(Serving {
            ends: validity(&serving)?.ends,
            signer: if signer == 0 {
                Signer::Current
            } else {
                Signer::Older
            },
        })
    }

    /// With a new authority, and without those that have ended.
    pub fn with_new_authority(
        self,
        name: &str,
        lifetimes: &Lifetimes,
        now: Timestamp,
    ) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params(name, now, lifetimes.authority)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut authorities = params.self_signed(&key)?.pem();
        for older in parse(&self.authorities) {
            let validity = certificate(&older).and_then(|it| validity(&it));
            if validity.is_some_and(|it| it.ends > now) {
                let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
                authorities.push_str(&pem::encode_config(&older, config));
            }
        }
        Ok(Self {
            authorities,
            key: key.serialize_pem(),
            ..self
        })
    }

    /// With a new serving certificate of the current authority.
    pub fn with_new_certificate(
        self,
        name: &str,
        lifetimes: &Lifetimes,
        now: Timestamp,
    ) -> Result<Self> {
        let authorities = parse(&self.authorities);
        let authority = authorities.first().context("no authority")?.contents();
        let issuer = Issuer::from_ca_cert_der(&authority.into(), KeyPair::from_pem(&self.key)?)?;
        let key = KeyPair::generate()?;
        let mut params = params(name, now, lifetimes.certificate)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(Self {
            certificate: params.signed_by(&key, &issuer)?.pem(),
            certificate_key: key.serialize_pem(),
            ..self
        })
    }
}

fn params(name: &str, now: Timestamp, lifetime: SignedDuration) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::from_unix_timestamp((now - BACKDATE).as_second())?;
    params.not_after = OffsetDateTime::from_unix_timestamp((now + lifetime).as_second())?;
    Ok(params)
}

/// The certificates in a PEM file; none if it is not one.
fn parse(text: &str) -> Vec<Pem> {
    pem::parse_many(text).unwrap_or_default()
}

/// Whether the private key is that of the certificate.
fn belongs(key: &str, certificate: &X509Certificate<'_>) -> bool {
    let key = KeyPair::from_pem(key);
    key.is_ok_and(|it| it.subject_public_key_info() == certificate.public_key().raw)
}

fn certificate(pem: &Pem) -> Option<X509Certificate<'_>> {
    Some(parse_x509_certificate(pem.contents()).ok()?.1)
}

fn validity(certificate: &X509Certificate<'_>) -> Option<Validity> {
    let validity = certificate.validity();
    let time = |it: i64| Timestamp::from_second(it).ok();
    Some(Validity {
        made: time(validity.not_before.timestamp())? + BACKDATE,
        ends: time(validity.not_after.timestamp())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "wfe-webhook.kubernaut-system.svc";
    const LIFETIMES: Lifetimes = Lifetimes {
        certificate: SignedDuration::from_hours(100),
        renew_before: SignedDuration::from_hours(20),
        authority: SignedDuration::from_hours(1000),
    };

    /// BR-WE-001: what is written is read as what it is.
    #[test]
    fn content_through_a_renewal_knows_its_signer() {
        let now = Timestamp::now();
        assert!(Content::default().authority().is_none());
        let first = Content::default()
            .with_new_authority(NAME, &LIFETIMES, now)
            .and_then(|it| it.with_new_certificate(NAME, &LIFETIMES, now))
            .expect("a certificate");
        let first = Content::read(Some(&first.data()));
        let whole = |it: Timestamp| it.as_second();
        let authority = first.authority().expect("an authority");
        assert_eq!(whole(authority.made), whole(now));
        assert_eq!(whole(authority.ends), whole(now + LIFETIMES.authority));
        let serving = first.serving(NAME).expect("a certificate");
        assert_eq!(serving.signer, Signer::Current);
        assert_eq!(whole(serving.ends), whole(now + LIFETIMES.certificate));
        assert_eq!(first.serving("other.kubernaut-system.svc"), None);

        let second = first.clone().with_new_authority(NAME, &LIFETIMES, now);
        let second = second.expect("an authority");
        assert!(second.authorities.ends_with(&first.authorities));
        let serving = second.serving(NAME).expect("a certificate");
        assert_eq!(serving.signer, Signer::Older);
        let third = second.clone().with_new_certificate(NAME, &LIFETIMES, now);
        let serving = third.expect("a certificate").serving(NAME);
        assert_eq!(serving.expect("signed").signer, Signer::Current);

        let mixed = Content {
            key: first.key.clone(),
            ..second.clone()
        };
        assert_eq!(mixed.authority(), None, "the key of another authority");
        let mixed = Content {
            certificate_key: first.key.clone(),
            ..first.clone()
        };
        assert_eq!(mixed.serving(NAME), None, "the key of another certificate");

        let later = now + LIFETIMES.authority;
        let fourth = second.with_new_authority(NAME, &LIFETIMES, later);
        let fourth = fourth.expect("an authority");
        assert_eq!(fourth.authorities.matches("BEGIN").count(), 1);
        assert_eq!(fourth.serving(NAME), None, "its authority has ended");
    }
}
