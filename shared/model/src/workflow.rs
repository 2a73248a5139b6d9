//! A workflow of the catalog: image or bundle, parameters and dependencies.
//!
//! It is read from a YAML document (a file in the directory catalog, or the `content` of an entry
//! in Data Storage) or from a [RemediationWorkflow] object. Unknown keys are warnings; all other
//! problems are errors with their path.

mod document;
mod entry;
mod object;
mod record;

pub use self::object::{RemediationWorkflow, RemediationWorkflowSpec, RemediationWorkflowStatus};
pub use self::record::Record;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use itertools::Itertools;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Number, Value};
use strum::{Display, EnumString, VariantArray};
use thiserror::Error;

use crate::engine::Engine;
use crate::image::{IMAGE, ImageReference};
use crate::parameters::declaration::DeclarationError;
use crate::parameters::declared::Parameters;
use crate::parameters::no_substitution;
use crate::pattern::{OBJECT_NAME, pattern};

pattern!(
    /// A Kubernetes quantity.
    QUANTITY, 64,
    "^[0-9]+(\\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i|[eE][0-9]{1,2})?$",
    "a Kubernetes quantity, for example 250m, 0.5 or 64Mi"
);

pattern!(
    /// A kind that a workflow is for.
    TARGET_KIND, 317,
    "^[A-Z][A-Za-z0-9]{0,62}(\\.[a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$",
    "a kind, or a kind and its API group, for example Deployment or Deployment.apps"
);

/// A kind that a workflow is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TargetKind {
    /// Kind in manifests.
    pub kind: String,
    /// API group; absent: any.
    pub group: Option<String>,
}

impl TargetKind {
    /// Parses a text that [`TARGET_KIND`] accepts.
    pub fn parse(text: &str) -> Option<Self> {
        let text = Some(text).filter(|it| TARGET_KIND.accepts(it))?;
        let (kind, group) = text
            .split_once('.')
            .map_or((text, None), |(kind, group)| (kind, Some(group.to_owned())));
        Some(Self {
            kind: kind.to_owned(),
            group,
        })
    }
}

/// Formats the kind as it was written.
impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        self.group.iter().try_for_each(|it| write!(f, ".{it}"))
    }
}

/// Status of a workflow in the catalog.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Display, EnumString, Eq, PartialEq, VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub enum WorkflowStatus {
    /// The workflow may run.
    #[default]
    Active,
    /// The workflow may run, with an admission warning.
    Deprecated,
    /// The workflow must not run.
    Disabled,
    /// The workflow must not run.
    Archived,
    /// Not registered yet; the workflow must not run.
    Pending,
    /// Registration was refused; the workflow must not run.
    Invalid,
    /// Another version has replaced it; the workflow must not run.
    Superseded,
}

impl WorkflowStatus {
    /// The supported values, for messages.
    fn supported() -> String {
        let all = Self::VARIANTS.iter().map(|it| format!("\"{it}\""));
        all.collect::<Vec<_>>().join(", ")
    }

    /// Whether a workflow of this status may run.
    pub fn may_run(self) -> bool {
        matches!(self, Self::Active | Self::Deprecated)
    }
}

/// Most Secrets and ConfigMaps of a workflow: each is read for each request.
pub const MAX_DEPENDENCIES: usize = 32;

/// Objects that must exist and have data in the execution namespace before the workflow runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dependencies {
    /// Names of Secrets.
    pub secrets: Vec<String>,
    /// Names of ConfigMaps.
    pub config_maps: Vec<String>,
}

/// Resource requests and limits of the container of a workflow.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Resources {
    /// Requests, by resource name, for example `cpu: 50m`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "amounts"
    )]
    #[schemars(with = "BTreeMap<String, Amount>")]
    pub requests: BTreeMap<String, String>,
    /// Limits, by resource name, for example `memory: 128Mi`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "amounts"
    )]
    #[schemars(with = "BTreeMap<String, Amount>")]
    pub limits: BTreeMap<String, String>,
}

/// A quantity may be written as a number, as everywhere in Kubernetes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(Number),
    Text(String),
}

impl JsonSchema for Amount {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

fn amounts<'de, D: Deserializer<'de>>(amounts: D) -> Result<BTreeMap<String, String>, D::Error> {
    let amounts = BTreeMap::<String, Amount>::deserialize(amounts)?;
    let text = |(name, amount)| match amount {
        Amount::Number(number) => (name, number.to_string()),
        Amount::Text(text) => (name, text),
    };
    Ok(amounts.into_iter().map(text).collect())
}

/// A validated workflow of the catalog.
#[derive(Clone, Debug)]
pub struct Workflow {
    /// Id in the catalog.
    pub workflow_id: String,
    /// Version of the workflow.
    pub version: String,
    /// What the workflow does. Informational.
    pub description: String,
    /// Type of the action, by which the analysis searches for workflows.
    pub action_type: String,
    /// Status in the catalog.
    pub status: WorkflowStatus,
    /// Engine that runs the workflow.
    pub engine: Engine,
    /// Image or bundle to run, without a scheme.
    pub bundle: ImageReference,
    /// Requests and limits; the controller's defaults if absent.
    pub resources: Option<Resources>,
    /// User id of the container; the controller's default if absent.
    pub run_as_user: Option<i64>,
    /// ServiceAccount that it runs as; absent: that of the request.
    pub service_account: Option<String>,
    /// Kinds of its targets; empty: every kind.
    pub target_kinds: Vec<TargetKind>,
    /// Required Secrets and ConfigMaps.
    pub dependencies: Dependencies,
    /// Declared parameters.
    pub parameters: Parameters,
}

/// A workflow and the warnings from reading it.
#[derive(Clone, Debug)]
pub struct ReadWorkflow {
    /// The workflow.
    pub workflow: Workflow,
    /// One message for each key that has no effect.
    pub warnings: Vec<String>,
}

impl ReadWorkflow {
    /// `unknown`: the paths of unknown keys in the document `file`.
    fn new(file: &str, workflow: Workflow, unknown: &[String]) -> Self {
        let warnings = unknown.iter().map(|path| {
            format!("{file}: {path}: unknown key is ignored: remove it or correct its name")
        });
        let engine = workflow.engine;
        let ignored = workflow.resources.is_some() && !engine.takes_resources();
        let ignored = ignored.then(|| {
            format!("{file}: execution.resources: ignored for engine {engine}: set the resources of its steps")
        });
        let warnings = warnings.chain(ignored).collect();
        Self { workflow, warnings }
    }
}

/// All problems of an invalid workflow document.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{}", .problems.iter().map(|problem| format!("{file}: {problem}")).collect::<Vec<_>>().join("\n"))]
pub struct WorkflowError {
    /// Name of the file, or another name for the document.
    pub file: String,
    /// The problems, at least one.
    pub problems: Vec<Problem>,
}

/// A problem in a workflow document.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Problem {
    /// The document is not YAML, lacks a key or has a value of the wrong type.
    #[error("{0}")]
    Unreadable(String),
    /// A required text is empty.
    #[error("{path}: must not be empty")]
    Empty {
        /// Path in the document.
        path: String,
    },
    /// A text is longer than a WorkflowExecution can name it.
    #[error("{path}: must have at most {most} characters")]
    TooLong {
        /// Path in the document.
        path: String,
        /// The limit.
        most: usize,
    },
    /// The engine is missing.
    #[error(
        "execution.engine: required value: supported values are {} (there is no default)",
        Engine::supported()
    )]
    EngineMissing,
    /// The engine is not supported.
    #[error(
        "execution.engine: unsupported value {found:?}: supported values are {}",
        Engine::supported()
    )]
    UnknownEngine {
        /// The rejected value.
        found: String,
    },
    /// The bundle is not an image reference with a digest.
    #[error("execution.bundle: invalid value {found:?}: must be {}, without oci://", IMAGE.allowed)]
    Bundle {
        /// The rejected value.
        found: String,
    },
    /// The digest differs from that in the bundle.
    #[error(
        "execution.bundleDigest: invalid value {found:?}: must be the digest in execution.bundle, {bundle:?}: remove one of them"
    )]
    BundleDigest {
        /// The rejected value.
        found: String,
        /// The bundle.
        bundle: String,
    },
    /// The document says something else than the catalog that keeps it.
    #[error(
        "{path}: {written:?} in the document, {catalog:?} in the catalog: register the workflow again"
    )]
    Disagrees {
        /// Path in the document.
        path: &'static str,
        /// Value in the document.
        written: String,
        /// Value in the catalog.
        catalog: String,
    },
    /// The status is not one of a catalog.
    #[error(
        "{path}: unsupported value {found:?}: supported values are {}",
        WorkflowStatus::supported()
    )]
    Status {
        /// Path in the entry.
        path: &'static str,
        /// The rejected value.
        found: String,
    },
    /// The user id is that of root or out of range.
    #[error(
        "execution.runAsUser: invalid value {found}: must be from 1 to 2147483647, workflows must not run as root"
    )]
    RunAsUser {
        /// The rejected value.
        found: i64,
    },
    /// The ServiceAccount is not an object name.
    #[error("execution.serviceAccountName: invalid value {found:?}: must be {}", OBJECT_NAME.allowed)]
    ServiceAccount {
        /// The rejected value.
        found: String,
    },
    /// A target kind is not a kind.
    #[error("execution.targetKinds[{index}]: invalid value {found:?}: must be {}", TARGET_KIND.allowed)]
    TargetKind {
        /// Position in the list.
        index: usize,
        /// The rejected value.
        found: String,
    },
    /// A request or limit is not a quantity.
    #[error("{path}: invalid value {found:?}: must be {}", QUANTITY.allowed)]
    Quantity {
        /// Path in the document.
        path: String,
        /// The rejected value.
        found: String,
    },
    /// The name of a Secret or ConfigMap is not an object name.
    #[error("{path}: invalid value {found:?}: must be {}", OBJECT_NAME.allowed)]
    DependencyName {
        /// Path in the document.
        path: String,
        /// The rejected value.
        found: String,
    },
    /// There are more dependencies than a workflow may have.
    #[error("dependencies: {count} Secrets and ConfigMaps: must be at most {MAX_DEPENDENCIES}")]
    TooManyDependencies {
        /// Their number.
        count: usize,
    },
    /// A Secret or ConfigMap is listed twice.
    #[error("{path}: duplicate value {name:?}: list it once")]
    DuplicateDependency {
        /// Path in the document.
        path: String,
        /// The duplicate name.
        name: String,
    },
    /// The default of a parameter contains a variable that the engine would substitute.
    #[error("parameters[{name}].default: {}", no_substitution(*engine))]
    DefaultSubstituted {
        /// Name of the parameter.
        name: String,
        /// The workflow's engine.
        engine: Engine,
    },
    /// The declaration of a parameter is invalid.
    #[error("parameters[{index}].{error}")]
    Parameter {
        /// Position in the list.
        index: usize,
        /// The error in the declaration.
        error: DeclarationError,
    },
}

impl Problem {
    /// Path of the problem in the document, empty if the document cannot be read; and what is wrong
    /// there.
    pub fn path_and_message(&self) -> (String, String) {
        let text = self.to_string();
        match text.split_once(": ") {
            Some((path, message)) if !matches!(self, Self::Unreadable(_)) => {
                (path.to_owned(), message.to_owned())
            }
            _ => (String::new(), text),
        }
    }
}

impl WorkflowError {
    /// The problems in one line, without the name of the file.
    pub fn reasons(&self) -> String {
        self.problems.iter().map(ToString::to_string).join("; ")
    }
}

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
