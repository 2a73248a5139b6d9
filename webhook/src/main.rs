//! The program `wfe-webhook`; [`wfe_webhook::args::Args`] has its flags.

use std::process::ExitCode;

use clap::Parser;
use wfe_process::telemetry;
use wfe_webhook::args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let started = telemetry::init(args.process.log_format, &args.process.log_filter)
        .map_err(anyhow::Error::from);
    let result = match started {
        Ok(()) => wfe_webhook::run::run(args).await,
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        eprintln!("wfe-webhook: {error:#}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}
