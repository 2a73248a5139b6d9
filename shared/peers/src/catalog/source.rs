//! The interface of every catalog.

use std::sync::Arc;

use futures::future::BoxFuture;
use thiserror::Error;
use wfe_model::workflow::Workflow;

/// The lookup failed, so that it is unknown whether the catalog has the workflow.
#[derive(Clone, Debug, Error)]
#[error("{reason}")]
pub struct CatalogUnavailable {
    /// Why the lookup failed.
    pub reason: String,
}

/// A source of workflows.
pub trait Catalog: Send + Sync {
    /// The workflow with the id `workflow_id`; `None` if the catalog does not have it.
    fn lookup<'a>(
        &'a self,
        workflow_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Workflow>>, CatalogUnavailable>>;
}
