//! A workflow as Data Storage keeps it: the YAML document that was registered, and what the service
//! says about it.

use serde::Deserialize;

use super::definition::{ReadWorkflow, WorkflowStatus};
use super::document;
use super::problem::{Problem, WorkflowError};
use crate::text::shortened;

/// An entry of Data Storage's catalog. Optional keys are absent, never null.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// UUID of the entry, the key of the catalog.
    pub workflow_id: String,
    /// Version of the workflow.
    pub version: String,
    /// The engine, which the service does not check.
    pub execution_engine: String,
    /// Image or bundle with its digest.
    pub execution_bundle: Option<String>,
    /// The digest, with or without `sha256:`.
    pub execution_bundle_digest: Option<String>,
    /// The YAML document.
    pub content: String,
    /// SHA-256 of `content`, as hex digits.
    pub content_hash: String,
    /// `active`, `deprecated`, `disabled` or `archived`.
    pub status: String,
}

impl Record {
    /// The entry without its document, which its hash stands for.
    #[must_use]
    pub fn without_content(&self) -> Self {
        let content = String::new();
        Self {
            content,
            ..self.clone()
        }
    }
}

/// Reads an entry. What the service says decides; parameters and dependencies are those of the
/// document, because the service's copy of them loses fractions and has no dependencies.
pub(super) fn read(record: &Record) -> Result<ReadWorkflow, WorkflowError> {
    let file = &record.workflow_id;
    let fail = |problems| WorkflowError {
        file: file.clone(),
        problems,
    };
    let read = document::read(&record.content);
    let (mut entry, unknown) = read.map_err(|problem| fail(vec![problem]))?;
    let mut problems = Vec::new();
    let execution = &mut entry.execution;
    let mut decide = |path, written: &mut String, catalog: &str| {
        if !written.is_empty() && *written != catalog {
            problems.push(Problem::Disagrees {
                path,
                written: shortened(written),
                catalog: shortened(catalog),
            });
        }
        catalog.clone_into(written);
    };
    decide(
        "execution.engine",
        &mut execution.engine,
        &record.execution_engine,
    );
    decide("version", &mut entry.version.1, &record.version);
    if let Some(bundle) = &record.execution_bundle {
        decide("execution.bundle", &mut execution.bundle, bundle);
        execution
            .bundle_digest
            .clone_from(&record.execution_bundle_digest);
    }
    entry.workflow_id = ("workflowId", record.workflow_id.clone());
    match record.status.parse::<WorkflowStatus>() {
        Ok(status) => entry.status = status,
        Err(_) => problems.push(Problem::Status {
            path: "status",
            found: shortened(&record.status),
        }),
    }
    match entry.check() {
        Ok(workflow) if problems.is_empty() => Ok(ReadWorkflow::new(file, workflow, &unknown)),
        Ok(_) => Err(fail(problems)),
        Err(others) => {
            problems.extend(others);
            Err(fail(problems))
        }
    }
}
