//! The CustomResourceDefinition as it is installed.
//!
//! Derived from the stored types, then brought into the shape that hand-written definitions have:
//! what the derive cannot say (required although read leniently) is added, what it says too much
//! (nullable, null in enums, defaults) is taken out.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::workflow_execution::WorkflowExecution;

/// Fields that must be there, by the path of the object that has them. In Rust they are read
/// leniently, so that the rules can report them missing together with everything else.
const REQUIRED: [(&[&str], &[&str]); 3] = [
    (
        &["spec"],
        &["executionEngine", "workflowRef", "targetResource"],
    ),
    (&["spec", "workflowRef"], &["workflowId", "version"]),
    (&["spec", "remediationRequestRef"], &["name"]),
];

/// The definition of `WorkflowExecution`.
pub fn workflow_execution() -> CustomResourceDefinition {
    let mut crd = WorkflowExecution::crd();
    for root in crd
        .spec
        .versions
        .iter_mut()
        .filter_map(|it| it.schema.as_mut()?.open_api_v3_schema.as_mut())
    {
        tidy(root);
        for (path, fields) in REQUIRED {
            require(root, path, fields);
        }
    }
    crd
}

fn require(schema: &mut JSONSchemaProps, path: &[&str], fields: &[&str]) {
    match path {
        [] => schema.required = Some(fields.iter().map(|&field| field.to_owned()).collect()),
        [first, rest @ ..] => {
            if let Some(child) = schema.properties.as_mut().and_then(|it| it.get_mut(*first)) {
                require(child, rest, fields);
            }
        }
    }
}

/// Takes out, at every depth, what `Option` and `#[serde(default)]` leave in a derived schema.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.default = None;
    // Doc comments are wrapped for the editor; kubectl wraps for the terminal.
    if let Some(description) = &mut schema.description {
        *description = description
            .replace("\n\n", "\0")
            .replace('\n', " ")
            .replace('\0', "\n\n");
    }
    if let Some(values) = &mut schema.enum_ {
        values.retain(|value| !value.0.is_null());
    }
    schema
        .properties
        .iter_mut()
        .flat_map(|it| it.values_mut())
        .for_each(tidy);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}
