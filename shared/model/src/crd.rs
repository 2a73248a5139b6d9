//! The CustomResourceDefinitions, derived from their types.
//!
//! The rules that differ between engines are added to the derived schema of `WorkflowExecution`, and
//! every schema is corrected in two ways: fields that are required although serde reads them
//! leniently are added to `required`, and `nullable`, `default` and null enum values, which the
//! derive emits for `Option` and `#[serde(default)]`, are removed.

use std::collections::BTreeSet;
use std::iter::once;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps,
    JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use kube::CustomResourceExt;
use serde_json::Value;
use strum::VariantArray;

use crate::engine::{Engine, ReferenceField};
use crate::remediation::{AIAnalysis, RemediationRequest};
use crate::violation;
use crate::workflow::RemediationWorkflow;
use crate::workflow_execution::WorkflowExecution;

/// Required fields, by the path of their parent object. Serde reads them leniently, so that the
/// rules can report a missing field together with all other violations.
const REQUIRED: [(&[&str], &[&str]); 4] = [
    (
        &["spec"],
        &["executionEngine", "workflowRef", "targetResource"],
    ),
    (&["spec", "workflowRef"], &["workflowId", "version"]),
    (&["spec", "remediationRequestRef"], &["name"]),
    (&["spec", "requestedBy"], &["username"]),
];

/// The CustomResourceDefinition of `WorkflowExecution`.
pub fn workflow_execution() -> CustomResourceDefinition {
    let mut crd = WorkflowExecution::crd();
    for root in schemas(&mut crd) {
        remove_derive_artifacts(root);
        let properties = root.properties.as_mut();
        if let Some(spec) = properties.and_then(|it| it.get_mut("spec")) {
            let rules = spec.x_kubernetes_validations.get_or_insert_default();
            rules.extend(engine_rules());
            rules.extend(violation::cel_target_parameters());
        }
        for (path, fields) in REQUIRED {
            require(root, path, fields);
        }
    }
    crd
}

/// The CustomResourceDefinitions of RemediationRequest and AIAnalysis, with the fields that wfe knows:
/// for tests and for a platform that has none. Kubernaut installs its own.
pub fn platform() -> [CustomResourceDefinition; 2] {
    let [request, mut analysis] = [RemediationRequest::crd(), AIAnalysis::crd()].map(corrected);
    for root in schemas(&mut analysis) {
        for (path, fields) in ANALYSIS_REQUIRED {
            require(root, path, fields);
        }
    }
    [request, analysis]
}

/// What Kubernaut's definition of AIAnalysis requires.
const ANALYSIS_REQUIRED: [(&[&str], &[&str]); 4] = [
    (
        &["status"],
        &["phase", "approvalRequired", "needsHumanReview"],
    ),
    (&["status", "investigationSession"], &["generation"]),
    (
        &["status", "rootCauseAnalysis"],
        &["severity", "signalType", "summary"],
    ),
    (
        &["status", "selectedWorkflow"],
        &[
            "confidence",
            "executionBundle",
            "rationale",
            "version",
            "workflowId",
        ],
    ),
];

/// The CustomResourceDefinition of RemediationWorkflow. Its schema has types only: the webhook and
/// the programs that run a workflow report everything that is wrong with it.
pub fn remediation_workflow() -> CustomResourceDefinition {
    corrected(RemediationWorkflow::crd())
}

fn corrected(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    schemas(&mut crd).for_each(remove_derive_artifacts);
    crd
}

fn schemas(crd: &mut CustomResourceDefinition) -> impl Iterator<Item = &mut JSONSchemaProps> {
    let versions = crd.spec.versions.iter_mut();
    versions.filter_map(|it| it.schema.as_mut()?.open_api_v3_schema.as_mut())
}

/// The rules that differ between engines.
fn engine_rules() -> impl Iterator<Item = ValidationRule> {
    let rules = |&engine: &Engine| {
        let others = ReferenceField::VARIANTS.iter().copied();
        let others = others.filter(move |field| *field != engine.runs());
        let forbidden = others.map(move |field| violation::cel_forbids(engine, field));
        let substitution = engine
            .substitutes()
            .then(|| violation::cel_no_substitution(engine));
        once(violation::cel_needs(engine))
            .chain(forbidden)
            .chain(substitution)
    };
    Engine::VARIANTS.iter().flat_map(rules)
}

fn require(schema: &mut JSONSchemaProps, path: &[&str], fields: &[&str]) {
    match path {
        [] => schema.required = Some(fields.iter().map(|&field| field.to_owned()).collect()),
        [first, rest @ ..] => {
            if let Some(child) = schema.properties.as_mut().and_then(|it| it.get_mut(*first)) {
                require(child, rest, fields);
            }
        }
    }
}

/// Removes, at every depth, what the derive emits for `Option` and `#[serde(default)]`.
fn remove_derive_artifacts(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.default = None;
    // Doc comments are wrapped at 100 columns; kubectl wraps for the terminal itself.
    if let Some(description) = &mut schema.description {
        *description = description
            .replace("\n\n", "\0")
            .replace('\n', " ")
            .replace('\0', "\n\n");
    }
    if let Some(values) = &mut schema.enum_ {
        values.retain(|value| !value.0.is_null());
    }
    schema
        .properties
        .iter_mut()
        .flat_map(|it| it.values_mut())
        .for_each(remove_derive_artifacts);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        remove_derive_artifacts(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        remove_derive_artifacts(values);
    }
}

/// The rules of this version's schema that a served one does not have: the CRD is of
/// an older release, or another client has changed it. Each as path and rule, as `.spec: self == oldSelf`.
pub fn missing_rules(served: &CustomResourceDefinition) -> Vec<String> {
    let ours = workflow_execution();
    let ours: BTreeSet<_> = ours.spec.versions.iter().flat_map(rules).collect();
    let versions = served.spec.versions.iter().filter(|it| it.served);
    let missing = versions.flat_map(|it| ours.difference(&rules(it)).cloned().collect::<Vec<_>>());
    missing.collect()
}

/// The rules of a version.
fn rules(version: &CustomResourceDefinitionVersion) -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    if let Some(schema) = &version.schema {
        let root = serde_json::to_value(&schema.open_api_v3_schema).unwrap_or_default();
        collect_rules(&root, "", &mut rules);
    }
    rules
}

/// Keys of a schema that bound a value.
const BOUNDS: [&str; 11] = [
    "enum",
    "required",
    "format",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
];

fn collect_rules(schema: &Value, path: &str, rules: &mut BTreeSet<String>) {
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    for rule in list("x-kubernetes-validations").into_iter().flatten() {
        let rule = rule.get("rule").and_then(Value::as_str).unwrap_or_default();
        rules.insert(format!("{path}: {rule}"));
    }
    for key in BOUNDS {
        // A field can have one of these names; then it has a schema.
        let bound = schema.get(key).filter(|it| !it.is_object());
        rules.extend(bound.map(|bound| format!("{path}: {key} {bound}")));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        collect_rules(property, &format!("{path}.{name}"), rules);
    }
    for of_many in ["items", "additionalProperties"] {
        if let Some(values) = schema.get(of_many) {
            collect_rules(values, &format!("{path}[]"), rules);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BR-WE-014: a CRD of an older release, or one that another client has changed.
    #[test]
    fn missing_rules_of_another_crd_are_named() {
        let ours = workflow_execution();
        assert_eq!(missing_rules(&ours), [] as [&str; 0]);
        let mut changed = ours;
        for schema in changed
            .spec
            .versions
            .iter_mut()
            .filter_map(|it| it.schema.as_mut())
        {
            let root = schema.open_api_v3_schema.as_mut().expect("a schema");
            let spec = root.properties.as_mut().and_then(|it| it.get_mut("spec"));
            let spec = spec.expect("a spec");
            let rules = spec.x_kubernetes_validations.as_mut().expect("rules");
            rules.retain(|it| it.rule != "self == oldSelf");
            spec.required = None;
        }
        let missing = missing_rules(&changed);
        let required = r#".spec: required ["executionEngine","workflowRef","targetResource"]"#;
        assert_eq!(missing, [required, ".spec: self == oldSelf"]);
    }
}
