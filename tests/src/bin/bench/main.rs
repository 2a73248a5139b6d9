//! `make bench-webhook`: what the gate costs, measured from a process of its own.
//!
//! Run in a cluster, with binaries of the release profile. Nothing here is asserted: it prints.

mod body;
mod load;
mod process;
mod report;
mod webhook;

use std::process::ExitCode;

/// One thread: the other core is the webhook's.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match webhook::measure().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
