//! Reasons for a denial. A new rule of the spec is a variant of [`Violation`]; any other new rule
//! is a variant of [`Refusal`]. Both need a check and a row in a table test.

use axum::http::StatusCode;
use strum::IntoStaticStr;
use thiserror::Error;
use wfe_model::dependencies::DependencyProblem;
use wfe_model::rules::Violation;
use wfe_model::workflow::Problem;
use wfe_model::workflow_execution::{CLEAR_REASON, CLEARANCE_IMMUTABLE, NOTHING_TO_CLEAR};

/// A reason why a review is denied. The text says what was found, what is allowed, and what to do;
/// the variant's name is the metric label `reason`.
#[derive(Clone, Debug, Error, IntoStaticStr, PartialEq)]
pub enum Refusal {
    /// The spec breaks a static rule or a rule of its catalog entry.
    #[error("{0}")]
    Spec(Violation),
    /// A field does not have the type that the API gives it.
    #[error("{message}")]
    Malformed {
        /// Path of the field.
        field: String,
        /// The expected and the found type.
        message: String,
    },
    /// A Secret or ConfigMap that the workflow needs is missing or has no data.
    #[error("{0}")]
    Dependency(DependencyProblem),
    /// The ServiceAccount is missing or lacks the label of workflow runners.
    #[error("{0}")]
    ServiceAccountNotAllowed(String),
    /// An entry of the catalog is invalid.
    #[error("{}", .0.path_and_message().1)]
    Workflow(Problem),
    /// The spec of a catalog entry is changed, but its version is not.
    #[error("the spec was changed, but the version is still {version:?}: change it, too")]
    VersionUnchanged {
        /// The version.
        version: String,
    },
    /// No controller watches the namespace.
    #[error(
        "unsupported value {found:?}: no controller watches this namespace; supported values are {}",
        quoted(watched)
    )]
    NamespaceNotWatched {
        /// Namespace of the request.
        found: String,
        /// The watched namespaces.
        watched: Vec<String>,
    },
    /// A clearance is requested for a WorkflowExecution that is not Failed.
    #[error("status.phase is {phase}: {NOTHING_TO_CLEAR}")]
    NothingToClear {
        /// The stored phase, or `unset`.
        phase: String,
    },
    /// `clearReason` is too short or too long.
    #[error("invalid value {found:?}: {CLEAR_REASON}")]
    ClearReason {
        /// The trimmed `clearReason`.
        found: String,
    },
    /// The stored `blockClearance` would be changed or removed.
    #[error(
        "{by} cleared this block at {at}: {CLEARANCE_IMMUTABLE}: leave status.blockClearance unchanged"
    )]
    AlreadyCleared {
        /// `clearedBy`.
        by: String,
        /// `clearedAt`.
        at: String,
    },
    /// The request contains a `blockClearance` that this webhook has not added.
    #[error(
        "must be set by wfe-webhook, which records the authenticated user: set status.blockClearanceRequest instead"
    )]
    ClearanceForged,
    /// A cancellation without a reason.
    #[error("must not be empty: say why, or false to withdraw the cancellation")]
    CancelReason,
    /// `requestedBy` is not the requesting user.
    #[error("must be the requesting user {user:?}: remove it, wfe-webhook sets it")]
    RequesterForged {
        /// Name of the user.
        user: String,
    },
    /// A check failed because the catalog or the API server is unavailable.
    #[error("{why}")]
    Unavailable {
        /// Path of the field that was not checked.
        field: String,
        /// The check that failed, and the cause.
        why: String,
    },
    /// The review exceeded its deadline.
    #[error("the review took longer than {milliseconds} ms: try again")]
    Timeout {
        /// The deadline.
        milliseconds: u128,
    },
    /// A handler panicked, with this message.
    #[error("internal error: {0}: see the log of wfe-webhook")]
    Panicked(String),
}

impl Refusal {
    /// The name of the broken rule, for logs and the metric label `reason`.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Spec(violation) => violation.into(),
            other => other.into(),
        }
    }

    /// Path of the field, in the notation of the API server.
    pub fn field(&self) -> String {
        let field = match self {
            Self::Spec(violation) => return violation.field(),
            Self::Malformed { field, .. } | Self::Unavailable { field, .. } => field,
            Self::Dependency(_) => "spec.workflowRef.workflowId",
            Self::ServiceAccountNotAllowed(_) => "spec.executionConfig.serviceAccountName",
            Self::Workflow(problem) => match problem.path_and_message().0.as_str() {
                "" => "spec",
                path if path.starts_with("metadata.") => return path.to_owned(),
                path => return format!("spec.{path}"),
            },
            Self::VersionUnchanged { .. } => "spec.version",
            Self::NamespaceNotWatched { .. } => "metadata.namespace",
            Self::NothingToClear { .. } => "status.blockClearanceRequest",
            Self::ClearReason { .. } => "status.blockClearanceRequest.clearReason",
            Self::AlreadyCleared { .. } | Self::ClearanceForged => "status.blockClearance",
            Self::CancelReason => "metadata.annotations[kubernaut.ai/cancel]",
            Self::RequesterForged { .. } => "spec.requestedBy",
            Self::Timeout { .. } | Self::Panicked(_) => "metadata",
        };
        field.to_owned()
    }

    /// HTTP status code: 422 for an invalid object, 403 for policy, 5xx if the review failed.
    pub fn code(&self) -> StatusCode {
        match self {
            Self::Spec(_)
            | Self::Dependency(_)
            | Self::Workflow(_)
            | Self::VersionUnchanged { .. }
            | Self::Malformed { .. }
            | Self::ClearReason { .. }
            | Self::CancelReason => StatusCode::UNPROCESSABLE_ENTITY,
            Self::ServiceAccountNotAllowed(_)
            | Self::NamespaceNotWatched { .. }
            | Self::NothingToClear { .. }
            | Self::AlreadyCleared { .. }
            | Self::ClearanceForged
            | Self::RequesterForged { .. } => StatusCode::FORBIDDEN,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Panicked(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

fn quoted(values: &[String]) -> String {
    let quoted: Vec<_> = values.iter().map(|value| format!("{value:?}")).collect();
    quoted.join(", ")
}
