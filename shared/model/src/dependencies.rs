//! Dependencies of a workflow in the execution namespace, and the result of checking them.

use std::fmt;

use thiserror::Error;

use crate::workflow::Dependencies;

/// Label, with the value `true`, that a ServiceAccount must have to run workflows.
pub const RUNNER_LABEL: &str = "kubernaut.ai/workflow-runner";

/// Types of Secrets that no workflow gets: credentials of accounts and of nodes, and what Helm has
/// installed, with the Secrets in it.
pub const RESERVED_SECRET_TYPES: [&str; 3] = [
    "kubernetes.io/service-account-token",
    "bootstrap.kubernetes.io/token",
    "helm.sh/release.v1",
];

/// Kind of a dependency.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DependencyKind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

impl DependencyKind {
    /// The kind in the Kubernetes API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }
}

/// A Secret or ConfigMap that must exist and have data.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Dependency {
    /// Secret or ConfigMap.
    pub kind: DependencyKind,
    /// Name in the execution namespace.
    pub name: String,
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind.as_str(), self.name)
    }
}

/// Iterates over all dependencies, Secrets first.
pub fn each(dependencies: &Dependencies) -> impl Iterator<Item = Dependency> {
    fn of(kind: DependencyKind, names: &[String]) -> impl Iterator<Item = Dependency> {
        let dependency = move |name: &String| Dependency {
            kind,
            name: name.clone(),
        };
        names.iter().map(dependency)
    }
    let secrets = of(DependencyKind::Secret, &dependencies.secrets);
    secrets.chain(of(DependencyKind::ConfigMap, &dependencies.config_maps))
}

/// Why a dependency is not ready.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DependencyProblem {
    /// The object does not exist.
    #[error("required {dependency} not found in namespace {namespace}: create it")]
    Missing {
        /// The missing object.
        dependency: Dependency,
        /// The execution namespace.
        namespace: String,
    },
    /// The Secret has credentials of Kubernetes or of Helm, which no workflow gets.
    #[error(
        "required {dependency} in namespace {namespace} has the type {of_type}, which workflows do not get: use another Secret"
    )]
    Reserved {
        /// The Secret.
        dependency: Dependency,
        /// The execution namespace.
        namespace: String,
        /// Its type.
        of_type: String,
    },
    /// The object has no data.
    #[error("required {dependency} in namespace {namespace} has no data: add data to it")]
    Empty {
        /// The empty object.
        dependency: Dependency,
        /// The execution namespace.
        namespace: String,
    },
}

/// Whether a ServiceAccount may run workflows.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceAccountAnswer {
    /// The ServiceAccount has [`RUNNER_LABEL`].
    Allowed,
    /// The ServiceAccount does not have [`RUNNER_LABEL`].
    NotLabelled,
    /// The ServiceAccount does not exist.
    Missing,
}

impl ServiceAccountAnswer {
    /// Why `account` may not run workflows; `None` if it may.
    pub fn refusal(&self, account: &str, namespace: &str) -> Option<String> {
        match self {
            Self::Allowed => None,
            Self::NotLabelled => Some(format!(
                "ServiceAccount {account:?} in namespace {namespace} must have the label {RUNNER_LABEL}: \"true\": add it or use another ServiceAccount"
            )),
            Self::Missing => Some(format!(
                "ServiceAccount {account:?} not found in namespace {namespace}: create it with the label {RUNNER_LABEL}: \"true\""
            )),
        }
    }
}

/// All problems in one line.
pub fn not_ready(problems: &[DependencyProblem]) -> String {
    let messages: Vec<_> = problems.iter().map(ToString::to_string).collect();
    messages.join("; ")
}
