//! One entry of the workflow catalog: what may run, with which parameters and dependencies.
//!
//! Read from the workflow schema, a YAML file in the directory catalog or the `content` of an
//! entry in Data Storage. Unknown keys are warnings, everything else that is wrong is an error
//! that names the place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::image::{IMAGE, ImageReference};
use crate::parameters::{DeclarationError, ParameterDeclaration, Parameters};
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
    #[error("execution.runAsUser: {found} must be 1 or larger: workflows do not run as root")]
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
        let (document, unknown) = document(yaml).map_err(|problem| fail(vec![problem]))?;
        let workflow = document.check().map_err(fail)?;
        let warnings = unknown
            .iter()
            .map(|path| format!("{file}: {path}: unknown key, ignored"))
            .collect();
        Ok(ReadWorkflow { workflow, warnings })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    metadata: Metadata,
    #[serde(default)]
    action_type: String,
    #[serde(default)]
    #[expect(dead_code, reason = "known, for the analysis' search only")]
    labels: BTreeMap<String, Value>,
    #[serde(default)]
    status: WorkflowStatus,
    execution: Execution,
    #[serde(default)]
    dependencies: DocumentDependencies,
    #[serde(default)]
    parameters: Vec<ParameterDeclaration>,
}

#[derive(Deserialize)]
struct Wrapped {
    #[serde(rename = "apiVersion")]
    #[expect(dead_code, reason = "known key")]
    api_version: String,
    #[expect(dead_code, reason = "known key")]
    kind: WrappedKind,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "the Kubernetes object's own; the workflow's is in spec"
    )]
    metadata: Value,
    spec: Document,
}

#[derive(Deserialize)]
enum WrappedKind {
    RemediationWorkflow,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    workflow_id: String,
    version: String,
    #[serde(default)]
    description: Description,
    #[serde(default)]
    #[expect(dead_code, reason = "known, for people")]
    maintainers: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Description {
    what: String,
    when_to_use: String,
    when_not_to_use: String,
    preconditions: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Execution {
    engine: String,
    bundle: String,
    #[serde(default)]
    resources: Option<Resources>,
    #[serde(default)]
    run_as_user: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DocumentDependencies {
    secrets: Vec<Named>,
    config_maps: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The document and the paths of the keys it does not know.
fn document(yaml: &str) -> Result<(Document, Vec<String>), Problem> {
    /// What tells a wrapped document from a plain one.
    #[derive(Deserialize)]
    struct Kind {
        kind: Option<String>,
    }
    let kind: Kind = parse(yaml)?.0;
    if kind.kind.is_some() {
        parse::<Wrapped>(yaml).map(|(wrapped, unknown)| (wrapped.spec, unknown))
    } else {
        parse::<Document>(yaml)
    }
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
    fn check(self) -> Result<Workflow, Vec<Problem>> {
        let mut problems = Vec::new();
        for (path, text) in [
            ("metadata.workflowId", &self.metadata.workflow_id),
            ("metadata.version", &self.metadata.version),
        ] {
            if text.is_empty() {
                problems.push(Problem::Empty {
                    path: path.to_owned(),
                });
            }
        }
        let engine = Engine::parse(&self.execution.engine);
        if engine.is_none() {
            problems.push(Problem::UnknownEngine {
                found: self.execution.engine,
            });
        }
        let bundle = ImageReference::parse(&self.execution.bundle);
        if bundle.is_none() {
            problems.push(Problem::Bundle {
                found: self.execution.bundle,
            });
        }
        if let Some(found) = self.execution.run_as_user.filter(|user| *user < 1) {
            problems.push(Problem::RunAsUser { found });
        }
        for (list, amounts) in self
            .execution
            .resources
            .iter()
            .flat_map(|it| [("requests", &it.requests), ("limits", &it.limits)])
        {
            problems.extend(
                amounts
                    .iter()
                    .filter(|(_, amount)| !QUANTITY.accepts(amount))
                    .map(|(name, amount)| Problem::Quantity {
                        path: format!("execution.resources.{list}.{name}"),
                        found: amount.clone(),
                    }),
            );
        }
        let secrets = names(
            "dependencies.secrets",
            self.dependencies.secrets,
            &mut problems,
        );
        let config_maps = names(
            "dependencies.configMaps",
            self.dependencies.config_maps,
            &mut problems,
        );
        let parameters = Parameters::compile(self.parameters).map_err(|errors| {
            problems.extend(
                errors
                    .into_iter()
                    .map(|(index, error)| Problem::Parameter { index, error }),
            );
        });
        match (engine, bundle, parameters) {
            (Some(engine), Some(bundle), Ok(parameters)) if problems.is_empty() => Ok(Workflow {
                workflow_id: self.metadata.workflow_id,
                version: self.metadata.version,
                description: self.metadata.description.what,
                action_type: self.action_type,
                status: self.status,
                engine,
                bundle,
                resources: self.execution.resources,
                run_as_user: self.execution.run_as_user,
                dependencies: Dependencies {
                    secrets,
                    config_maps,
                },
                parameters,
            }),
            _ => Err(problems),
        }
    }
}

fn names(list: &str, entries: Vec<Named>, problems: &mut Vec<Problem>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    for (index, Named { name }) in entries.iter().enumerate() {
        let path = format!("{list}[{index}].name");
        if name.is_empty() {
            problems.push(Problem::Empty { path });
        } else if !OBJECT_NAME.accepts(name) {
            problems.push(Problem::DependencyName {
                path,
                found: name.clone(),
            });
        } else if !seen.insert(name) {
            problems.push(Problem::DuplicateDependency {
                path,
                name: name.clone(),
            });
        }
    }
    entries.into_iter().map(|entry| entry.name).collect()
}

#[cfg(test)]
mod tests;
