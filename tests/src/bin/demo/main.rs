//! `make demo`: shows the main features of wfe on a real cluster, on the terminal.

mod installation;
mod story;
mod tell;

use std::process::ExitCode;

use clap::Parser;

/// Shows what wfe does, in the test cluster that this program runs in, or in yours.
#[derive(Debug, Parser)]
struct Args {
    /// Leave webhook, controller and objects in place at the end.
    #[arg(long)]
    keep: bool,
    /// Also run a Tekton pipeline; the cluster must have Tekton.
    #[arg(long)]
    tekton: bool,
    /// Install the chart in the cluster of `KUBECONFIG` instead, which pulls its images from this
    /// registry; at the end it is removed.
    #[arg(long, value_name = "HOST")]
    registry: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match story::run(args.keep, args.tekton, args.registry.as_deref()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
