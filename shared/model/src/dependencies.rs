//! What a workflow depends on in the execution namespace, and what is found there.

use std::fmt;

use thiserror::Error;

use crate::workflow::Dependencies;

/// The label a ServiceAccount must carry to run workflows, with the value `true`.
pub const RUNNER_LABEL: &str = "kubernaut.ai/workflow-runner";

/// What a workflow can depend on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DependencyKind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

/// One thing that must be there, and not be empty.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Dependency {
    /// What it is.
    pub kind: DependencyKind,
    /// Its name in the execution namespace.
    pub name: String,
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.kind, self.name)
    }
}

/// One by one, Secrets first.
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

/// A dependency that is not as it must be.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DependencyProblem {
    /// Not there.
    #[error(
        "the workflow needs the {dependency}, which does not exist in namespace {namespace}: create it"
    )]
    Missing {
        /// What was looked for.
        dependency: Dependency,
        /// Where.
        namespace: String,
    },
    /// There, with nothing in it.
    #[error(
        "the workflow needs the {dependency}, which has no data in namespace {namespace}: fill it"
    )]
    Empty {
        /// What is empty.
        dependency: Dependency,
        /// Where it is.
        namespace: String,
    },
}

/// Whether a ServiceAccount may run workflows.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceAccountAnswer {
    /// It carries the label.
    Allowed,
    /// It does not.
    NotLabelled,
    /// It does not exist.
    Missing,
}

impl ServiceAccountAnswer {
    /// Why `account` may not run workflows; none where it may.
    pub fn refusal(&self, account: &str, namespace: &str) -> Option<String> {
        let problem = match self {
            Self::Allowed => return None,
            Self::NotLabelled => "is not meant for workflows",
            Self::Missing => "does not exist",
        };
        Some(format!(
            "the ServiceAccount {account:?} in namespace {namespace} {problem}: use one with the label {RUNNER_LABEL}: \"true\""
        ))
    }
}

/// What keeps a workflow from running, in one line.
pub fn not_ready(problems: &[DependencyProblem]) -> String {
    let sentences: Vec<_> = problems.iter().map(ToString::to_string).collect();
    sentences.join("; ")
}
