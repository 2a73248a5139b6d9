//! OCI references with a digest (BR-WE-014), so that a tag never decides what is executed.
//!
//! The grammar is that of the OCI distribution specification with two restrictions: the registry
//! host is required, and the digest is sha256 in lower-case hex.

use std::fmt;

use crate::pattern::pattern;

/// Registry host and repository. As in container runtimes, the first path component is a host if
/// it contains a dot or a port, or is `localhost`.
macro_rules! name {
    () => {
        concat!(
            r"([a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)+(:[0-9]{1,5})?",
            r"|[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?:[0-9]{1,5}|localhost)",
            r"(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+"
        )
    };
}
macro_rules! tag {
    () => {
        r"(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?"
    };
}

/// Maximum length of registry and repository together, from the OCI distribution specification.
pub const MAX_NAME_LENGTH: usize = 255;

pattern!(
    /// `workflowRef.containerImage`.
    IMAGE, 512,
    concat!("^", name!(), tag!(), "@sha256:[a-f0-9]{64}$"),
    "registry/repository[:tag]@sha256:<64 lower-case hex digits>, with a registry host and at most 255 characters before tag and digest"
);
pattern!(
    /// `workflowRef.bundleRef`.
    BUNDLE, 512,
    concat!("^oci://", name!(), tag!(), "(@sha256:[a-f0-9]{64})?$"),
    "oci://registry/repository[:tag][@sha256:<64 lower-case hex digits>], with a registry host and at most 255 characters before tag and digest"
);

/// CEL condition for [`MAX_NAME_LENGTH`].
pub(crate) const CEL_NAME_LENGTH: &str =
    "self.find('^(oci://)?[^/]+/[^:@]+').size() <= 255 + (self.startsWith('oci://') ? 6 : 0)";

/// `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Registry, repository and tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    registry: String,
    repository: String,
    tag: Option<String>,
}

/// Splits a reference that a [`Pattern`](crate::pattern::Pattern) has accepted. Returns `None` if a
/// part is missing or registry and repository together are too long.
fn split(text: &str) -> Option<(Name, Option<Digest>)> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(Digest(digest.to_owned()))),
        None => (text, None),
    };
    let (registry, path) = name.split_once('/')?;
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag.to_owned())),
        None => (path, None),
    };
    let name = Name {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
        tag,
    };
    (name.registry.len() + 1 + name.repository.len() <= MAX_NAME_LENGTH).then_some((name, digest))
}

/// A container image with a digest: `registry/repository[:tag]@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageReference {
    name: Name,
    digest: Digest,
}

impl ImageReference {
    /// Parses a text that [`IMAGE`] accepts.
    pub fn parse(text: &str) -> Option<Self> {
        if !IMAGE.accepts(text) {
            return None;
        }
        let (name, digest) = split(text)?;
        Some(Self {
            name,
            digest: digest?,
        })
    }

    /// The digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The tag, if any. It is informational: the digest identifies the content.
    pub fn tag(&self) -> Option<&str> {
        self.name.tag.as_deref()
    }

    /// Whether both references have the same registry and repository, whatever their tags and
    /// digests.
    pub fn same_repository(&self, other: &Self) -> bool {
        self.name.registry == other.name.registry && self.name.repository == other.name.repository
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.digest)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

/// A Tekton bundle: `oci://registry/repository[:tag][@sha256:…]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BundleReference {
    name: Name,
    digest: Option<Digest>,
}

impl BundleReference {
    /// Parses a text that [`BUNDLE`] accepts.
    pub fn parse(text: &str) -> Option<Self> {
        if !BUNDLE.accepts(text) {
            return None;
        }
        let (name, digest) = split(text.strip_prefix("oci://")?)?;
        Some(Self { name, digest })
    }

    /// The digest, if any.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The bundle with its own digest, or with `digest` if it has none.
    #[must_use]
    pub fn pinned(self, digest: &Digest) -> ImageReference {
        ImageReference {
            digest: self.digest.unwrap_or_else(|| digest.clone()),
            name: self.name,
        }
    }
}

impl fmt::Display for BundleReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci://{}", self.name)?;
        self.digest
            .iter()
            .try_for_each(|digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex() -> impl Strategy<Value = String> {
        "[a-f0-9]{64}"
    }

    /// Generates references without a digest.
    pub(super) fn reference() -> impl Strategy<Value = String> {
        let host = prop_oneof![
            "[a-zA-Z0-9]([-a-zA-Z0-9]{0,8}[a-zA-Z0-9])?\\.[a-z]{2,5}(:[0-9]{1,5})?",
            "[a-z]{1,8}:[0-9]{1,5}",
            Just("localhost".to_owned())
        ];
        (
            host,
            "(/[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){1,3}",
            "(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,20})?",
        )
            .prop_map(|(host, path, tag)| format!("{host}{path}{tag}"))
    }

    proptest! {
        #[test]
        fn image_reference_valid_formats_to_same_text_and_parses_with_oci_spec(name in reference(), hex in hex()) {
            let text = format!("{name}@sha256:{hex}");
            let image = ImageReference::parse(&text).expect("built from the grammar");
            prop_assert_eq!(image.to_string(), text.clone());
            let other: oci_spec::distribution::Reference = text.parse().expect("oci-spec accepts the reference");
            prop_assert_eq!(other.digest().map(str::to_owned), Some(format!("sha256:{hex}")));
            prop_assert_eq!(other.tag(), image.tag());
            prop_assert_eq!(other.registry(), image.name.registry.as_str());
            prop_assert_eq!(other.repository(), image.name.repository.as_str());
        }

        #[test]
        fn bundle_reference_valid_formats_to_same_text(name in reference(), hex in proptest::option::of(hex())) {
            let text = format!("oci://{name}{}", hex.map(|hex| format!("@sha256:{hex}")).unwrap_or_default());
            prop_assert_eq!(BundleReference::parse(&text).expect("built from the grammar").to_string(), text);
        }

        #[test]
        fn references_any_text_parses_without_panic(text in "\\PC*") {
            let _ = ImageReference::parse(&text);
            let _ = BundleReference::parse(&text);
        }

        #[test]
        fn references_accepted_text_formats_to_same_text(text in "(oci://)?[a-z./:@_-]{1,40}(@sha256:[a-f0-9]{64})?") {
            if let Some(image) = ImageReference::parse(&text) {
                prop_assert_eq!(image.to_string(), text.clone());
            }
            if let Some(bundle) = BundleReference::parse(&text) {
                prop_assert_eq!(bundle.to_string(), text);
            }
        }
    }

    #[test]
    fn references_name_over_255_characters_is_rejected() {
        let digest = format!("@sha256:{}", "0".repeat(64));
        let name = |length: usize| format!("r.io/{}", "a".repeat(length - "r.io/".len()));
        assert!(ImageReference::parse(&format!("{}{digest}", name(255))).is_some());
        assert!(ImageReference::parse(&format!("{}{digest}", name(256))).is_none());
        assert!(BundleReference::parse(&format!("oci://{}", name(255))).is_some());
        assert!(BundleReference::parse(&format!("oci://{}", name(256))).is_none());
    }
}
