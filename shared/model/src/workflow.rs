//! A workflow of the catalog: image or bundle, parameters and dependencies.
//!
//! It is read from a YAML document (a file in the directory catalog, or the `content` of an entry
//! in Data Storage) or from a [RemediationWorkflow] object. Unknown keys are warnings; all other
//! problems are errors with their path.

mod definition;
mod document;
mod entry;
mod object;
mod problem;
mod record;

use serde_json::Value;

pub use self::definition::{
    Dependencies, MAX_DEPENDENCIES, QUANTITY, ReadWorkflow, Resources, TARGET_KIND, TargetKind,
    Workflow, WorkflowStatus,
};
pub use self::object::{RemediationWorkflow, RemediationWorkflowSpec, RemediationWorkflowStatus};
pub use self::problem::{Problem, WorkflowError};
pub use self::record::Record;

impl Workflow {
    /// Reads a workflow document, plain or as `spec` of a RemediationWorkflow.
    ///
    /// `file` is the name of the document in errors and warnings.
    pub fn read(file: &str, yaml: &str) -> Result<ReadWorkflow, WorkflowError> {
        let fail = |problems| WorkflowError {
            file: file.to_owned(),
            problems,
        };
        let (entry, unknown) = document::read(yaml).map_err(|problem| fail(vec![problem]))?;
        let workflow = entry.check().map_err(fail)?;
        Ok(ReadWorkflow::new(file, workflow, &unknown))
    }

    /// Reads the RemediationWorkflow object `name`.
    pub fn read_object(
        name: &str,
        spec: &Value,
        status: &Value,
    ) -> Result<ReadWorkflow, WorkflowError> {
        object::read(name, spec, status)
    }

    /// Reads an entry of Data Storage's catalog, whose hash the caller has checked.
    pub fn read_record(record: &Record) -> Result<ReadWorkflow, WorkflowError> {
        record::read(record)
    }
}

#[cfg(test)]
mod tests;
