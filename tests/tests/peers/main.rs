//! Tests of the clients of other services: every audit sink, and the fake Data Storage they are
//! tested with. Run by `make platform`; needs no cluster.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and so do its helpers"
)]

mod audit_sinks;
mod catalogs;
mod data_storage;
mod events;
mod holmes;
