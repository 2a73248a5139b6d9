//! OCI references with a digest (BR-WE-014): what runs is named by content, never by tag alone.
//!
//! The grammar is the one of the OCI distribution specification, made stricter: the registry host
//! is explicit, the digest is sha256 in lower-case hex.

use std::fmt;

use crate::pattern::pattern;

/// Registry host and repository. A host is told from a path component as container runtimes do:
/// it has a dot or a port, or is `localhost`.
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

/// The distribution specification's limit for registry and repository together.
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

/// CEL for [`MAX_NAME_LENGTH`]: what stands before tag and digest.
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

/// Registry, repository and tag: which image, but not which content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    registry: String,
    repository: String,
    tag: Option<String>,
}

/// Takes a reference apart that a [`Pattern`](crate::pattern::Pattern) has accepted.
/// `None` when a part is missing or registry and repository are too long together.
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

/// A container image by digest: `registry/repository[:tag]@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageReference {
    name: Name,
    digest: Digest,
}

impl ImageReference {
    /// Reads what [`IMAGE`] allows; `None` for anything else.
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

    /// The digest that is executed.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The tag, where one is written; it names nothing, the digest does.
    pub fn tag(&self) -> Option<&str> {
        self.name.tag.as_deref()
    }

    /// Whether both name the same repository of the same registry (tags and digests aside).
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
    /// Reads what [`BUNDLE`] allows; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if !BUNDLE.accepts(text) {
            return None;
        }
        let (name, digest) = split(text.strip_prefix("oci://")?)?;
        Some(Self { name, digest })
    }

    /// The digest, where the reference says one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same bundle with its digest said; one that is there already stays.
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

    /// References as people write them: each part from its grammar.
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
        fn an_image_reference_survives_a_round_trip_and_other_parsers_take_it(name in reference(), hex in hex()) {
            let text = format!("{name}@sha256:{hex}");
            let image = ImageReference::parse(&text).expect("built from the grammar");
            prop_assert_eq!(image.to_string(), text.clone());
            let theirs: oci_spec::distribution::Reference = text.parse().expect("oci-spec takes what we take");
            prop_assert_eq!(theirs.digest().map(str::to_owned), Some(format!("sha256:{hex}")));
            prop_assert_eq!(theirs.tag(), image.tag());
            prop_assert_eq!(theirs.registry(), image.name.registry.as_str());
            prop_assert_eq!(theirs.repository(), image.name.repository.as_str());
        }

        #[test]
        fn a_bundle_reference_survives_a_round_trip(name in reference(), hex in proptest::option::of(hex())) {
            let text = format!("oci://{name}{}", hex.map(|hex| format!("@sha256:{hex}")).unwrap_or_default());
            prop_assert_eq!(BundleReference::parse(&text).expect("built from the grammar").to_string(), text);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC*") {
            let _ = ImageReference::parse(&text);
            let _ = BundleReference::parse(&text);
        }

        #[test]
        fn what_is_accepted_prints_as_it_was_written(text in "(oci://)?[a-z./:@_-]{1,40}(@sha256:[a-f0-9]{64})?") {
            if let Some(image) = ImageReference::parse(&text) {
                prop_assert_eq!(image.to_string(), text.clone());
            }
            if let Some(bundle) = BundleReference::parse(&text) {
                prop_assert_eq!(bundle.to_string(), text);
            }
        }
    }

    #[test]
    fn registry_and_repository_together_have_a_limit() {
        let digest = format!("@sha256:{}", "0".repeat(64));
        let name = |length: usize| format!("r.io/{}", "a".repeat(length - "r.io/".len()));
        assert!(ImageReference::parse(&format!("{}{digest}", name(255))).is_some());
        assert!(ImageReference::parse(&format!("{}{digest}", name(256))).is_none());
        assert!(BundleReference::parse(&format!("oci://{}", name(255))).is_some());
        assert!(BundleReference::parse(&format!("oci://{}", name(256))).is_none());
    }
}
