//! Checks a target against the kinds that the cluster serves: the kind must be served, and the
//! namespace must be given exactly for namespaced kinds. The caller supplies the served kinds.
//!
//! Plurals and short names, which kubectl accepts, are rejected: two names for one target would
//! result in two locks.

use std::collections::BTreeMap;

use itertools::Itertools;

use crate::parameters::TARGET_PARAMETERS;
use crate::rules::ValidatedSpec;
use crate::target::Target;
use crate::violation::Violation;
use crate::workflow::TargetKind;

/// API groups of Kubernetes itself whose names are not in `k8s.io`; the core group has no name.
const BUILT_IN: [&str; 5] = ["", "apps", "autoscaling", "batch", "policy"];

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
    /// Whether its objects can be read: a Binding can only be created.
    pub readable: bool,
}

impl ServedKind {
    /// Group and version.
    pub fn group_version(&self) -> (&str, &str) {
        self.api_version
            .split_once('/')
            .unwrap_or(("", &self.api_version))
    }

    fn group(&self) -> &str {
        self.group_version().0
    }

    fn has_name(&self, name: &str) -> bool {
        self.kind.eq_ignore_ascii_case(name)
    }

    fn has_alias(&self, name: &str) -> bool {
        let names = [&self.plural, &self.singular];
        let mut names = names.into_iter().chain(&self.short_names);
        names.any(|other| other.eq_ignore_ascii_case(name))
    }

    fn is_built_in(&self) -> bool {
        BUILT_IN.contains(&self.group()) || self.group().ends_with(".k8s.io")
    }

    fn is(&self, kind: &TargetKind) -> bool {
        self.kind == kind.kind && kind.group.as_ref().is_none_or(|it| it == self.group())
    }
}

/// What a target is in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedTarget {
    /// Group and version.
    pub api_version: String,
    /// Kind in manifests.
    pub kind: String,
}

impl ServedTarget {
    /// The values of [`TARGET_PARAMETERS`]; no namespace for a cluster-scoped target.
    pub fn parameters(&self, target: &Target) -> BTreeMap<&'static str, String> {
        let [api_version, kind, name, namespace] = TARGET_PARAMETERS;
        let own = [
            (api_version, Some(self.api_version.as_str())),
            (kind, Some(self.kind.as_str())),
            (name, Some(target.name())),
            (namespace, target.namespace()),
        ];
        let own = own.into_iter();
        own.filter_map(|(name, value)| Some((name, value?.to_owned())))
            .collect()
    }
}

/// The kinds in `served` that decide on `target`: those whose name or alias it has.
pub fn concerning(target: &Target, served: &[ServedKind]) -> Vec<ServedKind> {
    let concerns = |it: &&ServedKind| it.has_name(target.kind()) || it.has_alias(target.kind());
    served.iter().filter(concerns).cloned().collect()
}

/// What the target of a request for a workflow is in a cluster that serves the kinds in `served`, or
/// every rule that it breaks.
pub fn fit(valid: &ValidatedSpec, served: &[ServedKind]) -> Result<ServedTarget, Vec<Violation>> {
    let (spec, workflow) = (&valid.spec, &valid.workflow);
    let found = resolve(&spec.target, served, &workflow.target_kinds).map_err(|it| vec![it])?;
    let values = found.parameters(&spec.target);
    let violations = workflow.parameters.check_target(&spec.parameters, &values);
    if violations.is_empty() {
        return Ok(found);
    }
    Err(violations.into_iter().map(Violation::Parameter).collect())
}

/// What `target` is in a cluster that serves the kinds in `served`. Where several groups serve its
/// kind: the one that `allowed`, the kinds of the workflow, names, else the only one of Kubernetes
/// itself.
pub fn resolve(
    target: &Target,
    served: &[ServedKind],
    allowed: &[TargetKind],
) -> Result<ServedTarget, Violation> {
    let named = served.iter().filter(|it| it.has_name(target.kind()));
    let named: Vec<_> = named.collect();
    let found = target.to_string();
    let Some(first) = named.first() else {
        let meant = served.iter().find(|it| it.has_alias(target.kind()));
        return Err(Violation::TargetKindUnknown {
            kind: target.kind().to_owned(),
            instead: meant.map(|it| suggestion(target, it)),
            found,
        });
    };
    // Several groups may serve kinds of the same name with different scopes.
    let scoped = named.iter().copied();
    let scoped = scoped.filter(|it| it.namespaced == target.namespace().is_some());
    let scoped: Vec<_> = scoped.collect();
    if scoped.is_empty() {
        let instead = suggestion(target, first);
        return Err(if first.namespaced {
            Violation::TargetNamespaceMissing { found, instead }
        } else {
            Violation::TargetNamespaceForbidden { found, instead }
        });
    }
    let kind = first.kind.clone();
    let mut fitting: Vec<_> = scoped.into_iter().filter(|it| it.readable).collect();
    if fitting.is_empty() {
        return Err(Violation::TargetKindUnreadable { found, kind });
    }
    if !allowed.is_empty() {
        fitting.retain(|it| allowed.iter().any(|kind| it.is(kind)));
        if fitting.is_empty() {
            let kinds = allowed.iter().map(TargetKind::to_string).collect();
            return Err(Violation::TargetKindNotAllowed { found, kinds });
        }
    }
    let built_in = fitting.iter().copied().filter(|it| it.is_built_in());
    let meant = of_one_group(fitting.iter().copied()).or_else(|| of_one_group(built_in));
    let Some(meant) = meant else {
        let groups = fitting.iter().map(|it| it.group().to_owned()).unique();
        let groups = groups.collect();
        return Err(Violation::TargetKindAmbiguous {
            found,
            kind,
            groups,
        });
    };
    Ok(ServedTarget {
        api_version: meant.api_version.clone(),
        kind: meant.kind.clone(),
    })
}

/// The kind in the preferred version, which the API server lists first; `None` without exactly one group.
fn of_one_group<'a>(
    mut kinds: impl Iterator<Item = &'a ServedKind> + Clone,
) -> Option<&'a ServedKind> {
    let one = kinds.clone().map(ServedKind::group).all_equal();
    kinds.next().filter(|_| one)
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
            readable: kind != "Binding",
        };
        let of = |api_version: &str, kind: ServedKind| ServedKind {
            api_version: api_version.to_owned(),
            ..kind
        };
        let service = || kind("Service", "services", "svc", true);
        let gadget = || kind("Gadget", "gadgets", "gd", true);
        vec![
            of("apps/v1", kind("Deployment", "deployments", "deploy", true)),
            of(
                "apps/v1beta1",
                kind("Deployment", "deployments", "deploy", true),
            ),
            kind("Binding", "bindings", "", true),
            kind("Node", "nodes", "no", false),
            kind("Cluster", "clusters", "cl", false),
            kind("Cluster", "clusters", "cl", true),
            of("serving.example.dev/v1", service()),
            service(),
            of("a.example.dev/v1", gadget()),
            of("b.example.dev/v1", gadget()),
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
        let violation = resolve(&target, &served(), &[]).expect_err("refused");
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
        assert!(resolve(&target, &served(), &[]).is_ok());
    }

    /// BR-WE-009
    #[test]
    fn target_of_unknown_kind_is_rejected_with_hint_to_api_resources() {
        let target = Target::parse("a/Widget/x").expect("a target");
        let violation = resolve(&target, &served(), &[]).expect_err("refused");
        let sentence = violation.sentence();
        assert!(
            sentence.contains("\"Widget\"") && sentence.contains("kubectl api-resources"),
            "{sentence}"
        );
    }

    /// BR-WE-009: one object has one lock, so one name means one group.
    #[rstest]
    #[case("a/Deployment/x", &[], "apps/v1")]
    #[case("a/Service/x", &[], "v1")]
    #[case("a/service/x", &["Service.serving.example.dev"], "serving.example.dev/v1")]
    #[case("a/Gadget/x", &["Deployment", "Gadget.b.example.dev"], "b.example.dev/v1")]
    #[case("a/Gadget/x", &[], "several API groups serve kind Gadget: a.example.dev, b.example.dev")]
    #[case("a/Gadget/x", &["Gadget"], "several API groups")]
    #[case("a/Service/x", &["Deployment.apps"], "the workflow is only for Deployment.apps")]
    #[case("a/Binding/x", &[], "a Binding cannot be read")]
    fn target_kind_of_several_groups_is_the_one_that_is_named_or_built_in(
        #[case] text: &str,
        #[case] allowed: &[&str],
        #[case] expected: &str,
    ) {
        let target = Target::parse(text).expect("a target");
        let allowed = allowed.iter().filter_map(|it| TargetKind::parse(it));
        let allowed: Vec<_> = allowed.collect();
        match resolve(&target, &served(), &allowed) {
            Ok(found) => assert_eq!(found.api_version, expected),
            Err(violation) => {
                let sentence = violation.sentence();
                assert!(sentence.contains(expected), "{sentence}");
            }
        }
    }
}
