//! The workflow catalog: which workflows exist, and what they are.

mod directory;

use std::sync::Arc;

use futures::future::BoxFuture;
use thiserror::Error;
use wfe_model::workflow::Workflow;

pub use self::directory::{DirectoryCatalog, DirectoryError};

/// The catalog could not be asked: nothing is known about the workflow.
#[derive(Clone, Debug, Error)]
#[error("{reason}")]
pub struct CatalogUnavailable {
    /// What failed.
    pub reason: String,
}

/// Where workflows are looked up.
pub trait Catalog: Send + Sync {
    /// The entry of `workflow_id`, or none when the catalog has none.
    fn lookup<'a>(
        &'a self,
        workflow_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Workflow>>, CatalogUnavailable>>;
}
