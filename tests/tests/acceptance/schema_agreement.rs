//! The rules and the CRD schema accept the same values: generated texts, checked against the API
//! server.

use futures::{StreamExt, stream};
use kube::Api;
use kube::api::DynamicObject;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use wfe_model::duration::ExecutionTimeout;
use wfe_model::image::{BundleReference, ImageReference};
use wfe_model::pattern::OBJECT_NAME;
use wfe_model::rules;
use wfe_model::target::Target;
use wfe_tests::system::dry_run;

use crate::schema_cases::{Spec, job, tekton};
use crate::schema_verdicts::{object, untyped};
use crate::setup::cluster;

const SAMPLE: usize = 120;

/// Texts of the grammar, with up to two characters changed.
fn mutated(grammar: &str) -> impl Strategy<Value = String> {
    let text = proptest::string::string_regex(grammar).expect("a grammar");
    let change = (any::<prop::sample::Index>(), "[a-zA-Z0-9/:@._ $\\n=-]?");
    (text, prop::collection::vec(change, 0..3)).prop_map(|(text, changes)| {
        let mut characters: Vec<char> = text.chars().collect();
        for (index, replacement) in changes {
            if !characters.is_empty() {
                let at = index.index(characters.len());
                characters.splice(at..=at, replacement.chars());
            }
        }
        characters.into_iter().collect()
    })
}

/// Whether the API server accepts a create by dry run.
async fn accepted(api: &Api<DynamicObject>, spec: &Spec) -> bool {
    match api.create(&dry_run(), &object(&spec.0)).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.code == 422 => false,
        Err(error) => panic!("neither accepted nor invalid: {error}"),
    }
}

async fn compare(
    what: &str,
    grammar: &str,
    spec_with: impl Fn(&str) -> Spec,
    rule: impl Fn(&str) -> bool,
) {
    let cluster = cluster().await;
    let api = untyped(cluster.admin(), "default");
    let mut runner = TestRunner::deterministic();
    let strategy = mutated(grammar);
    let texts: Vec<_> = (0..SAMPLE)
        .map(|_| strategy.new_tree(&mut runner).expect("a text").current())
        .collect();
    let verdicts: Vec<_> = stream::iter(&texts)
        .map(|text| {
            let (api, spec) = (&api, spec_with(text));
            async move { accepted(api, &spec).await }
        })
        .buffered(8)
        .collect()
        .await;
    for (text, accepted) in texts.iter().zip(&verdicts) {
        assert_eq!(
            rule(text),
            *accepted,
            "{what} {text:?}: accepted by the rules (left), by the API server (right)"
        );
    }
    let accepted = verdicts.iter().filter(|it| **it).count();
    assert!(
        (10..=SAMPLE - 10).contains(&accepted),
        "{what}: {accepted} of {SAMPLE} accepted: the sample has too few of one kind"
    );
}

/// BR-WE-014
#[tokio::test]
async fn image_reference_schema_and_rules_agree() {
    let grammar = "([a-z]{1,5}\\.io|localhost|reg:5000|10\\.0\\.0\\.1:5000)(/[a-z0-9]{1,4}([._-]{1,2}[a-z0-9]{1,3}){0,2}){1,2}(:[A-Za-z0-9_.]{1,4})?@sha256:[a-f0-9]{64}";
    compare(
        "image",
        grammar,
        |text| job().with("workflowRef.containerImage", text),
        |text| ImageReference::parse(text).is_some(),
    )
    .await;
}

/// BR-WE-002
#[tokio::test]
async fn bundle_reference_schema_and_rules_agree() {
    let grammar = "oci://([a-z]{1,5}\\.io|localhost|reg:5000)(/[a-z0-9]{1,4}([._-]{1,2}[a-z0-9]{1,3}){0,2}){1,2}(:[A-Za-z0-9_.]{1,4})?(@sha256:[a-f0-9]{64})?";
    compare(
        "bundle",
        grammar,
        |text| tekton().with("workflowRef.bundleRef", text),
        |text| BundleReference::parse(text).is_some(),
    )
    .await;
}

/// BR-WE-009
#[tokio::test]
async fn target_resource_schema_and_rules_agree() {
    let grammar =
        "([a-z0-9]{1,5}(-[a-z]{1,3})?/)?[A-Z][a-z0-9]{1,9}/[a-z0-9]{1,5}([.-][a-z0-9]{1,3}){0,2}";
    compare(
        "target",
        grammar,
        |text| job().with("targetResource", text),
        |text| Target::parse(text).is_some(),
    )
    .await;
}

/// BR-WE-001
#[tokio::test]
async fn timeout_schema_and_rules_agree() {
    let grammar = "([0-9]{1,2}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?";
    compare(
        "timeout",
        grammar,
        |text| job().with("executionConfig.timeout", text),
        |text| ExecutionTimeout::parse(text).is_some(),
    )
    .await;
}

/// BR-WE-001
#[tokio::test]
async fn parameter_name_schema_and_rules_agree() {
    let grammar = "[A-Za-z_][A-Za-z0-9_]{0,12}|KUBERNAUT_?[A-Z]{0,3}|TARGET_RESOURCE_?(NAME|NAMESPACE|KIND|API_VERSION|UID)?";
    compare(
        "parameter name",
        grammar,
        |text| job().parameter(text, "x"),
        |text| {
            let spec = job().parameter(text, "x").0;
            rules::check(&rules::read(spec).expect("a spec")).is_ok()
        },
    )
    .await;
}

/// BR-WE-001
#[tokio::test]
async fn object_name_schema_and_rules_agree() {
    let grammar = "[a-z0-9]{1,6}([.-][a-z0-9]{1,4}){0,3}";
    compare(
        "ServiceAccount",
        grammar,
        |text| job().with("executionConfig.serviceAccountName", text),
        |text| OBJECT_NAME.accepts(text),
    )
    .await;
}
