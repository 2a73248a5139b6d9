//! The types of parameters.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// The type a value is read as.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// Any text.
    String,
    /// A whole number of 64 bits.
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
    /// How to write one.
    pub(super) fn example(self) -> &'static str {
        match self {
            Self::String => "write any text",
            Self::Integer => "write a whole number, as \"3\"",
            Self::Float => "write a number, as \"0.5\"",
            Self::Boolean => "write \"true\" or \"false\"",
            Self::Array => "write a JSON array, as \"[\\\"a\\\", \\\"b\\\"]\"",
        }
    }

    /// Its name in JSON Schema.
    pub(super) fn json_type(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "number",
            Self::Boolean => "boolean",
            Self::Array => "array",
        }
    }

    /// Reads `text` as this type, in JSON's spelling.
    pub(super) fn read(self, text: &str) -> Option<Value> {
        if self == Self::String {
            return Some(Value::String(text.to_owned()));
        }
        // JSON allows white space around a value; an environment variable would keep it.
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
