//! Tests of engine `tekton` on a real cluster with Tekton Pipelines, run by `make test-tekton`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests are long scenarios; tests and their helpers fail by panicking"
)]

mod executor_contract;
mod fault_crash;
mod lock_both_engines;
mod permissions;
mod pipeline_cancel;
mod pipeline_failures;
mod pipeline_lifecycle;
mod setup;
