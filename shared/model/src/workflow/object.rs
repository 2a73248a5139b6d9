//! The RemediationWorkflow resource: a workflow as an object in the cluster.
//!
//! Its fields are those of Kubernaut's own definition, as far as they matter to the execution of a
//! workflow, and `execution.{runAsUser, targetKinds, resources, maxTimeout}` beside them.

#![expect(
    clippy::duplicated_attributes,
    reason = "several columns have the same type"
)]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::definition::{ReadWorkflow, WorkflowStatus};
use super::entry::{DeclaredDependencies, Description, Entry, Execution};
use super::problem::{Problem, WorkflowError};
use crate::parameters::declaration::{ParameterDeclaration, any_value};
use crate::text::shortened;

/// A workflow of the catalog.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "kubernaut.ai",
    version = "v1alpha1",
    kind = "RemediationWorkflow",
    plural = "remediationworkflows",
    singular = "remediationworkflow",
    shortname = "rw",
    category = "kubernaut",
    namespaced,
    status = "RemediationWorkflowStatus",
    derive = "PartialEq",
    doc = "A workflow of the catalog: what it does, how it is executed, and which parameters it has.",
    printcolumn(
        name = "Engine",
        type_ = "string",
        json_path = ".spec.execution.engine"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.actionType"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.catalogStatus"),
    printcolumn(
        name = "Id",
        type_ = "string",
        json_path = ".status.workflowId",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RemediationWorkflowSpec {
    /// Version of the workflow. A change of the spec needs a new one.
    pub version: String,
    /// What the workflow is for, for people and for the analysis.
    #[serde(default)]
    pub description: Description,
    /// Type of the action, by which the analysis searches for workflows.
    #[serde(default)]
    pub action_type: String,
    /// What the workflow is for, by which the analysis searches for workflows.
    #[serde(default)]
    pub labels: WorkflowLabels,
    /// More labels for the search.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_labels: BTreeMap<String, String>,
    /// Properties of the infrastructure that the workflow needs, for the search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub detected_labels: Option<Value>,
    /// How the workflow is executed.
    pub execution: Execution,
    /// Secrets and ConfigMaps that must exist and have data in the execution namespace.
    #[serde(default)]
    pub dependencies: DeclaredDependencies,
    /// Parameters of the workflow.
    #[serde(default)]
    pub parameters: Vec<ParameterDeclaration>,
    /// Whom to ask about the workflow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maintainers: Vec<Maintainer>,
}

/// What a workflow is for, by which the analysis searches for workflows.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct WorkflowLabels {
    /// Severities: `critical`, `high`, `medium`, `low`.
    pub severity: Vec<String>,
    /// Environments, for example `production`; `*`: every one.
    pub environment: Vec<String>,
    /// Kinds of the resources, for example `deployment`; `*`: every one.
    pub component: Vec<String>,
    /// Business priority, `P0` to `P3`; `*`: every one.
    pub priority: String,
}

/// Whom to ask about a workflow.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
pub struct Maintainer {
    /// Name of a person or a team.
    pub name: String,
    /// Address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub email: String,
}

/// State of the workflow in the catalog.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RemediationWorkflowStatus {
    /// Id that the workflow can be requested by, beside its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workflow_id: String,
    /// `Active` and `Deprecated` workflows may run, others not; absent: `Active`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog_status: Option<String>,
}

impl RemediationWorkflowSpec {
    /// The workflow as it was written, of the object `name`.
    pub(super) fn entry(self, name: &str, status: WorkflowStatus) -> Entry {
        Entry {
            workflow_id: ("metadata.name", name.to_owned()),
            version: ("version", self.version),
            description: self.description,
            action_type: self.action_type,
            status,
            execution: self.execution,
            dependencies: self.dependencies,
            parameters: self.parameters,
        }
    }
}

/// Reads the object `name`. `spec` and `status` are JSON, because a definition of another release
/// admits other values.
pub(super) fn read(
    name: &str,
    spec: &Value,
    status: &Value,
) -> Result<ReadWorkflow, WorkflowError> {
    let fail = |problems| WorkflowError {
        file: name.to_owned(),
        problems,
    };
    let unreadable = |path: &str, error: &serde_path_to_error::Error<serde_json::Error>| {
        let path = match error.path().to_string().as_str() {
            "." => path.to_owned(),
            within => format!("{path}.{within}"),
        };
        fail(vec![Problem::Unreadable(format!(
            "{path}: {}",
            error.inner()
        ))])
    };
    let found: Option<RemediationWorkflowStatus> =
        serde_path_to_error::deserialize(status).map_err(|error| unreadable("status", &error))?;
    let found = found.and_then(|it| it.catalog_status).unwrap_or_default();
    let status = match found.as_str() {
        "" => WorkflowStatus::default(),
        text => text.parse().map_err(|_| {
            let found = shortened(text);
            let path = "status.catalogStatus";
            fail(vec![Problem::Status { path, found }])
        })?,
    };
    let spec: RemediationWorkflowSpec =
        serde_path_to_error::deserialize(spec).map_err(|error| unreadable("spec", &error))?;
    let workflow = spec.entry(name, status).check().map_err(fail)?;
    Ok(ReadWorkflow::new(name, workflow, &[]))
}
