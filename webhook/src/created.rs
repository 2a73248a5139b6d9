//! The fields of a new WorkflowExecution that the mutating and the validating handler read.

use serde::Deserialize;
use serde_json::Deserializer;
use serde_json::value::RawValue;
use wfe_model::rules::{self, JsonObject};
use wfe_model::workflow_execution::WorkflowExecutionSpec;

use crate::refusal::Refusal;
use crate::review::Request;

/// The fields of the object of a CREATE review.
pub struct Created {
    /// The spec.
    pub spec: WorkflowExecutionSpec,
    /// `metadata.finalizers`; `None` where the list is absent.
    pub finalizers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ObjectFields<'a> {
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
    /// Reads the object; the refusal names the first field that does not have the expected type.
    pub fn read(request: &Request<'_>) -> Result<Self, Refusal> {
        let ObjectFields { metadata, spec } = request.object()?;
        let JsonObject(metadata) = metadata;
        let spec = spec.map_or("null", RawValue::get);
        let spec = rules::read(&mut Deserializer::from_str(spec)).map_err(Refusal::Spec)?;
        Ok(Self {
            spec,
            finalizers: metadata.finalizers,
        })
    }
}
