//! Declaration of a parameter by a workflow, and its errors.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value, json};
use thiserror::Error;

use super::kind::ParameterType;
use super::violation::{PARAMETER_NAME, ParameterViolation, RESERVED};

/// Declaration of a parameter by a workflow.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParameterDeclaration {
    /// Name of the parameter.
    pub name: String,
    /// Type that the value is parsed as.
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// Whether a value is required. A default satisfies the requirement.
    #[serde(default)]
    pub required: bool,
    /// Description, informational.
    #[serde(default)]
    pub description: String,
    /// Allowed values.
    #[serde(default, rename = "enum", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_values")]
    pub allowed: Option<Vec<Value>>,
    /// Regular expression, unanchored, without look-around.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Minimum of a number, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<f64>")]
    pub minimum: Option<Number>,
    /// Maximum of a number, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<f64>")]
    pub maximum: Option<Number>,
    /// Value to use if a WorkflowExecution has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub default: Option<Value>,
    /// Parameters that are required if this one has a value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
}

/// Schema of a value of any type.
pub(crate) fn any_value(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

fn any_values(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": any_value(generator) })
}

/// An error in a declaration.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DeclarationError {
    /// The name cannot be that of an environment variable.
    #[error("name: invalid value {0:?}: must be {allowed}", allowed = PARAMETER_NAME.allowed)]
    Name(String),
    /// The name is reserved for the controller.
    #[error("name: invalid value {0:?}: {RESERVED}: use another name")]
    Reserved(String),
    /// Another parameter has the same name.
    #[error("name: duplicate value {0:?}: declare the parameter once")]
    Duplicate(String),
    /// A keyword does not apply to the type.
    #[error("{keyword}: must not be set for type {kind}, only for {allowed}: remove it")]
    WrongType {
        /// Keyword of the declaration.
        keyword: &'static str,
        /// The types that the keyword applies to.
        allowed: &'static str,
        /// The declared type.
        kind: ParameterType,
    },
    /// The pattern does not compile to a linear-time regular expression.
    #[error(
        "pattern: invalid value {pattern:?}: must be a regular expression without look-around and back-references: {message}"
    )]
    Pattern {
        /// The declared pattern.
        pattern: String,
        /// Message of the regular expression library.
        message: String,
    },
    /// `minimum` is greater than `maximum`.
    #[error("minimum: invalid value {minimum}: must be at most {maximum}, the maximum")]
    Bounds {
        /// The declared minimum.
        minimum: Number,
        /// The declared maximum.
        maximum: Number,
    },
    /// `enum` is empty.
    #[error("enum: must not be empty: remove it or list the allowed values")]
    EmptyEnum,
    /// A value in `enum` has the wrong type.
    #[error("enum: invalid value {value}: must be of type {kind}")]
    EnumValue {
        /// The declared value.
        value: Value,
        /// The declared type.
        kind: ParameterType,
    },
    /// The default violates its own declaration.
    #[error("default: {0}")]
    Default(ParameterViolation),
    /// `dependsOn` names an undeclared parameter or the parameter itself.
    #[error("dependsOn: invalid value {0:?}: must be the name of another declared parameter")]
    DependsOn(String),
}

impl ParameterDeclaration {
    /// The JSON Schema of the parameter.
    pub(super) fn property(&self) -> Value {
        let mut property = Map::from_iter([("type".to_owned(), json!(self.kind.json_type()))]);
        let mut insert = |keyword: &str, value: Option<Value>| {
            value.map(|value| property.insert(keyword.to_owned(), value))
        };
        insert(
            "enum",
            self.allowed.as_ref().map(|values| {
                values
                    .iter()
                    .filter_map(|value| self.kind.read(&text_of(value)))
                    .collect()
            }),
        );
        insert("pattern", self.pattern.clone().map(Value::String));
        insert("minimum", self.minimum.clone().map(Value::Number));
        insert("maximum", self.maximum.clone().map(Value::Number));
        insert(
            "description",
            Some(self.description.clone())
                .filter(|it| !it.is_empty())
                .map(Value::String),
        );
        Value::Object(property)
    }
}

/// Formats a value like the text in a WorkflowExecution.
pub(super) fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
