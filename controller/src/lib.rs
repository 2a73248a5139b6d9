//! Controller of WorkflowExecutions: runs their workflows, one execution at a time per target.
//!
//! [`watches`] fills caches from the API server, [`reconcile`] carries out the steps that
//! `wfe_core` decides for one WorkflowExecution, [`executor`] creates and reads the executions of
//! each engine, [`audit`] delivers the audit events, [`sweep`] garbage-collects orphaned executions
//! and locks.

pub mod args;
pub mod audit;
mod base;
mod certificates;
pub mod clear_target;
pub mod connection;
pub mod crds;
mod duties;
pub mod election;
pub mod executor;
mod leases;
pub mod metrics;
mod platform;
pub mod reconcile;
pub mod recorder;
pub mod release;
pub mod run;
mod slots;
pub mod sweep;
pub mod view;
mod vitals;
pub mod watches;
pub mod why;
