use std::collections::BTreeMap;

use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::declaration::{DeclarationError, ParameterDeclaration};
use super::declared::Parameters;
use super::kind::ParameterType;
use super::*;

fn declarations(declared: Value) -> Vec<ParameterDeclaration> {
    serde_json::from_value(declared).expect("declarations")
}

fn parameters(declared: Value) -> Parameters {
    Parameters::compile(declarations(declared)).expect("valid declarations")
}

fn given(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Declares parameters of every type and with every keyword.
fn all_keywords() -> Parameters {
    parameters(json!([
        { "name": "MEMORY", "type": "string", "required": true, "pattern": "^[0-9]+Mi$" },
        { "name": "REPLICAS", "type": "integer", "minimum": 1, "maximum": 10 },
        { "name": "RATIO", "type": "float", "minimum": 0.5, "maximum": 1.5 },
        { "name": "FORCE", "type": "boolean", "default": false },
        { "name": "NODES", "type": "array" },
        { "name": "MODE", "type": "string", "enum": ["fast", "safe"], "default": "safe" },
        { "name": "LEVEL", "type": "integer", "enum": [1, 2] },
        { "name": "GRACE", "type": "integer", "dependsOn": ["REPLICAS", "MODE"] },
    ]))
}

/// Valid values for [`all_keywords`].
const VALID: [(&str, &str); 8] = [
    ("MEMORY", "512Mi"),
    ("REPLICAS", "3"),
    ("RATIO", "1"),
    ("FORCE", "true"),
    ("NODES", "[\"a\", 1]"),
    ("MODE", "fast"),
    ("LEVEL", "2"),
    ("GRACE", "30"),
];

/// BR-WE-001
#[test]
fn values_of_declared_types_are_accepted() {
    assert_eq!(all_keywords().check(&given(&VALID)), []);
    assert_eq!(all_keywords().check(&given(&[("MEMORY", "1Mi")])), []);
}

/// BR-WE-001
#[rstest]
#[case("MEMORY", "512", "must match the pattern \"^[0-9]+Mi$\"")]
#[case(
    "REPLICAS",
    "abc",
    "\"abc\": must be of type integer: use a whole number, for example \"3\""
)]
#[case("REPLICAS", "3.0", "must be of type integer")]
#[case("REPLICAS", " 3", "must be of type integer")]
#[case("REPLICAS", "+3", "must be of type integer")]
#[case("REPLICAS", "", "must be of type integer")]
#[case("REPLICAS", "99999999999999999999", "must be of type integer")]
#[case("REPLICAS", "0", "must be at least 1")]
#[case("REPLICAS", "11", "must be at most 10")]
#[case("RATIO", "0.49", "must be at least 0.5")]
#[case("RATIO", "1.6", "must be at most 1.5")]
#[case("RATIO", "NaN", "must be of type float")]
#[case("FORCE", "yes", "must be of type boolean: use \"true\" or \"false\"")]
#[case("NODES", "a,b", "must be of type array: use a JSON array")]
#[case("NODES", "{}", "must be of type array")]
#[case("MODE", "slow", "supported values are [\"fast\",\"safe\"]")]
#[case("LEVEL", "3", "supported values are [1,2]")]
#[case(
    "UNKNOWN",
    "x",
    "unknown parameter: remove it, or use a parameter that the workflow declares: MEMORY, REPLICAS"
)]
fn value_violating_declaration_is_rejected_with_allowed_value(
    #[case] name: &str,
    #[case] value: &str,
    #[case] says: &str,
) {
    let mut values = given(&VALID);
    values.insert(name.to_owned(), value.to_owned());
    let violations = all_keywords().check(&values);
    let [violation] = violations.as_slice() else {
        panic!("one violation, not {violations:?}");
    };
    assert_eq!(violation.name(), name);
    assert!(violation.to_string().contains(says), "{violation}");
}

/// BR-WE-001
#[test]
fn required_value_missing_is_reported_with_type() {
    assert_eq!(
        all_keywords().check(&given(&[])),
        [ParameterViolation::Required {
            name: "MEMORY".to_owned(),
            kind: ParameterType::String
        }]
    );
}

/// BR-WE-001
#[test]
fn dependency_with_default_is_satisfied() {
    let violations = all_keywords().check(&given(&[("MEMORY", "1Mi"), ("GRACE", "30")]));
    assert_eq!(
        violations,
        [ParameterViolation::DependsOn {
            name: "GRACE".to_owned(),
            needs: "REPLICAS".to_owned()
        }]
    );
}

/// BR-WE-001
#[test]
fn values_with_several_violations_report_all() {
    let violations = all_keywords().check(&given(&[("MEMORY", "x"), ("MODE", "y"), ("Z", "z")]));
    let names: Vec<_> = violations.iter().map(ParameterViolation::name).collect();
    assert_eq!(names, ["MEMORY", "MODE", "Z"]);
}

/// BR-WE-001
#[test]
fn defaults_apply_only_to_missing_values() {
    let completed = all_keywords().with_defaults(&given(&[("MEMORY", "1Mi"), ("MODE", "fast")]));
    assert_eq!(
        completed,
        given(&[("MEMORY", "1Mi"), ("MODE", "fast"), ("FORCE", "false")])
    );
}

#[rstest]
#[case(json!({ "name": "A-B", "type": "string" }), "name: invalid value \"A-B\": must be letters, digits and _")]
#[case(json!({ "name": "TARGET_RESOURCE", "type": "string" }), "are reserved for the controller")]
#[case(json!({ "name": "TARGET_RESOURCE_UID", "type": "string" }), "are reserved for the controller")]
#[case(json!({ "name": "A", "type": "string", "minimum": 1 }), "minimum: must not be set for type string, only for integer and float")]
#[case(json!({ "name": "A", "type": "integer", "pattern": "x" }), "pattern: must not be set for type integer, only for string")]
#[case(json!({ "name": "A", "type": "string", "pattern": "(" }), "must be a regular expression without look-around")]
#[case(json!({ "name": "A", "type": "string", "pattern": "^(?!a)" }), "must be a regular expression without look-around")]
#[case(json!({ "name": "A", "type": "string", "pattern": "(\\w{1,99}-){99}" }), "must be a regular expression without look-around")]
#[case(json!({ "name": "A", "type": "integer", "minimum": 5, "maximum": 4 }), "minimum: invalid value 5: must be at most 4")]
#[case(json!({ "name": "A", "type": "string", "enum": [] }), "enum: must not be empty")]
#[case(json!({ "name": "A", "type": "integer", "enum": [1, "x"] }), "enum: invalid value \"x\": must be of type integer")]
#[case(json!({ "name": "A", "type": "integer", "default": "x" }), "default: invalid value \"x\": must be of type integer")]
#[case(json!({ "name": "A", "type": "integer", "maximum": 3, "default": 4 }), "default: invalid value 4: must be at most 3")]
#[case(json!({ "name": "A", "type": "string", "dependsOn": ["A"] }), "dependsOn: invalid value \"A\": must be the name of another")]
#[case(json!({ "name": "A", "type": "string", "dependsOn": ["B"] }), "dependsOn: invalid value \"B\": must be the name of another")]
fn declaration_invalid_is_rejected_with_keyword(#[case] declared: Value, #[case] says: &str) {
    let errors = Parameters::compile(declarations(json!([declared]))).expect_err("invalid");
    let [(0, error)] = errors.as_slice() else {
        panic!("one error, not {errors:?}");
    };
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn declaration_with_duplicate_name_is_rejected() {
    let twice = json!([{ "name": "A", "type": "string" }, { "name": "A", "type": "integer" }]);
    let errors = Parameters::compile(declarations(twice)).expect_err("invalid");
    assert_eq!(errors, [(1, DeclarationError::Duplicate("A".to_owned()))]);
}

#[test]
fn schema_forbids_additional_properties_and_requires_values_without_default() {
    let schema = all_keywords().schema().clone();
    assert_eq!(schema["additionalProperties"], json!(false));
    assert_eq!(schema["required"], json!(["MEMORY"]));
    assert_eq!(
        schema["dependentRequired"],
        json!({ "GRACE": ["REPLICAS"] })
    );
    assert_eq!(schema["properties"]["LEVEL"]["enum"], json!([1, 2]));
}

proptest! {
    #[test]
    fn check_any_values_returns_without_panic(values in prop::collection::btree_map("MEMORY|REPLICAS|RATIO|FORCE|NODES|MODE|\\PC{0,4}", "\\PC{0,12}|[0-9eE.+-]{1,30}|\\[{0,60}", 0..8)) {
        let all_keywords = all_keywords();
        for violation in all_keywords.check(&values) {
            prop_assert!(!violation.to_string().is_empty());
        }
        let completed = all_keywords.with_defaults(&values);
        prop_assert!(values.iter().all(|(name, value)| completed.get(name) == Some(value)));
    }

    #[test]
    fn numbers_of_declared_type_are_accepted(integer: i64, float in prop::num::f64::NORMAL) {
        let parameters = parameters(json!([{ "name": "I", "type": "integer" }, { "name": "F", "type": "float" }]));
        let values = given(&[("I", &integer.to_string()), ("F", &json!(float).to_string())]);
        prop_assert_eq!(parameters.check(&values), []);
    }

    #[test]
    fn declarations_any_pattern_and_default_compile_without_panic(pattern in "\\PC{0,20}", minimum: i64, default in "\\PC{0,8}") {
        let declared = json!([
            { "name": "A", "type": "string", "pattern": pattern, "default": default },
            { "name": "B", "type": "integer", "minimum": minimum, "default": default },
        ]);
        let _ = Parameters::compile(declarations(declared));
    }
}
