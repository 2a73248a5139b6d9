//! Fault tests: lost, delayed or rejected requests, controller crashes at each request, stale
//! watches and audit outages must not change the outcome of an execution. Run by `make faults` on a
//! control plane without nodes; a fake node writes pods and Job statuses, everything else is real.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and so do its helpers"
)]

mod api_server_killed;
mod audit_outage;
mod bad_weather;
mod held_watches;
mod leader_election;
mod limits;
mod line_on_one_target;
mod lost_requests;
mod older_schema;
mod orchestration;
mod scenario;
mod tekton_optional;
mod webhook_calls;
