//! Whether a target can be one in this cluster: its kind must be served, and have a namespace
//! exactly when it is namespaced. What is served is data here; asking for it is others' work.
//!
//! Plurals and short names are refused, though kubectl takes them: each would be another name for
//! the same target, and a lock by name would not hold.

use super::Target;
use crate::rules::Violation;

/// A kind that the cluster serves.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ServedKind {
    /// Group and version, as `apps/v1` or `v1`.
    pub api_version: String,
    /// As in manifests: `Deployment`.
    pub kind: String,
    /// As in URLs: `deployments`.
    pub plural: String,
    /// `deployment`.
    pub singular: String,
    /// `deploy`.
    pub short_names: Vec<String>,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

impl ServedKind {
    fn is_also_called(&self, name: &str) -> bool {
        let names = [&self.plural, &self.singular];
        let mut names = names.into_iter().chain(&self.short_names);
        names.any(|other| other.eq_ignore_ascii_case(name))
    }
}

/// Why `target` cannot be one where `served` is all there is; none where it can.
pub fn misfit(target: &Target, served: &[ServedKind]) -> Option<Violation> {
    let named = |it: &&ServedKind| it.kind.eq_ignore_ascii_case(target.kind());
    // Several groups may serve a kind of one name, in different scopes.
    if served
        .iter()
        .filter(named)
        .any(|it| it.namespaced == target.namespace().is_some())
    {
        return None;
    }
    let found = target.to_string();
    let Some(kind) = served.iter().find(named) else {
        let meant = served.iter().find(|it| it.is_also_called(target.kind()));
        return Some(Violation::TargetKindUnknown {
            kind: target.kind().to_owned(),
            instead: meant.map(|it| spelled(target, it)),
            found,
        });
    };
    let instead = spelled(target, kind);
    Some(if kind.namespaced {
        Violation::TargetNamespaceMissing { found, instead }
    } else {
        Violation::TargetNamespaceForbidden { found, instead }
    })
}

/// How the target would be right.
fn spelled(target: &Target, kind: &ServedKind) -> String {
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

    #[rstest]
    #[case("a/deploy/x", "a/Deployment/x")]
    #[case("a/Deployments/x", "a/Deployment/x")]
    #[case("deploy/x", "<namespace>/Deployment/x")]
    #[case("Deployment/x", "<namespace>/Deployment/x")]
    #[case("ns/Node/x", "Node/x")]
    #[case("ns/nodes/x", "Node/x")]
    fn br_we_009_an_alias_or_a_wrong_scope_is_refused_with_the_right_spelling(
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

    #[rstest]
    #[case("a/Deployment/x")]
    #[case("a/deployment/x")]
    #[case("Node/x")]
    #[case("a/Cluster/x")]
    #[case("Cluster/x")]
    fn br_we_009_a_served_kind_in_its_scope_fits(#[case] text: &str) {
        let target = Target::parse(text).expect("a target");
        assert_eq!(misfit(&target, &served()), None);
    }

    #[test]
    fn br_we_009_an_unknown_kind_is_refused_saying_where_to_look() {
        let target = Target::parse("a/Gadget/x").expect("a target");
        let sentence = misfit(&target, &served()).expect("refused").sentence();
        assert!(
            sentence.contains("\"Gadget\"") && sentence.contains("kubectl api-resources"),
            "{sentence}"
        );
    }
}
