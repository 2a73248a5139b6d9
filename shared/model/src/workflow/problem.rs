//! Why a workflow cannot be run.

use itertools::Itertools;
use thiserror::Error;

use super::definition::{MAX_DEPENDENCIES, QUANTITY, TARGET_KIND, WorkflowStatus};
use crate::duration::TIMEOUT;
use crate::engine::Engine;
use crate::image::IMAGE;
use crate::parameters::declaration::DeclarationError;
use crate::parameters::no_substitution;
use crate::pattern::OBJECT_NAME;

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
    /// The longest time of an execution is not a timeout.
    #[error("execution.maxTimeout: invalid value {found:?}: must be {}", TIMEOUT.allowed)]
    MaxTimeout {
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
