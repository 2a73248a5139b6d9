//! Controller of WorkflowExecutions: runs their workflows, one execution at a time per target.
//!
//! [`watches`] fills caches from the API server, [`reconcile`] carries out the steps that
//! `wfe_core` decides for one WorkflowExecution, [`executor`] creates and reads the executions of
//! each engine, [`audit`] delivers the audit events, [`sweep`] garbage-collects orphaned executions
//! and locks.

pub mod args;
pub mod audit;
pub mod clear_target;
mod connection;
pub mod crds;
pub mod election;
pub mod executor;
mod leases;
pub mod metrics;
pub mod reconcile;
pub mod release;
pub mod run;
pub mod sweep;
pub mod view;
pub mod watches;
pub mod why;
