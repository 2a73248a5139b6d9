//! The world outside: the workflow catalog, what workflows depend on, the audit sink.
//!
//! Each is a small interface with the answers that callers must tell apart: there, not there, and
//! not known.

pub mod audit;
pub mod catalog;
pub mod client;
pub mod dependencies;
pub mod discovery;
