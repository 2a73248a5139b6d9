//! Why a request is refused: one variant for each rule that is not the spec's own. A new rule is a
//! variant here (or in [`Violation`]), its check, and a row in a table test.

use axum::http::StatusCode;
use strum::IntoStaticStr;
use thiserror::Error;
use wfe_model::dependencies::DependencyProblem;
use wfe_model::rules::Violation;
use wfe_model::workflow_execution::{CLEAR_REASON, NOTHING_TO_CLEAR};

/// One thing that is wrong. Its text says what was found and what is allowed.
#[derive(Clone, Debug, Error, IntoStaticStr, PartialEq)]
pub enum Refusal {
    /// The spec breaks a rule.
    #[error("{0}")]
    Spec(Violation),
    /// Not even of the shape of a WorkflowExecution.
    #[error("{message}")]
    Malformed {
        /// Path in the object.
        field: String,
        /// What was expected and found.
        message: String,
    },
    /// The workflow cannot run without it.
    #[error("{0}")]
    Dependency(DependencyProblem),
    /// Not one that runs workflows.
    #[error("{0}")]
    ServiceAccountNotAllowed(String),
    /// Nobody would run it.
    #[error("no controller watches namespace {found:?}: use {}", one_of(watched))]
    NamespaceNotWatched {
        /// The request's.
        found: String,
        /// Where it would be run.
        watched: Vec<String>,
    },
    /// Nothing blocks.
    #[error("this one is {phase}: {NOTHING_TO_CLEAR}")]
    NothingToClear {
        /// Its phase.
        phase: String,
    },
    /// A reason too short or too long.
    #[error("{found:?} {CLEAR_REASON}")]
    ClearReason {
        /// As found.
        found: String,
    },
    /// Once cleared, cleared.
    #[error(
        "{by} cleared it at {at}: who cleared a block, when and why, is never changed or removed"
    )]
    AlreadyCleared {
        /// Who.
        by: String,
        /// When.
        at: String,
    },
    /// Written by a person.
    #[error(
        "is written by wfe-webhook, which says who asked: write status.blockClearanceRequest instead"
    )]
    ClearanceForged,
    /// It is not known.
    #[error("{why}")]
    Unavailable {
        /// What cannot be judged.
        field: &'static str,
        /// What could not be asked, and why.
        why: String,
    },
    /// Out of time.
    #[error("the review took longer than {milliseconds} ms: try again")]
    Timeout {
        /// The limit.
        milliseconds: u128,
    },
    /// A bug.
    #[error("the webhook failed on this request, see its log: {0}")]
    Panicked(String),
}

impl Refusal {
    /// The rule's name, for metrics.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Spec(violation) => violation.into(),
            other => other.into(),
        }
    }

    /// Where it is wrong, as kubectl prints paths.
    pub fn field(&self) -> String {
        let field = match self {
            Self::Spec(violation) => return violation.field(),
            Self::Malformed { field, .. } => field,
            Self::Dependency(_) => "spec.workflowRef.workflowId",
            Self::ServiceAccountNotAllowed(_) => "spec.executionConfig.serviceAccountName",
            Self::NamespaceNotWatched { .. } => "metadata.namespace",
            Self::NothingToClear { .. } => "status.blockClearanceRequest",
            Self::ClearReason { .. } => "status.blockClearanceRequest.clearReason",
            Self::AlreadyCleared { .. } | Self::ClearanceForged => "status.blockClearance",
            Self::Unavailable { field, .. } => field,
            Self::Timeout { .. } | Self::Panicked(_) => "metadata",
        };
        field.to_owned()
    }

    /// 422 for an invalid object, 403 for policy, else our own trouble.
    pub fn code(&self) -> StatusCode {
        match self {
            Self::Spec(_)
            | Self::Dependency(_)
            | Self::Malformed { .. }
            | Self::ClearReason { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::ServiceAccountNotAllowed(_)
            | Self::NamespaceNotWatched { .. }
            | Self::NothingToClear { .. }
            | Self::AlreadyCleared { .. }
            | Self::ClearanceForged => StatusCode::FORBIDDEN,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Panicked(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

fn one_of(names: &[String]) -> String {
    match names {
        [name] => name.clone(),
        names => format!("one of {}", names.join(", ")),
    }
}
