//! Measures the webhook and the controller from another process.
//!
//! Runs in a cluster, with release binaries. Prints results, and asserts no limits.

mod body;
mod controller;
mod engines;
mod load;
mod process;
mod report;
mod webhook;

use std::process::ExitCode;

use clap::Parser;

/// Measures one program in the cluster that this process runs in, and prints the results.
#[derive(Debug, Parser)]
#[command(name = "wfe-bench", version)]
enum Args {
    /// Latency, throughput and memory of admission reviews.
    Webhook,
    /// CPU time and memory per execution.
    Controller,
    /// Both engines side by side, on a cluster with Tekton.
    Engines,
}

/// Single-threaded, which leaves the second core to the measured program.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let measured = match Args::parse() {
        Args::Webhook => webhook::measure().await,
        Args::Controller => controller::measure().await,
        Args::Engines => engines::measure().await,
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
