//! The engine room: runs admitted WorkflowExecutions, one at a time per target.
//!
//! [`watches`] keeps caches of what the API server has, [`execution`] decides what to do next for
//! one WorkflowExecution and does it, [`executor`] knows how each engine runs a workflow, [`audit`]
//! reports what happened.

pub mod args;
pub mod audit;
pub mod crds;
pub mod execution;
pub mod executor;
pub mod metrics;
pub mod names;
pub mod release;
pub mod run;
pub mod sweep;
pub mod watches;
