//! One entry of the workflow catalog: what may run, with which parameters and dependencies.
//!
//! Read from the workflow schema, a YAML file in the directory catalog or the `content` of an
//! entry in Data Storage. Unknown keys are warnings, everything else that is wrong is an error
//! that names the place.

mod document;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use thiserror::Error;

use crate::image::{IMAGE, ImageReference};
use crate::parameters::declaration::DeclarationError;
use crate::parameters::declared::Parameters;
use crate::pattern::{OBJECT_NAME, pattern};

pattern!(
    /// An amount of a resource, as Kubernetes writes it.
    QUANTITY, 64,
    "^[0-9]+(\\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i|[eE][0-9]{1,2})?$",
    "an amount as 250m, 0.5 or 64Mi"
);

/// What runs a workflow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Engine {
    /// A Kubernetes Job.
    Job,
    /// A Tekton PipelineRun.
    Tekton,
}

impl Engine {
    /// Every engine, by its name in `spec.executionEngine`.
    pub const ALL: [Self; 2] = [Self::Job, Self::Tekton];

    /// Exactly one of the names; there is no default.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.as_str() == text)
    }

    /// API version and kind of what it makes of a workflow.
    pub fn runs_as(self) -> (&'static str, &'static str) {
        match self {
            Self::Job => ("batch/v1", "Job"),
            Self::Tekton => ("tekton.dev/v1", "PipelineRun"),
        }
    }

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Tekton => "tekton",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether an entry may be run.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum WorkflowStatus {
    /// Yes.
    #[default]
    Active,
    /// Yes, with a warning.
    Deprecated,
    /// No.
    Disabled,
    /// No.
    Archived,
}

impl WorkflowStatus {
    /// Whether an entry of this status may run.
    pub fn may_run(self) -> bool {
        matches!(self, Self::Active | Self::Deprecated)
    }
}

impl fmt::Display for WorkflowStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Deprecated => "deprecated",
            Self::Disabled => "disabled",
            Self::Archived => "archived",
        })
    }
}

/// What must exist, and not be empty, in the execution namespace before the workflow runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dependencies {
    /// Names of Secrets.
    pub secrets: Vec<String>,
    /// Names of ConfigMaps.
    pub config_maps: Vec<String>,
}

/// Requests and limits of the workflow's container, as Kubernetes writes them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default)]
    pub requests: BTreeMap<String, String>,
    /// What the kubelet enforces.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
}

/// A checked entry of the catalog.
#[derive(Clone, Debug)]
pub struct Workflow {
    /// Key in the catalog.
    pub workflow_id: String,
    /// Version.
    pub version: String,
    /// What it does, for people.
    pub description: String,
    /// Class of the action, as the analysis searches for it.
    pub action_type: String,
    /// Whether it may run.
    pub status: WorkflowStatus,
    /// What runs it.
    pub engine: Engine,
    /// What is run: the image (job) or the bundle (tekton), without `oci://`.
    pub bundle: ImageReference,
    /// Requests and limits; the controller's defaults where absent.
    pub resources: Option<Resources>,
    /// User id of the container; the controller's default where absent.
    pub run_as_user: Option<i64>,
    /// What must be there.
    pub dependencies: Dependencies,
    /// What it can be told.
    pub parameters: Parameters,
}

/// A workflow that was read, and what was noticed on the way.
#[derive(Clone, Debug)]
pub struct ReadWorkflow {
    /// The entry.
    pub workflow: Workflow,
    /// One sentence for each key that is not known.
    pub warnings: Vec<String>,
}

/// Why a workflow schema cannot be used: every problem, with its file.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{}", .problems.iter().map(|problem| format!("{file}: {problem}")).collect::<Vec<_>>().join("\n"))]
pub struct WorkflowError {
    /// The file, or whatever names the text.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong in a workflow schema.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Problem {
    /// No YAML, a missing key, or a value of the wrong type.
    #[error("{0}")]
    Unreadable(String),
    /// An empty text where one is needed.
    #[error("{path}: must not be empty")]
    Empty {
        /// Path in the document.
        path: String,
    },
    /// No engine of ours.
    #[error("execution.engine: {found:?} is no engine: use job or tekton")]
    UnknownEngine {
        /// As found.
        found: String,
    },
    /// No image reference with digest.
    #[error("execution.bundle: {found:?} must be {} (and no oci://)", IMAGE.allowed)]
    Bundle {
        /// As found.
        found: String,
    },
    /// Root, or no user id.
    #[error(
        "execution.runAsUser: {found} must be from 1 to 2147483647: workflows do not run as root"
    )]
    RunAsUser {
        /// As found.
        found: i64,
    },
    /// No amount.
    #[error("{path}: {found:?} must be {}", QUANTITY.allowed)]
    Quantity {
        /// Path in the document.
        path: String,
        /// As found.
        found: String,
    },
    /// No name of a Secret or ConfigMap.
    #[error("{path}: {found:?} must be {}", OBJECT_NAME.allowed)]
    DependencyName {
        /// Path in the document.
        path: String,
        /// As found.
        found: String,
    },
    /// Named twice.
    #[error("{path}: {name:?} is listed twice")]
    DuplicateDependency {
        /// Path in the document.
        path: String,
        /// As found.
        name: String,
    },
    /// In a parameter's declaration.
    #[error("parameters[{index}].{error}")]
    Parameter {
        /// Position in the list.
        index: usize,
        /// What is wrong.
        error: DeclarationError,
    },
}

impl Workflow {
    /// Reads a workflow schema, plain or wrapped in `kind: RemediationWorkflow`.
    ///
    /// `file` names the text in errors and warnings.
    pub fn read(file: &str, yaml: &str) -> Result<ReadWorkflow, WorkflowError> {
        let fail = |problems| WorkflowError {
            file: file.to_owned(),
            problems,
        };
        let (document, unknown) = document::read(yaml).map_err(|problem| fail(vec![problem]))?;
        let workflow = document.check().map_err(fail)?;
        let warnings = unknown
            .iter()
            .map(|path| format!("{file}: {path}: unknown key, ignored"))
            .collect();
        Ok(ReadWorkflow { workflow, warnings })
    }
}

#[cfg(test)]
mod tests;
