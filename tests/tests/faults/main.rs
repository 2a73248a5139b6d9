//! What a lost request, a lost answer and a crash in each moment of a run leave behind: nothing.
//! Run by `make faults` on a control plane without nodes; pods and Job statuses are written by
//! hand, everything else is real.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and so do its helpers"
)]

mod audit_outage;
mod held_watches;
mod lost_requests;
mod older_schema;
mod scenario;
mod webhook_calls;
