//! The resource a workflow repairs, as `[namespace/]kind/name` (BR-WE-009).

mod served;

use std::fmt;

pub use self::served::{ServedKind, misfit};

use crate::pattern::pattern;

/// A DNS-1123 label without length limit; [`TARGET`]'s parts are limited separately.
macro_rules! label {
    () => {
        "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    };
}

pattern!(
    /// `targetResource`.
    TARGET, 381,
    concat!("^(", label!(), "/)?[A-Za-z][A-Za-z0-9]*/", label!(), r"(\.", label!(), ")*$"),
    "[namespace/]kind/name, as prod/Deployment/web or Node/worker-1, with at most 63, 63 and 253 characters"
);

/// CEL for the length of each part.
pub(crate) const CEL_PART_LENGTHS: &str = "self.matches(r'^([^/]{1,63}/)?[^/]{1,63}/[^/]{1,253}$')";

/// A checked target resource.
///
/// Whether the kind is served, and namespaced, takes the API server: see [`misfit`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    namespace: Option<String>,
    kind: String,
    name: String,
}

impl Target {
    /// Reads what [`TARGET`] allows; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if !TARGET.accepts(text) {
            return None;
        }
        let (rest, name) = text.rsplit_once('/')?;
        let (namespace, kind) = match rest.split_once('/') {
            Some((namespace, kind)) => (Some(namespace), kind),
            None => (None, rest),
        };
        (namespace.is_none_or(|namespace| namespace.len() <= 63)
            && kind.len() <= 63
            && name.len() <= 253)
            .then(|| Self {
                namespace: namespace.map(str::to_owned),
                kind: kind.to_owned(),
                name: name.to_owned(),
            })
    }

    /// The namespace, where one is written; it is never filled in.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The kind as written.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The resource's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one spelling that lock and history go by: the kind in lower case.
    pub fn normalized(&self) -> String {
        Self {
            kind: self.kind.to_ascii_lowercase(),
            ..self.clone()
        }
        .to_string()
    }
}

/// As it was written.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.namespace
            .iter()
            .try_for_each(|namespace| write!(f, "{namespace}/"))?;
        write!(f, "{}/{}", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_target_survives_a_round_trip(text in "([a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?/)?[A-Za-z][A-Za-z0-9]{0,20}/[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,3}") {
            let target = Target::parse(&text).expect("built from the grammar");
            prop_assert_eq!(target.to_string(), text);
            let normalized = target.normalized();
            prop_assert_eq!(Target::parse(&normalized).expect("still a target").normalized(), normalized);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            if let Some(target) = Target::parse(&text) {
                prop_assert_eq!(target.to_string(), text);
            }
        }
    }

    #[test]
    fn spellings_of_the_kind_share_one_normalized_form() {
        let normalized = |text| Target::parse(text).expect(text).normalized();
        assert_eq!(normalized("a/Deployment/x"), normalized("a/deployment/x"));
        assert_ne!(normalized("a/Deployment/x"), normalized("Deployment/x"));
    }
}
