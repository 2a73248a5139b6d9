//! `make demo`: shows the main features of wfe on a real cluster, on the terminal.

mod story;
mod tell;

use std::process::ExitCode;

use clap::Parser;

/// Shows what wfe does, in the cluster that this program runs in.
#[derive(Debug, Parser)]
struct Args {
    /// Leave webhook, controller and objects in place at the end.
    #[arg(long)]
    keep: bool,
    /// Also run a Tekton pipeline; the cluster must have Tekton.
    #[arg(long)]
    tekton: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match story::run(args.keep, args.tekton).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
