//! What can be wrong with a spec, and the same in CEL where the API server can see it.

use kube::core::{Reason, Rule};
use strum::IntoStaticStr;
use thiserror::Error;

use crate::duration::TIMEOUT;
use crate::image::{BUNDLE, IMAGE};
use crate::parameters::{self, ParameterViolation};
use crate::pattern::OBJECT_NAME;
use crate::target::TARGET;
use crate::workflow::{Engine, WorkflowStatus};

fn kind_advice(instead: Option<&str>) -> String {
    instead.map_or_else(
        || "use one of those that kubectl api-resources lists".to_owned(),
        |instead| format!("write {instead:?}"),
    )
}

/// CEL: `engine` runs what `field` names.
pub(crate) fn cel_needs(engine: &str, field: &str) -> Rule {
    Rule::new(format!(
        "self.executionEngine != '{engine}' || has(self.workflowRef.{field})"
    ))
    .message(&*needs(engine, field))
    .field_path(format!(".workflowRef.{field}"))
    .reason(Reason::FieldValueRequired)
}

/// CEL: `engine` does not run what `field` names.
pub(crate) fn cel_forbids(engine: &str, field: &str, instead: &str) -> Rule {
    Rule::new(format!(
        "self.executionEngine != '{engine}' || !has(self.workflowRef.{field})"
    ))
    .message(&*forbids(engine, field, instead))
    .field_path(format!(".workflowRef.{field}"))
    .reason(Reason::FieldValueForbidden)
}

/// CEL: [`ParameterViolation::Substitution`].
pub(crate) fn cel_no_substitution() -> Rule {
    Rule::new("self.executionEngine != 'tekton' || !has(self.parameters) || self.parameters.all(name, !self.parameters[name].contains('$('))")
        .message("a value must not contain \"$(\" for executionEngine tekton: Tekton would substitute it")
        .field_path(".parameters")
}

fn needs(engine: &str, field: &str) -> String {
    let allowed = if field == "bundleRef" {
        BUNDLE.allowed
    } else {
        IMAGE.allowed
    };
    format!("executionEngine {engine} needs workflowRef.{field}: {allowed}")
}

fn forbids(engine: &str, field: &str, instead: &str) -> String {
    format!("executionEngine {engine} runs workflowRef.{instead}: remove workflowRef.{field}")
}

/// What is wrong with a WorkflowExecution's spec. [`Violation::field`] says where; the text says
/// what was found and what is allowed.
#[derive(Clone, Debug, Error, IntoStaticStr, PartialEq)]
pub enum Violation {
    /// Not even of the shape of a spec.
    #[error("{message}")]
    Malformed {
        /// Path in the spec.
        path: String,
        /// What was expected and found.
        message: String,
    },
    /// No engine.
    #[error("is required: say job or tekton, there is no default")]
    EngineMissing,
    /// No engine of ours.
    #[error("{found:?} is no engine: use job or tekton")]
    EngineUnknown {
        /// As found.
        found: String,
    },
    /// An empty or missing text.
    #[error("is required: {needs}")]
    Missing {
        /// Path in the spec.
        field: &'static str,
        /// What to write.
        needs: &'static str,
    },
    /// A text over its limit.
    #[error("has {length} characters: at most {maximum} are allowed")]
    TooLong {
        /// Path in the spec.
        field: &'static str,
        /// In characters.
        length: usize,
        /// In characters.
        maximum: usize,
    },
    /// Job without image.
    #[error("{}", needs("job", "containerImage"))]
    ImageMissing,
    /// Tekton with image.
    #[error("{}", forbids("tekton", "containerImage", "bundleRef"))]
    ImageForbidden,
    /// No image reference with digest.
    #[error("{found:?} {}", IMAGE.message())]
    ImageInvalid {
        /// As found.
        found: String,
    },
    /// Tekton without bundle.
    #[error("{}", needs("tekton", "bundleRef"))]
    BundleMissing,
    /// Job with bundle.
    #[error("{}", forbids("job", "bundleRef", "containerImage"))]
    BundleForbidden,
    /// No bundle reference.
    #[error("{found:?} {}", BUNDLE.message())]
    BundleInvalid {
        /// As found.
        found: String,
    },
    /// No target.
    #[error("{found:?} {}", TARGET.message())]
    TargetInvalid {
        /// As found.
        found: String,
    },
    /// A kind that the cluster does not serve.
    #[error("{found:?}: {kind:?} is not the Kind of a resource of this cluster: {}", kind_advice(instead.as_deref()))]
    TargetKindUnknown {
        /// The target as found.
        found: String,
        /// Its kind.
        kind: String,
        /// How it would be right, where that can be told.
        instead: Option<String>,
    },
    /// A namespaced kind without a namespace.
    #[error("{found:?} is in a namespace, which must be said: write {instead:?}")]
    TargetNamespaceMissing {
        /// As found.
        found: String,
        /// How it would be right.
        instead: String,
    },
    /// A cluster-scoped kind with a namespace.
    #[error("{found:?} is of a kind that is in no namespace: write {instead:?}")]
    TargetNamespaceForbidden {
        /// As found.
        found: String,
        /// How it would be right.
        instead: String,
    },
    /// More than [`parameters::MAX_COUNT`].
    #[error("has {count} entries: at most {} are allowed", parameters::MAX_COUNT)]
    ParametersTooMany {
        /// How many.
        count: usize,
    },
    /// More than [`parameters::MAX_TOTAL_LENGTH`].
    #[error(
        "all values together have {length} characters: at most {} are allowed",
        parameters::MAX_TOTAL_LENGTH
    )]
    ParametersTooLarge {
        /// In characters.
        length: usize,
    },
    /// In one parameter.
    #[error("{0}")]
    Parameter(ParameterViolation),
    /// No timeout.
    #[error("{found:?} {}", TIMEOUT.message())]
    TimeoutInvalid {
        /// As found.
        found: String,
    },
    /// No object name.
    #[error("{found:?} {}", OBJECT_NAME.message())]
    ServiceAccountInvalid {
        /// As found.
        found: String,
    },
    /// Neither Skip nor Wait.
    #[error("{found:?} must be Skip or Wait")]
    WhenBlockedUnknown {
        /// As found.
        found: String,
    },
    /// Not within 0 and 1.
    #[error("{found} must be a number from 0 to 1")]
    ConfidenceOutOfRange {
        /// As found.
        found: f64,
    },
    /// The catalog has no such entry.
    #[error("{workflow_id:?} is not in the workflow catalog: use the id of a registered workflow")]
    WorkflowNotFound {
        /// As found.
        workflow_id: String,
    },
    /// The catalog's entry may not run.
    #[error(
        "the workflow {workflow_id:?} is {status} in the catalog: only active and deprecated workflows may run"
    )]
    WorkflowNotActive {
        /// Key in the catalog.
        workflow_id: String,
        /// The catalog's word.
        status: WorkflowStatus,
    },
    /// Another version than the catalog's.
    #[error("{found:?} is not the catalog's version of this workflow: use {catalog:?}")]
    VersionMismatch {
        /// As found.
        found: String,
        /// The catalog's.
        catalog: String,
    },
    /// Another engine than the catalog's.
    #[error("{found} is not the catalog's engine for this workflow: use {catalog}")]
    EngineMismatch {
        /// As found.
        found: Engine,
        /// The catalog's.
        catalog: Engine,
    },
    /// What would run it is not there.
    #[error("executionEngine {engine} cannot run: this cluster serves no {} of {}: install it", engine.runs_as().1, engine.runs_as().0)]
    EngineNotInstalled {
        /// As found.
        engine: Engine,
    },
    /// Another repository or digest than the catalog's.
    #[error("{found:?} is not what the catalog has for this workflow: use {catalog:?}")]
    ImageMismatch {
        /// Which of the two fields.
        field: &'static str,
        /// As found.
        found: String,
        /// The catalog's, spelled for that field.
        catalog: String,
    },
}

impl Violation {
    /// The field it is about, as kubectl prints paths.
    pub fn field(&self) -> String {
        let path = match self {
            Self::Malformed { path, .. } if path.is_empty() || path == "." => {
                return "spec".to_owned();
            }
            Self::Malformed { path, .. } => path,
            Self::EngineMissing
            | Self::EngineUnknown { .. }
            | Self::EngineMismatch { .. }
            | Self::EngineNotInstalled { .. } => "executionEngine",
            Self::Missing { field, .. }
            | Self::TooLong { field, .. }
            | Self::ImageMismatch { field, .. } => field,
            Self::ImageMissing | Self::ImageForbidden | Self::ImageInvalid { .. } => {
                "workflowRef.containerImage"
            }
            Self::BundleMissing | Self::BundleForbidden | Self::BundleInvalid { .. } => {
                "workflowRef.bundleRef"
            }
            Self::TargetInvalid { .. }
            | Self::TargetKindUnknown { .. }
            | Self::TargetNamespaceMissing { .. }
            | Self::TargetNamespaceForbidden { .. } => "targetResource",
            Self::ParametersTooMany { .. } | Self::ParametersTooLarge { .. } => "parameters",
            Self::Parameter(violation) => return format!("spec.parameters[{}]", violation.name()),
            Self::TimeoutInvalid { .. } => "executionConfig.timeout",
            Self::ServiceAccountInvalid { .. } => "executionConfig.serviceAccountName",
            Self::WhenBlockedUnknown { .. } => "executionConfig.whenBlocked",
            Self::ConfidenceOutOfRange { .. } => "confidence",
            Self::WorkflowNotFound { .. } | Self::WorkflowNotActive { .. } => {
                "workflowRef.workflowId"
            }
            Self::VersionMismatch { .. } => "workflowRef.version",
        };
        format!("spec.{path}")
    }

    /// Field and text in one line.
    pub fn sentence(&self) -> String {
        format!("{}: {self}", self.field())
    }
}
