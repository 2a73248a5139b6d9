//! Access to the workflow catalog, the audit sinks, and the API server for discovery and the
//! dependencies of workflows.
//!
//! All lookups distinguish three results: found, not found, and unknown because the lookup failed.

pub mod audit;
pub mod catalog;
pub mod client;
pub mod data_storage;
pub mod dependencies;
pub mod discovery;
pub mod flags;
pub mod holmes;
mod response;
pub mod service;
pub mod token;
