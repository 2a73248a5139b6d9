//! What both handlers of a create read of the object.

use serde::Deserialize;
use serde_json::Deserializer;
use serde_json::value::RawValue;
use wfe_model::rules::{self, JsonObject};
use wfe_model::workflow_execution::WorkflowExecutionSpec;

use crate::refusal::Refusal;
use crate::review::Request;

/// A WorkflowExecution that is not stored yet.
pub struct Created {
    /// What is asked for.
    pub spec: WorkflowExecutionSpec,
    /// What it has already; none where the list is absent.
    pub finalizers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Parts<'a> {
    metadata: JsonObject<Metadata>,
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    finalizers: Option<Vec<String>>,
}

impl Created {
    /// Reads the object, or says where it is not of the shape that it must have.
    pub fn read(request: &Request<'_>) -> Result<Self, Refusal> {
        let Parts { metadata, spec } = request.object()?;
        let JsonObject(metadata) = metadata;
        let spec = spec.map_or("null", RawValue::get);
        let spec = rules::read(&mut Deserializer::from_str(spec)).map_err(Refusal::Spec)?;
        Ok(Self {
            spec,
            finalizers: metadata.finalizers,
        })
    }
}
