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
    Parameters::compile(declarations(declared)).expect("right declarations")
}

fn given(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// A bit of everything; valid values below.
fn everything() -> Parameters {
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

const RIGHT: [(&str, &str); 8] = [
    ("MEMORY", "512Mi"),
    ("REPLICAS", "3"),
    ("RATIO", "1"),
    ("FORCE", "true"),
    ("NODES", "[\"a\", 1]"),
    ("MODE", "fast"),
    ("LEVEL", "2"),
    ("GRACE", "30"),
];

#[test]
fn br_we_001_values_of_the_declared_types_are_accepted() {
    assert_eq!(everything().check(&given(&RIGHT)), []);
    assert_eq!(everything().check(&given(&[("MEMORY", "1Mi")])), []);
}

#[rstest]
#[case("MEMORY", "512", "does not match the pattern \"^[0-9]+Mi$\"")]
#[case(
    "REPLICAS",
    "abc",
    "\"abc\" is no integer: write a whole number, as \"3\""
)]
#[case("REPLICAS", "3.0", "is no integer")]
#[case("REPLICAS", " 3", "is no integer")]
#[case("REPLICAS", "+3", "is no integer")]
#[case("REPLICAS", "", "is no integer")]
#[case("REPLICAS", "99999999999999999999", "is no integer")]
#[case("REPLICAS", "0", "too small: at least 1 is allowed")]
#[case("REPLICAS", "11", "too large: at most 10 is allowed")]
#[case("RATIO", "0.49", "too small: at least 0.5 is allowed")]
#[case("RATIO", "1.6", "too large: at most 1.5 is allowed")]
#[case("RATIO", "NaN", "is no float")]
#[case("FORCE", "yes", "is no boolean: write \"true\" or \"false\"")]
#[case("NODES", "a,b", "is no array: write a JSON array")]
#[case("NODES", "{}", "is no array")]
#[case("MODE", "slow", "use one of [\"fast\",\"safe\"]")]
#[case("LEVEL", "3", "use one of [1,2]")]
#[case(
    "UNKNOWN",
    "x",
    "declares no parameter UNKNOWN: it declares MEMORY, REPLICAS"
)]
fn br_we_001_a_wrong_value_is_refused_in_words(
    #[case] name: &str,
    #[case] value: &str,
    #[case] says: &str,
) {
    let mut values = given(&RIGHT);
    values.insert(name.to_owned(), value.to_owned());
    let violations = everything().check(&values);
    let [violation] = violations.as_slice() else {
        panic!("one violation, not {violations:?}");
    };
    assert_eq!(violation.name(), name);
    assert!(violation.to_string().contains(says), "{violation}");
}

#[test]
fn br_we_001_what_is_missing_is_named_with_its_type() {
    assert_eq!(
        everything().check(&given(&[])),
        [ParameterViolation::Required {
            name: "MEMORY".to_owned(),
            kind: ParameterType::String
        }]
    );
}

#[test]
fn br_we_001_a_dependency_that_has_a_default_is_there() {
    let violations = everything().check(&given(&[("MEMORY", "1Mi"), ("GRACE", "30")]));
    assert_eq!(
        violations,
        [ParameterViolation::DependsOn {
            name: "GRACE".to_owned(),
            needs: "REPLICAS".to_owned()
        }]
    );
}

#[test]
fn br_we_001_several_violations_are_reported_together() {
    let violations = everything().check(&given(&[("MEMORY", "x"), ("MODE", "y"), ("Z", "z")]));
    let names: Vec<_> = violations.iter().map(ParameterViolation::name).collect();
    assert_eq!(names, ["MEMORY", "MODE", "Z"]);
}

#[test]
fn br_we_001_defaults_fill_what_is_not_given() {
    let completed = everything().with_defaults(&given(&[("MEMORY", "1Mi"), ("MODE", "fast")]));
    assert_eq!(
        completed,
        given(&[("MEMORY", "1Mi"), ("MODE", "fast"), ("FORCE", "false")])
    );
}

#[rstest]
#[case(json!({ "name": "A-B", "type": "string" }), "name: \"A-B\" must be letters, digits and _")]
#[case(json!({ "name": "TARGET_RESOURCE", "type": "string" }), "are set by the controller")]
#[case(json!({ "name": "A", "type": "string", "minimum": 1 }), "minimum: is for parameters of type integer and float, not string")]
#[case(json!({ "name": "A", "type": "integer", "pattern": "x" }), "pattern: is for parameters of type string, not integer")]
#[case(json!({ "name": "A", "type": "string", "pattern": "(" }), "is no regular expression of the linear kind")]
#[case(json!({ "name": "A", "type": "string", "pattern": "^(?!a)" }), "is no regular expression of the linear kind")]
#[case(json!({ "name": "A", "type": "integer", "minimum": 5, "maximum": 4 }), "minimum: 5 is larger than maximum 4")]
#[case(json!({ "name": "A", "type": "string", "enum": [] }), "enum: is empty")]
#[case(json!({ "name": "A", "type": "integer", "enum": [1, "x"] }), "enum: \"x\" is no integer")]
#[case(json!({ "name": "A", "type": "integer", "default": "x" }), "default: the value \"x\" is no integer")]
#[case(json!({ "name": "A", "type": "integer", "maximum": 3, "default": 4 }), "default: the value 4 is too large")]
#[case(json!({ "name": "A", "type": "string", "dependsOn": ["A"] }), "dependsOn: \"A\" is no other declared parameter")]
#[case(json!({ "name": "A", "type": "string", "dependsOn": ["B"] }), "dependsOn: \"B\" is no other declared parameter")]
fn a_wrong_declaration_is_refused_in_words(#[case] declared: Value, #[case] says: &str) {
    let errors = Parameters::compile(declarations(json!([declared]))).expect_err("wrong");
    let [(0, error)] = errors.as_slice() else {
        panic!("one error, not {errors:?}");
    };
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn a_parameter_is_declared_once() {
    let twice = json!([{ "name": "A", "type": "string" }, { "name": "A", "type": "integer" }]);
    let errors = Parameters::compile(declarations(twice)).expect_err("wrong");
    assert_eq!(errors, [(1, DeclarationError::Duplicate("A".to_owned()))]);
}

#[test]
fn the_schema_is_closed_and_offline() {
    let schema = everything().schema().clone();
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
    fn a_parameter_name_survives_a_round_trip(name in "[A-JL-SU-Z_][A-Za-z0-9_]{0,127}") {
        prop_assert_eq!(ParameterName::parse(&name).expect("a name").to_string(), name);
    }

    #[test]
    fn no_name_makes_the_parser_panic(name in "\\PC*") {
        if let Some(parsed) = ParameterName::parse(&name) {
            prop_assert_eq!(parsed.as_str(), name);
        }
    }

    #[test]
    fn no_value_makes_the_check_panic(values in prop::collection::btree_map("MEMORY|REPLICAS|RATIO|FORCE|NODES|MODE|\\PC{0,4}", "\\PC{0,12}|[0-9eE.+-]{1,30}|\\[{0,60}", 0..8)) {
        let everything = everything();
        for violation in everything.check(&values) {
            prop_assert!(!violation.to_string().is_empty());
        }
        let completed = everything.with_defaults(&values);
        prop_assert!(values.iter().all(|(name, value)| completed.get(name) == Some(value)));
    }

    #[test]
    fn every_number_of_the_declared_kind_is_read(integer: i64, float in prop::num::f64::NORMAL) {
        let parameters = parameters(json!([{ "name": "I", "type": "integer" }, { "name": "F", "type": "float" }]));
        let values = given(&[("I", &integer.to_string()), ("F", &json!(float).to_string())]);
        prop_assert_eq!(parameters.check(&values), []);
    }

    #[test]
    fn every_declaration_compiles_or_is_refused(pattern in "\\PC{0,20}", minimum: i64, default in "\\PC{0,8}") {
        let declared = json!([
            { "name": "A", "type": "string", "pattern": pattern, "default": default },
            { "name": "B", "type": "integer", "minimum": minimum, "default": default },
        ]);
        let _ = Parameters::compile(declarations(declared));
    }
}
