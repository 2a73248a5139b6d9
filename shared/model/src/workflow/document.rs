//! The YAML document of a workflow: plain, or wrapped in a RemediationWorkflow object.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::definition::WorkflowStatus;
use super::entry::{DeclaredDependencies, Description, Entry, Execution};
use super::object::RemediationWorkflowSpec;
use super::problem::Problem;
use crate::parameters::declaration::ParameterDeclaration;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    metadata: Metadata,
    #[serde(default)]
    action_type: String,
    #[serde(default)]
    #[expect(dead_code, reason = "known key, used by the analysis only")]
    labels: BTreeMap<String, Value>,
    #[serde(default)]
    status: WorkflowStatus,
    execution: Execution,
    #[serde(default)]
    dependencies: DeclaredDependencies,
    #[serde(default)]
    parameters: Vec<ParameterDeclaration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    workflow_id: String,
    version: String,
    #[serde(default)]
    description: Description,
    #[serde(default)]
    #[expect(dead_code, reason = "known key, informational")]
    maintainers: Vec<Value>,
}

/// A manifest whose spec is `S`.
#[derive(Deserialize)]
struct Wrapped<S> {
    #[serde(rename = "apiVersion")]
    #[expect(dead_code, reason = "known key")]
    api_version: String,
    #[expect(dead_code, reason = "known key")]
    kind: WrappedKind,
    #[serde(default)]
    metadata: Value,
    spec: S,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "known key; a manifest does not decide on its own status"
    )]
    status: Option<IgnoredAny>,
}

#[derive(Deserialize)]
enum WrappedKind {
    RemediationWorkflow,
}

/// Reads a plain or wrapped document. Also returns the paths of unknown keys.
pub(super) fn read(yaml: &str) -> Result<(Entry, Vec<String>), Problem> {
    /// Only a wrapped document has a kind.
    #[derive(Deserialize)]
    struct Kind {
        kind: Option<IgnoredAny>,
        #[serde(default)]
        spec: Spec,
    }
    /// Only the spec that wraps a plain document has metadata.
    #[derive(Default, Deserialize)]
    struct Spec {
        metadata: Option<IgnoredAny>,
    }
    let Kind { kind, spec } = parse(yaml)?.0;
    if kind.is_none() {
        let (document, unknown) = parse::<Document>(yaml)?;
        return Ok((document.entry(), unknown));
    }
    if spec.metadata.is_some() {
        let (wrapped, unknown) = parse::<Wrapped<Document>>(yaml)?;
        return Ok((wrapped.spec.entry(), unknown));
    }
    let (wrapped, unknown) = parse::<Wrapped<RemediationWorkflowSpec>>(yaml)?;
    let name = wrapped.metadata.get("name").and_then(Value::as_str);
    let name = name.unwrap_or_default();
    Ok((wrapped.spec.entry(name, WorkflowStatus::default()), unknown))
}

fn parse<T: for<'de> Deserialize<'de>>(yaml: &str) -> Result<(T, Vec<String>), Problem> {
    let mut unknown = Vec::new();
    serde_saphyr::with_deserializer_from_str(yaml, |deserializer| {
        serde_ignored::deserialize(deserializer, |path| unknown.push(path.to_string()))
    })
    .map(|value| (value, unknown))
    .map_err(|error| Problem::Unreadable(error.without_snippet().to_string()))
}

impl Document {
    fn entry(self) -> Entry {
        Entry {
            workflow_id: ("metadata.workflowId", self.metadata.workflow_id),
            version: ("metadata.version", self.metadata.version),
            description: self.metadata.description,
            action_type: self.action_type,
            status: self.status,
            execution: self.execution,
            dependencies: self.dependencies,
            parameters: self.parameters,
        }
    }
}
