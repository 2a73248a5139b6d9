//! The command line; every flag has an environment variable.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use jiff::SignedDuration;
use wfe_process::ProcessArgs;

/// Runs WorkflowExecutions as Kubernetes Jobs or Tekton PipelineRuns.
#[derive(Debug, Parser)]
#[command(name = "wfe-controller", version)]
pub struct Args {
    /// What to do instead of running.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the program does besides running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinitions as YAML, for `kubectl apply -f -`.
    Crds,
}

/// How the controller runs.
#[derive(ClapArgs, Clone, Debug)]
pub struct RunArgs {
    /// Namespace that workflows run in.
    #[arg(
        long,
        env = "WFE_EXECUTION_NAMESPACE",
        default_value = "kubernaut-workflows"
    )]
    pub execution_namespace: String,
    /// Namespace whose WorkflowExecutions are run (default: all).
    #[arg(long, env = "WFE_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Directory with the workflow schemas (a mounted ConfigMap).
    #[arg(long, env = "WFE_CATALOG_DIR", default_value = "/etc/wfe/catalog")]
    pub catalog_dir: PathBuf,
    /// File that audit events are appended to, one JSON object a line; - for standard output.
    #[arg(
        long,
        env = "WFE_AUDIT_FILE",
        default_value = "/var/lib/wfe/audit.jsonl"
    )]
    pub audit_file: PathBuf,
    /// How long the Job of a succeeded execution is kept.
    #[arg(long, env = "WFE_RETENTION", default_value = "10m", value_parser = duration)]
    pub retention: Duration,
    /// How long the Job of a failed execution is kept: it is evidence.
    #[arg(long, env = "WFE_RETENTION_FAILED", default_value = "24h", value_parser = duration)]
    pub retention_failed: Duration,
    /// Timeout of WorkflowExecutions that name none.
    #[arg(long, env = "WFE_DEFAULT_TIMEOUT", default_value = "30m", value_parser = duration)]
    pub default_timeout: Duration,
    /// ServiceAccount of WorkflowExecutions that name none.
    #[arg(
        long,
        env = "WFE_DEFAULT_SERVICE_ACCOUNT",
        default_value = "kubernaut-workflow-runner"
    )]
    pub default_service_account: String,
    /// How many WorkflowExecutions are worked on at once.
    #[arg(long, env = "WFE_CONCURRENCY", default_value_t = 32)]
    pub concurrency: u16,
    /// Logs, health and metrics.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `90s`, `10m`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|parsed| Duration::try_from(parsed).ok())
        .ok_or_else(|| "must be a duration, as 90s, 10m or 1h30m".to_owned())
}
