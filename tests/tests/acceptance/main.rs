//! Tests on a real cluster, run by `make acceptance`. The prefix of a file's name is its layer.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests are long scenarios; tests and their helpers fail by panicking"
)]

mod admission_clearance;
mod admission_denials;
mod admission_images;
mod admission_kubectl;
mod admission_policies;
mod admission_verdicts;
mod analysis;
mod audit_trail;
mod catalog_objects;
mod catalog_outage;
mod catalog_sources;
mod cluster_access;
mod cluster_node;
mod deletion_states;
mod fault_restart;
mod forged_executions;
mod history_rules;
mod job_facts;
mod job_failures;
mod job_interrupted;
mod job_lifecycle;
mod lock_one_per_target;
mod lock_two_controllers;
mod lock_until_pods_end;
mod orchestration;
mod schema_agreement;
mod schema_cases;
mod schema_users_view;
mod schema_verdicts;
mod setup;
mod status_too_large;
mod stop_buttons;
mod webhook_server;
mod why;
