//! The gate: turns bad WorkflowExecutions away before they are stored, and completes good ones.
//!
//! [`server`] speaks TLS with a [`certificate`] that may change at any time, [`review`] is the
//! envelope of a question and its answer, [`mutate`] and [`validate`] decide.

pub mod args;
pub mod certificate;
pub mod metrics;
pub mod mutate;
pub mod review;
pub mod routes;
pub mod run;
pub mod server;
pub mod validate;
