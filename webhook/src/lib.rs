//! The gate: turns bad WorkflowExecutions away before they are stored, and completes good ones.
//!
//! [`server`] speaks TLS with a [`certificate`] that may change at any time, [`routes`] takes the
//! [`review`] out of a request and answers it, [`mutate`], [`validate`] and [`clearance`] decide;
//! every reason to refuse is a [`refusal`].

pub mod args;
pub mod certificate;
pub mod clearance;
pub mod created;
pub mod lookups;
pub mod metrics;
pub mod mutate;
pub mod refusal;
pub mod review;
pub mod routes;
pub mod run;
pub mod scope;
pub mod server;
pub mod validate;
