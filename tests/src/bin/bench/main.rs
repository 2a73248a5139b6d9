//! `make bench-webhook`: measures latency, throughput and memory of the webhook from another
//! process.
//!
//! Runs in a cluster, with release binaries. Prints results, and asserts no limits.

mod body;
mod load;
mod process;
mod report;
mod webhook;

use std::process::ExitCode;

/// Single-threaded, which leaves the second core to the webhook.
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
