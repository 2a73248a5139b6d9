//! Measures the webhook and the controller from another process.
//!
//! Runs in a cluster, with release binaries. Prints results, and asserts no limits.

mod body;
mod controller;
mod engines;
mod load;
mod process;
mod report;
mod soak;
mod webhook;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Measures one program in the cluster that this process runs in, and prints the results.
#[derive(Debug, Parser)]
#[command(name = "wfe-bench", version)]
enum Args {
    /// Latency, throughput and memory of admission reviews.
    Webhook,
    /// CPU time, requests, memory and speed of executions.
    Controller {
        /// Only this part.
        #[arg(long)]
        only: Option<controller::Part>,
    },
    /// Load for a long time, while the leader is killed every 30 seconds.
    Soak {
        /// For how long.
        #[arg(long, default_value_t = 30)]
        minutes: u64,
    },
    /// Both engines side by side, on a cluster with Tekton.
    Engines,
}

/// Single-threaded, which leaves the second core to the measured program.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let measured = match Args::parse() {
        Args::Webhook => webhook::measure().await,
        Args::Controller { only } => controller::measure(only).await,
        Args::Soak { minutes } => soak::run(Duration::from_mins(minutes)).await,
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
