//! The engine room: runs admitted WorkflowExecutions, one at a time per target.
//!
//! [`watches`] keeps caches of what the API server has, [`reconcile`] takes one WorkflowExecution step
//! by step as `wfe_core` decides, [`executor`] knows how each engine runs a workflow, [`audit`] reports
//! what happened.

pub mod args;
pub mod audit;
pub mod crds;
pub mod executor;
pub mod metrics;
pub mod reconcile;
pub mod release;
pub mod run;
pub mod sweep;
pub mod view;
pub mod watches;
