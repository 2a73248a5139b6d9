//! Reads unvalidated JSON.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::text::shortened;

/// A JSON value that does not have the expected type.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{path}: {message}")]
pub struct Misshapen {
    /// Path of the value, separated by dots; `.` is the root.
    pub path: String,
    /// Expected and actual type.
    pub message: String,
}

/// Reads unvalidated JSON, from text or from a value.
pub fn parse<'a, T, D>(json: D) -> Result<T, Misshapen>
where
    T: Deserialize<'a>,
    D: Deserializer<'a, Error = serde_json::Error>,
{
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        let (inner, text) = (error.inner(), error.inner().to_string());
        // The user does not see the JSON text that the position refers to.
        let position = format!(" at line {} column {}", inner.line(), inner.column());
        let message = shortened(text.strip_suffix(&position).unwrap_or(&text));
        Misshapen { path, message }
    })
}

/// Accepts a JSON object only: derived implementations of `Deserialize` also accept an array of the
/// values of the fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonObject<T>(pub T);

impl<'a, T: Deserialize<'a>> Deserialize<'a> for JsonObject<T> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'a, T: Deserialize<'a>> Visitor<'a> for ObjectVisitor<T> {
    type Value = JsonObject<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(JsonObject)
    }
}
