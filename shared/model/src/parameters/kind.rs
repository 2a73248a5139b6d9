//! Types of parameters.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Type of a parameter.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// Any text.
    String,
    /// A whole number that fits in 64 bits.
    Integer,
    /// A finite number.
    Float,
    /// `true` or `false`.
    Boolean,
    /// A JSON array.
    Array,
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Boolean => "boolean",
            Self::Array => "array",
        })
    }
}

impl ParameterType {
    /// Advice for the user, with an example.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::String => "use any text",
            Self::Integer => "use a whole number, for example \"3\"",
            Self::Float => "use a number, for example \"0.5\"",
            Self::Boolean => "use \"true\" or \"false\"",
            Self::Array => "use a JSON array, for example \"[\\\"a\\\", \\\"b\\\"]\"",
        }
    }

    /// The type in JSON Schema.
    pub(super) fn json_type(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "number",
            Self::Boolean => "boolean",
            Self::Array => "array",
        }
    }

    /// Parses `text` as a JSON value of this type.
    pub(super) fn read(self, text: &str) -> Option<Value> {
        if self == Self::String {
            return Some(Value::String(text.to_owned()));
        }
        // JSON ignores white space around a value, but an environment variable would keep it.
        if text.trim() != text {
            return None;
        }
        serde_json::from_str::<Value>(text)
            .ok()
            .filter(|value| match self {
                Self::String => true,
                Self::Integer => value.is_i64() || value.is_u64(),
                Self::Float => value.is_number(),
                Self::Boolean => value.is_boolean(),
                Self::Array => value.is_array(),
            })
    }
}
