//! JSON that nobody has looked at yet.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::shortened;

/// What is not of the shape that it must have.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{path}: {message}")]
pub struct Misshapen {
    /// Where, with dots; a single one is the whole.
    pub path: String,
    /// What was expected and found.
    pub message: String,
}

/// Reads JSON that nobody has looked at yet: a text, or a value.
pub fn parse<'a, T, D>(json: D) -> Result<T, Misshapen>
where
    T: Deserialize<'a>,
    D: Deserializer<'a, Error = serde_json::Error>,
{
    serde_path_to_error::deserialize(json).map_err(|error| {
        let path = error.path().to_string();
        let (inner, text) = (error.inner(), error.inner().to_string());
        // Nobody sees the text that the position is in.
        let position = format!(" at line {} column {}", inner.line(), inner.column());
        let message = shortened(text.strip_suffix(&position).unwrap_or(&text));
        Misshapen { path, message }
    })
}

/// What must be written as an object: derived readers take a list of the fields' values as well.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonObject<T>(pub T);

impl<'a, T: Deserialize<'a>> Deserialize<'a> for JsonObject<T> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OnlyMap(PhantomData))
    }
}

struct OnlyMap<T>(PhantomData<T>);

impl<'a, T: Deserialize<'a>> Visitor<'a> for OnlyMap<T> {
    type Value = JsonObject<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(JsonObject)
    }
}
