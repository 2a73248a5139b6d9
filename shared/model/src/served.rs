//! Checks a target against the kinds that the cluster serves: the kind must be served, and the
//! namespace must be given exactly for namespaced kinds. The caller supplies the served kinds.
//!
//! Plurals and short names, which kubectl accepts, are rejected: two names for one target would
//! result in two locks.

use crate::target::Target;
use crate::violation::Violation;

/// A kind that the cluster serves.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServedKind {
    /// Group and version, for example `apps/v1` or `v1`.
    pub api_version: String,
    /// Kind in manifests, for example `Deployment`.
    pub kind: String,
    /// Resource name in URLs, for example `deployments`.
    pub plural: String,
    /// Singular name, for example `deployment`.
    pub singular: String,
    /// Short names, for example `deploy`.
    pub short_names: Vec<String>,
    /// Whether the kind is namespaced.
    pub namespaced: bool,
}

impl ServedKind {
    fn has_alias(&self, name: &str) -> bool {
        let names = [&self.plural, &self.singular];
        let mut names = names.into_iter().chain(&self.short_names);
        names.any(|other| other.eq_ignore_ascii_case(name))
    }
}

/// Why `target` is invalid in a cluster that serves the kinds in `served`; `None` if it is valid.
pub fn misfit(target: &Target, served: &[ServedKind]) -> Option<Violation> {
    let named = |it: &&ServedKind| it.kind.eq_ignore_ascii_case(target.kind());
    // Several groups may serve kinds of the same name with different scopes.
    if served
        .iter()
        .filter(named)
        .any(|it| it.namespaced == target.namespace().is_some())
    {
        return None;
    }
    let found = target.to_string();
    let Some(kind) = served.iter().find(named) else {
        let meant = served.iter().find(|it| it.has_alias(target.kind()));
        return Some(Violation::TargetKindUnknown {
            kind: target.kind().to_owned(),
            instead: meant.map(|it| suggestion(target, it)),
            found,
        });
    };
    let instead = suggestion(target, kind);
    Some(if kind.namespaced {
        Violation::TargetNamespaceMissing { found, instead }
    } else {
        Violation::TargetNamespaceForbidden { found, instead }
    })
}

/// The target with the name and scope of `kind`, as a suggestion for the user.
fn suggestion(target: &Target, kind: &ServedKind) -> String {
    let namespace = match (kind.namespaced, target.namespace()) {
        (false, _) => String::new(),
        (true, Some(namespace)) => format!("{namespace}/"),
        (true, None) => "<namespace>/".to_owned(),
    };
    format!("{namespace}{}/{}", kind.kind, target.name())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn served() -> Vec<ServedKind> {
        let kind = |kind: &str, plural: &str, short: &str, namespaced| ServedKind {
            api_version: "v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: vec![short.to_owned()],
            namespaced,
        };
        vec![
            kind("Deployment", "deployments", "deploy", true),
            kind("Node", "nodes", "no", false),
            kind("Cluster", "clusters", "cl", false),
            kind("Cluster", "clusters", "cl", true),
        ]
    }

    /// BR-WE-009
    #[rstest]
    #[case("a/deploy/x", "a/Deployment/x")]
    #[case("a/Deployments/x", "a/Deployment/x")]
    #[case("deploy/x", "<namespace>/Deployment/x")]
    #[case("Deployment/x", "<namespace>/Deployment/x")]
    #[case("ns/Node/x", "Node/x")]
    #[case("ns/nodes/x", "Node/x")]
    fn target_with_alias_or_wrong_scope_is_rejected_with_suggestion(
        #[case] text: &str,
        #[case] right: &str,
    ) {
        let target = Target::parse(text).expect("a target");
        let violation = misfit(&target, &served()).expect("refused");
        let sentence = violation.sentence();
        assert!(
            sentence.contains(&format!("{right:?}")) && sentence.contains(&format!("{text:?}")),
            "{sentence}"
        );
    }

    /// BR-WE-009
    #[rstest]
    #[case("a/Deployment/x")]
    #[case("a/deployment/x")]
    #[case("Node/x")]
    #[case("a/Cluster/x")]
    #[case("Cluster/x")]
    fn target_of_served_kind_and_scope_is_valid(#[case] text: &str) {
        let target = Target::parse(text).expect("a target");
        assert_eq!(misfit(&target, &served()), None);
    }

    /// BR-WE-009
    #[test]
    fn target_of_unknown_kind_is_rejected_with_hint_to_api_resources() {
        let target = Target::parse("a/Gadget/x").expect("a target");
        let sentence = misfit(&target, &served()).expect("refused").sentence();
        assert!(
            sentence.contains("\"Gadget\"") && sentence.contains("kubectl api-resources"),
            "{sentence}"
        );
    }
}
