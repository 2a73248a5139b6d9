//! What other services are to us: the audit sinks behind their one trait, and the stand-in for Data
//! Storage as strict as the real one. Run by `make platform`; needs no cluster.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and so do its helpers"
)]

mod audit_sinks;
mod data_storage;
mod events;
