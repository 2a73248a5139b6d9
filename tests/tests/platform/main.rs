//! The whole platform on one node: the pair by its chart, and stand-ins for the services around it, all as
//! pods. A container is OOMKilled; the suite follows the remediation to the notification. Run by `make platform`;
//! `--nocapture` shows the timelines.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::too_many_lines,
    reason = "tests are long scenarios; tests and their helpers fail by panicking"
)]

mod crash;
mod installation;
mod memory;
mod picture;
mod story;
mod timeline;
