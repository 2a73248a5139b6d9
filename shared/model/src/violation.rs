//! Violations of the rules for a spec, and the CEL rules for those that the API server checks.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::ValidationRule;
use strum::IntoStaticStr;
use thiserror::Error;

use crate::duration::TIMEOUT;
use crate::engine::{Engine, ReferenceField};
use crate::parameters::{self, ParameterViolation};
use crate::pattern::OBJECT_NAME;
use crate::target::TARGET;
use crate::workflow::WorkflowStatus;

fn kind_advice(instead: Option<&str>) -> String {
    instead.map_or_else(
        || "use a kind that kubectl api-resources lists".to_owned(),
        |instead| format!("use {instead:?}"),
    )
}

/// Message for a change of the spec.
pub const IMMUTABLE: &str =
    "spec is immutable: delete this WorkflowExecution and create a new one instead";

/// CEL rule: `engine` requires the field with what it runs.
pub(crate) fn cel_needs(engine: Engine) -> ValidationRule {
    let field = engine.runs().name();
    ValidationRule {
        rule: format!("self.executionEngine != '{engine}' || has(self.workflowRef.{field})"),
        message: Some(needs(engine)),
        field_path: Some(format!(".workflowRef.{field}")),
        reason: Some("FieldValueRequired".to_owned()),
        ..ValidationRule::default()
    }
}

/// CEL rule: `engine` forbids `field`, which other engines run.
pub(crate) fn cel_forbids(engine: Engine, field: ReferenceField) -> ValidationRule {
    let name = field.name();
    ValidationRule {
        rule: format!("self.executionEngine != '{engine}' || !has(self.workflowRef.{name})"),
        message: Some(forbids(engine, field)),
        field_path: Some(format!(".workflowRef.{name}")),
        reason: Some("FieldValueForbidden".to_owned()),
        ..ValidationRule::default()
    }
}

/// CEL rule for [`ParameterViolation::Substitution`].
pub(crate) fn cel_no_substitution(engine: Engine) -> ValidationRule {
    ValidationRule {
        rule: format!(
            "self.executionEngine != '{engine}' || !has(self.parameters) || self.parameters.all(name, !self.parameters[name].contains('$('))"
        ),
        message: Some(format!("values {}", parameters::no_substitution(engine))),
        field_path: Some(".parameters".to_owned()),
        ..ValidationRule::default()
    }
}

/// CEL rules: the parameters of the target repeat `targetResource`. The `apiVersion` is not in it.
pub(crate) fn cel_target_parameters() -> [ValidationRule; 3] {
    let parts = "self.targetResource.split('/')";
    [
        ("NAME", format!("{parts}[{parts}.size() - 1] == given")),
        (
            "KIND",
            format!("{parts}[{parts}.size() - 2].lowerAscii() == given.lowerAscii()"),
        ),
        ("NAMESPACE", format!("{parts}.size() == 3 && {parts}[0] == given")),
    ]
    .map(|(part, same)| {
        let name = format!("TARGET_RESOURCE_{part}");
        let same = same.replace("given", &format!("self.parameters['{name}']"));
        ValidationRule {
            rule: format!("!has(self.parameters) || !('{name}' in self.parameters) || {parts}.size() > 1 && {same}"),
            message: Some(format!("{name} must be that of targetResource: remove it, the controller sets it")),
            field_path: Some(".parameters".to_owned()),
            ..ValidationRule::default()
        }
    })
}

fn needs(engine: Engine) -> String {
    let field = engine.runs();
    let allowed = field.format().allowed;
    format!(
        "executionEngine {engine} requires {}, which must be {allowed}",
        field.path()
    )
}

fn forbids(engine: Engine, field: ReferenceField) -> String {
    let (runs, path) = (engine.runs().path(), field.path());
    format!("executionEngine {engine} runs {runs}: remove {path}")
}

/// A violation of the rules for the spec of a WorkflowExecution. [`Violation::field`] is the path
/// of the field; the message has the rejected and the allowed values.
#[derive(Clone, Debug, Error, IntoStaticStr, PartialEq)]
pub enum Violation {
    /// A field has the wrong JSON type.
    #[error("{message}")]
    Malformed {
        /// Path in the spec.
        path: String,
        /// Expected and actual type.
        message: String,
    },
    /// `executionEngine` is missing.
    #[error(
        "required value: supported values are {} (there is no default)",
        Engine::supported()
    )]
    EngineMissing,
    /// `executionEngine` is not supported.
    #[error(
        "unsupported value {found:?}: supported values are {}",
        Engine::supported()
    )]
    EngineUnknown {
        /// The rejected value.
        found: String,
    },
    /// A required text is missing or empty.
    #[error("required value: must be {needs}")]
    Missing {
        /// Path in the spec.
        field: &'static str,
        /// The allowed values, as a continuation of "must be".
        needs: &'static str,
    },
    /// A text is too long.
    #[error("too long: must have at most {maximum} characters, has {length}")]
    TooLong {
        /// Path in the spec.
        field: &'static str,
        /// Length in characters.
        length: usize,
        /// Limit in characters.
        maximum: usize,
    },
    /// The field with what the engine runs is missing.
    #[error("{}", needs(*engine))]
    ReferenceMissing {
        /// The requested engine.
        engine: Engine,
    },
    /// A field is set that the engine does not run.
    #[error("{}", forbids(*engine, *field))]
    ReferenceForbidden {
        /// The requested engine.
        engine: Engine,
        /// The rejected field.
        field: ReferenceField,
    },
    /// An image or bundle has an invalid format.
    #[error("invalid value {found:?}: {}", field.format().message())]
    ReferenceInvalid {
        /// The field.
        field: ReferenceField,
        /// The rejected value.
        found: String,
    },
    /// `targetResource` has an invalid format.
    #[error("invalid value {found:?}: {}", TARGET.message())]
    TargetInvalid {
        /// The rejected value.
        found: String,
    },
    /// The cluster does not serve the kind of the target.
    #[error("invalid value {found:?}: kind {kind:?} not found in this cluster: {}", kind_advice(instead.as_deref()))]
    TargetKindUnknown {
        /// The rejected value.
        found: String,
        /// The kind in the rejected value.
        kind: String,
        /// The suggested value, if the kind is a plural or short name.
        instead: Option<String>,
    },
    /// The target has a namespaced kind and no namespace.
    #[error(
        "invalid value {found:?}: the kind is namespaced, so a namespace is required: use {instead:?}"
    )]
    TargetNamespaceMissing {
        /// The rejected value.
        found: String,
        /// The suggested value.
        instead: String,
    },
    /// The target has a cluster-scoped kind and a namespace.
    #[error(
        "invalid value {found:?}: the kind is cluster-scoped, so a namespace is forbidden: use {instead:?}"
    )]
    TargetNamespaceForbidden {
        /// The rejected value.
        found: String,
        /// The suggested value.
        instead: String,
    },
    /// Objects of the target's kind cannot be read.
    #[error(
        "invalid value {found:?}: a {kind} cannot be read, only created: use the kind of an object that exists"
    )]
    TargetKindUnreadable {
        /// The rejected value.
        found: String,
        /// The kind in the rejected value.
        kind: String,
    },
    /// Several API groups serve the kind of the target.
    #[error("invalid value {found:?}: several API groups serve kind {kind}: {}: execution.targetKinds of the workflow must name one, for example {kind}.{}", groups.join(", "), groups.last().map_or("", String::as_str))]
    TargetKindAmbiguous {
        /// The rejected value.
        found: String,
        /// The kind in the rejected value.
        kind: String,
        /// The groups.
        groups: Vec<String>,
    },
    /// The workflow is not for the kind of the target.
    #[error("invalid value {found:?}: the workflow is only for {}: use such a target, or another workflow", kinds.join(", "))]
    TargetKindNotAllowed {
        /// The rejected value.
        found: String,
        /// `execution.targetKinds` of the workflow.
        kinds: Vec<String>,
    },
    /// The RemediationRequest is in another namespace than the WorkflowExecution.
    #[error(
        "invalid value {found:?}: must be {namespace:?}, the namespace of the WorkflowExecution: remove it"
    )]
    RequestNamespace {
        /// The rejected value.
        found: String,
        /// Namespace of the WorkflowExecution.
        namespace: String,
    },
    /// There are more than [`parameters::MAX_COUNT`] parameters.
    #[error(
        "too many entries: must have at most {}, has {count}",
        parameters::MAX_COUNT
    )]
    ParametersTooMany {
        /// Number of parameters.
        count: usize,
    },
    /// The values together have more than [`parameters::MAX_TOTAL_LENGTH`] characters.
    #[error(
        "too long: all values together must have at most {} characters, have {length}",
        parameters::MAX_TOTAL_LENGTH
    )]
    ParametersTooLarge {
        /// Length in characters.
        length: usize,
    },
    /// One parameter is invalid.
    #[error("{0}")]
    Parameter(ParameterViolation),
    /// `timeout` is not a duration within the bounds.
    #[error("invalid value {found:?}: {}", TIMEOUT.message())]
    TimeoutInvalid {
        /// The rejected value.
        found: String,
    },
    /// `serviceAccountName` is not an object name.
    #[error("invalid value {found:?}: {}", OBJECT_NAME.message())]
    ServiceAccountInvalid {
        /// The rejected value.
        found: String,
    },
    /// The workflow runs as another ServiceAccount.
    #[error("invalid value {found:?}: the workflow runs as {catalog:?}: remove it")]
    ServiceAccountMismatch {
        /// The rejected value.
        found: String,
        /// The value in the catalog.
        catalog: String,
    },
    /// `whenBlocked` is not supported.
    #[error("unsupported value {found:?}: supported values are \"Skip\", \"Wait\"")]
    WhenBlockedUnknown {
        /// The rejected value.
        found: String,
    },
    /// `confidence` is out of range.
    #[error("invalid value {found}: must be a number from 0 to 1")]
    ConfidenceOutOfRange {
        /// The rejected value.
        found: f64,
    },
    /// The catalog does not have the workflow.
    #[error(
        "workflow {workflow_id:?} not found in the catalog: use the id of a registered workflow"
    )]
    WorkflowNotFound {
        /// The rejected id.
        workflow_id: String,
    },
    /// The catalog has the workflow, but its entry is invalid.
    #[error(
        "the entry of workflow {workflow_id:?} in the catalog is invalid: {why}: ask its maintainers to correct it"
    )]
    WorkflowInvalid {
        /// Id in the catalog.
        workflow_id: String,
        /// The problems of the entry.
        why: String,
    },
    /// The status of the workflow in the catalog does not allow it to run.
    #[error(
        "workflow {workflow_id:?} is {status} in the catalog: use a workflow that is active or deprecated"
    )]
    WorkflowNotActive {
        /// Id in the catalog.
        workflow_id: String,
        /// Status in the catalog.
        status: WorkflowStatus,
    },
    /// The version differs from the version in the catalog.
    #[error(
        "invalid value {found:?}: must be {catalog:?}, the version of the workflow in the catalog"
    )]
    VersionMismatch {
        /// The rejected value.
        found: String,
        /// The value in the catalog.
        catalog: String,
    },
    /// The engine differs from the engine in the catalog.
    #[error(
        "invalid value \"{found}\": must be \"{catalog}\", the engine of the workflow in the catalog"
    )]
    EngineMismatch {
        /// The rejected value.
        found: Engine,
        /// The value in the catalog.
        catalog: Engine,
    },
    /// The cluster does not serve the kind that the engine creates.
    #[error("executionEngine {engine} is not installed: the cluster does not serve {} of {}: install the engine", engine.runs_as().1, engine.runs_as().0)]
    EngineNotInstalled {
        /// The requested engine.
        engine: Engine,
    },
    /// The repository or the digest differs from those in the catalog.
    #[error(
        "invalid value {found:?}: repository and digest must be those in the catalog: use {catalog:?}"
    )]
    ImageMismatch {
        /// The field.
        field: ReferenceField,
        /// The rejected value.
        found: String,
        /// The value in the catalog, in the format of the field.
        catalog: String,
    },
}

impl Violation {
    /// Path of the field, in the format of kubectl.
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
            Self::Missing { field, .. } | Self::TooLong { field, .. } => field,
            Self::ReferenceMissing { engine } => engine.runs().path(),
            Self::ReferenceForbidden { field, .. }
            | Self::ReferenceInvalid { field, .. }
            | Self::ImageMismatch { field, .. } => field.path(),
            Self::TargetInvalid { .. }
            | Self::TargetKindUnknown { .. }
            | Self::TargetNamespaceMissing { .. }
            | Self::TargetNamespaceForbidden { .. }
            | Self::TargetKindUnreadable { .. }
            | Self::TargetKindAmbiguous { .. }
            | Self::TargetKindNotAllowed { .. } => "targetResource",
            Self::ParametersTooMany { .. } | Self::ParametersTooLarge { .. } => "parameters",
            Self::Parameter(violation) => return format!("spec.parameters[{}]", violation.name()),
            Self::TimeoutInvalid { .. } => "executionConfig.timeout",
            Self::ServiceAccountInvalid { .. } | Self::ServiceAccountMismatch { .. } => {
                "executionConfig.serviceAccountName"
            }
            Self::RequestNamespace { .. } => "remediationRequestRef.namespace",
            Self::WhenBlockedUnknown { .. } => "executionConfig.whenBlocked",
            Self::ConfidenceOutOfRange { .. } => "confidence",
            Self::WorkflowNotFound { .. }
            | Self::WorkflowInvalid { .. }
            | Self::WorkflowNotActive { .. } => "workflowRef.workflowId",
            Self::VersionMismatch { .. } => "workflowRef.version",
        };
        format!("spec.{path}")
    }

    /// Field and message in one line.
    pub fn sentence(&self) -> String {
        format!("{}: {self}", self.field())
    }
}
