//! The program `wfe-webhook`; [`wfe_webhook::args::Args`] has its flags.

use std::process::ExitCode;

use clap::Parser;
use wfe_process::telemetry;
use wfe_webhook::args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    match execute(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wfe-webhook: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn execute(args: Args) -> anyhow::Result<()> {
    let process = &args.process;
    let _telemetry = telemetry::init("wfe-webhook", process.log_format, &process.log_filter)?;
    wfe_webhook::run::run(args).await
}
