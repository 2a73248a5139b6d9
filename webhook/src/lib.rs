//! Admission webhook: validates WorkflowExecutions and completes them before they are stored.
//!
//! The server of `wfe_process` accepts TLS connections with a reloadable [`certificate`], of known
//! [`clients`]. [`routes`] reads the
//! [`review`] from the request body and writes the response. [`mutate`], [`validate`] and
//! [`clearance`] decide, [`cancellation`] stamps, [`deletion`] warns; every reason for a denial is a variant of [`refusal::Refusal`].

pub mod args;
pub mod cancellation;
pub mod certificate;
pub mod clearance;
pub mod clients;
pub mod created;
pub mod deletion;
pub mod lookups;
pub mod metrics;
pub mod mutate;
pub mod refusal;
pub mod review;
pub mod routes;
pub mod run;
pub mod scope;
pub mod targets;
pub mod validate;
pub mod workflow;
