//! The interface of every catalog.

use std::sync::Arc;

use futures::future::BoxFuture;
use thiserror::Error;
use wfe_model::rules::Violation;
use wfe_model::text::shortened;
use wfe_model::workflow::{ReadWorkflow, Workflow};

/// Why a lookup has no workflow.
#[derive(Clone, Debug, Error)]
pub enum LookupError {
    /// The catalog does not have the workflow, or its entry is invalid.
    #[error("{0}")]
    Unusable(Violation),
    /// The lookup failed, so that it is unknown whether the catalog has the workflow.
    #[error("{0}")]
    Unavailable(String),
}

impl LookupError {
    /// The catalog does not have the workflow.
    pub(super) fn not_found(workflow_id: &str) -> Self {
        let workflow_id = shortened(workflow_id);
        Self::Unusable(Violation::WorkflowNotFound { workflow_id })
    }

    /// The catalog has the workflow, but it cannot be run.
    pub(super) fn invalid(workflow_id: &str, why: &str) -> Self {
        Self::Unusable(Violation::WorkflowInvalid {
            workflow_id: shortened(workflow_id),
            why: shortened(why),
        })
    }
}

/// Result of a lookup.
pub type Lookup = Result<Arc<Workflow>, LookupError>;

/// A source of workflows.
pub trait Catalog: Send + Sync {
    /// The workflow with the id `workflow_id`, whatever its status.
    ///
    /// The answer may be some seconds old. Another program may have a newer one.
    fn lookup<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup>;

    /// As [`lookup`](Self::lookup), with an answer that is not older than the call.
    fn lookup_now<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup>;
}

/// Receives the error of each entry that cannot be run, whenever they change.
pub type OnRejected = Box<dyn Fn(&[String]) + Send + Sync>;

/// The workflow, after its warnings were logged.
pub(super) fn logged(read: ReadWorkflow) -> Workflow {
    for warning in read.warnings {
        tracing::warn!("{warning}");
    }
    read.workflow
}
