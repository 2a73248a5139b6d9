//! `make demo`: the main job, told on the terminal, on a real cluster.

mod story;
mod tell;

use std::process::ExitCode;

use clap::Parser;

/// Shows what wfe does, in the cluster this runs in.
#[derive(Debug, Parser)]
struct Args {
    /// Leave everything running at the end.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match story::tell(Args::parse().keep).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
