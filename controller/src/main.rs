//! `wfe-controller`: parses [`wfe_controller::args::Args`] and runs the subcommand or the
//! controller.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use wfe_controller::args::{Args, Command};
use wfe_controller::audit::trail::{self, Source};
use wfe_controller::{clear_target, run, why};
use wfe_process::telemetry;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match execute(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wfe-controller: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn execute(args: Args) -> anyhow::Result<()> {
    if let Some(Command::Crds) = args.command {
        return Ok(std::io::stdout().write_all(wfe_controller::crds::yaml()?.as_bytes())?);
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Some(Command::Release { namespace }) = &args.command {
        return wfe_controller::release::release(namespace, &mut std::io::stdout()).await;
    }
    if let Some(Command::ClearTarget {
        target,
        reason,
        execution_namespace,
    }) = &args.command
    {
        let out = &mut std::io::stdout();
        return clear_target::clear(target, execution_namespace, reason, out).await;
    }
    if let Some(Command::Why {
        subject,
        namespace,
        execution_namespace,
        limits,
    }) = &args.command
    {
        // A WorkflowExecution's ServiceAccount is no cause that is explained.
        let settings = run::settings(limits, execution_namespace.clone(), String::new());
        return why::print(subject, namespace, settings, &mut std::io::stdout()).await;
    }
    if let Some(Command::Audit {
        source,
        correlation_id,
        verify: _,
        expect,
        data_storage_ca,
        data_storage_token_file,
        data_storage_plain_http: plain_http,
    }) = args.command
    {
        let (ca, token) = (data_storage_ca, data_storage_token_file);
        let source = Source::of(&source, ca, token, plain_http);
        let out = &mut std::io::stdout();
        return match correlation_id {
            Some(correlation_id) => trail::print(source, &correlation_id, out).await,
            None => trail::verify(&source, expect.as_deref(), out),
        };
    }
    let process = &args.run.process;
    let _telemetry = telemetry::init("wfe-controller", process.log_format, &process.log_filter)?;
    // Boxed: the future of the whole controller is too large for the stack.
    Box::pin(run::run(args.run)).await
}
