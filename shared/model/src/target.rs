//! The target resource of a workflow, as `[namespace/]kind/name` (BR-WE-009).

use std::fmt;

use crate::pattern::pattern;

/// A DNS-1123 label without length limit; [`Target::parse`] limits the parts of [`TARGET`].
macro_rules! label {
    () => {
        "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    };
}

pattern!(
    /// `targetResource`.
    TARGET, 381,
    concat!("^(", label!(), "/)?[A-Za-z][A-Za-z0-9]*/", label!(), r"(\.", label!(), ")*$"),
    "[namespace/]kind/name, for example prod/Deployment/web or Node/worker-1, with at most 63, 63 and 253 characters"
);

/// CEL condition for the length of each part.
pub(crate) const CEL_PART_LENGTHS: &str = "self.matches(r'^([^/]{1,63}/)?[^/]{1,63}/[^/]{1,253}$')";

/// A target resource with a valid format. [`served`](crate::served) checks whether the cluster serves its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    namespace: Option<String>,
    kind: String,
    name: String,
}

impl Target {
    /// Parses a text that [`TARGET`] accepts and whose parts are not too long.
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

    /// The namespace as written; it is never defaulted.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The kind as written.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The name of the resource.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key for the lock and the history: the target with its kind in lower case.
    pub fn normalized(&self) -> String {
        Self {
            kind: self.kind.to_ascii_lowercase(),
            ..self.clone()
        }
        .to_string()
    }
}

/// Formats the target as it was written.
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
        fn target_valid_formats_to_same_text(text in "([a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?/)?[A-Za-z][A-Za-z0-9]{0,20}/[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,3}") {
            let target = Target::parse(&text).expect("built from the grammar");
            prop_assert_eq!(target.to_string(), text);
            let normalized = target.normalized();
            prop_assert_eq!(Target::parse(&normalized).expect("still a target").normalized(), normalized);
        }

        #[test]
        fn target_any_text_parses_without_panic(text in "\\PC*") {
            if let Some(target) = Target::parse(&text) {
                prop_assert_eq!(target.to_string(), text);
            }
        }
    }

    #[test]
    fn target_kinds_differing_in_case_have_same_normalized_form() {
        let normalized = |text| Target::parse(text).expect(text).normalized();
        assert_eq!(normalized("a/Deployment/x"), normalized("a/deployment/x"));
        assert_ne!(normalized("a/Deployment/x"), normalized("Deployment/x"));
    }
}
