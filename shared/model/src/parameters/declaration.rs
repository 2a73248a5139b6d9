//! One parameter as a workflow declares it, and what can be wrong with that.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Number, Value, json};
use thiserror::Error;

use super::declared::{Parameters, validator_of};
use super::kind::ParameterType;
use super::{PARAMETER_NAME, ParameterViolation, RESERVED};

/// One parameter as a workflow declares it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParameterDeclaration {
    /// Its name.
    pub name: String,
    /// The type its value is read as.
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// Whether it must be given (a default gives it).
    #[serde(default)]
    pub required: bool,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// The values allowed.
    #[serde(default, rename = "enum")]
    pub allowed: Option<Vec<Value>>,
    /// Regular expression, unanchored, without look-around.
    #[serde(default)]
    pub pattern: Option<String>,
    /// Smallest number.
    #[serde(default)]
    pub minimum: Option<Number>,
    /// Largest number.
    #[serde(default)]
    pub maximum: Option<Number>,
    /// Used where no value is given.
    #[serde(default)]
    pub default: Option<Value>,
    /// Parameters that must be given with it.
    #[serde(default)]
    pub depends_on: Vec<String>,
}

/// What is wrong with a declaration.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DeclarationError {
    /// Not usable as an environment variable.
    #[error("name: {0:?} must be {allowed}", allowed = PARAMETER_NAME.allowed)]
    Name(String),
    /// One of ours.
    #[error("name: {RESERVED}, so {0:?} cannot be declared")]
    Reserved(String),
    /// Declared twice.
    #[error("name: {0:?} is declared twice")]
    Duplicate(String),
    /// A word that the type does not have.
    #[error("{word}: is for parameters of type {allowed}, not {kind}")]
    WrongType {
        /// The word of the declaration.
        word: &'static str,
        /// The types that have it.
        allowed: &'static str,
        /// The declared type.
        kind: ParameterType,
    },
    /// Not a regular expression of the linear kind.
    #[error(
        "pattern: {pattern:?} is no regular expression of the linear kind (no look-around, no back-references): {message}"
    )]
    Pattern {
        /// As declared.
        pattern: String,
        /// What the library says.
        message: String,
    },
    /// `minimum` over `maximum`.
    #[error("minimum: {minimum} is larger than maximum {maximum}")]
    Bounds {
        /// As declared.
        minimum: Number,
        /// As declared.
        maximum: Number,
    },
    /// Nothing allowed.
    #[error("enum: is empty: leave it out or list the allowed values")]
    EmptyEnum,
    /// An enum value of another type.
    #[error("enum: {value} is no {kind}")]
    EnumValue {
        /// As declared.
        value: Value,
        /// The declared type.
        kind: ParameterType,
    },
    /// A default that its own declaration refuses.
    #[error("default: {0}")]
    Default(ParameterViolation),
    /// Depends on something that is not there, or on itself.
    #[error("dependsOn: {0:?} is no other declared parameter")]
    DependsOn(String),
}

impl ParameterDeclaration {
    /// Reports what is wrong with this declaration by itself.
    pub(super) fn check(&self, report: &mut impl FnMut(DeclarationError)) {
        let is_number = matches!(self.kind, ParameterType::Integer | ParameterType::Float);
        for (word, present) in [
            ("minimum", self.minimum.is_some()),
            ("maximum", self.maximum.is_some()),
        ] {
            if present && !is_number {
                report(DeclarationError::WrongType {
                    word,
                    allowed: "integer and float",
                    kind: self.kind,
                });
            }
        }
        if let (Some(minimum), Some(maximum)) = (&self.minimum, &self.maximum)
            && minimum.as_f64() > maximum.as_f64()
        {
            report(DeclarationError::Bounds {
                minimum: minimum.clone(),
                maximum: maximum.clone(),
            });
        }
        if let Some(pattern) = &self.pattern {
            if self.kind != ParameterType::String {
                report(DeclarationError::WrongType {
                    word: "pattern",
                    allowed: "string",
                    kind: self.kind,
                });
            }
            if let Err(message) = validator_of(&json!({ "pattern": pattern })) {
                report(DeclarationError::Pattern {
                    pattern: pattern.clone(),
                    message,
                });
            }
        }
        if self.allowed.as_ref().is_some_and(Vec::is_empty) {
            report(DeclarationError::EmptyEnum);
        }
        for value in self.allowed.iter().flatten() {
            if self.kind.read(&text_of(value)).is_none() {
                report(DeclarationError::EnumValue {
                    value: value.clone(),
                    kind: self.kind,
                });
            }
        }
        if let Some(default) = &self.default {
            self.violations_of_default(default)
                .into_iter()
                .for_each(|it| report(DeclarationError::Default(it)));
        }
    }

    fn violations_of_default(&self, default: &Value) -> Vec<ParameterViolation> {
        let alone = Self {
            depends_on: Vec::new(),
            ..self.clone()
        };
        // A pattern that does not compile is reported by itself.
        let Ok(parameters) = Parameters::of(vec![alone]) else {
            return Vec::new();
        };
        parameters.check(&BTreeMap::from([(self.name.clone(), text_of(default))]))
    }

    pub(super) fn property(&self) -> Value {
        let mut property = Map::from_iter([("type".to_owned(), json!(self.kind.json_type()))]);
        let mut insert = |word: &str, value: Option<Value>| {
            value.map(|value| property.insert(word.to_owned(), value))
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

/// A value as the text a WorkflowExecution would carry.
pub(super) fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
