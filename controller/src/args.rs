//! The command line; every flag has an environment variable.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use jiff::SignedDuration;
use url::Url;
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
    /// Take this program's finalizer off every WorkflowExecution of a namespace, to uninstall it.
    ///
    /// Says of each what is given up: an execution that still runs, a block that nobody cleared,
    /// audit events that were not delivered. The controller must not run any more.
    Release {
        /// Namespace of the WorkflowExecutions.
        #[arg(long)]
        namespace: String,
    },
    /// Print the audit trail of one remediation as a table.
    Audit {
        /// Where the trail is: an audit file, or the URL of Data Storage.
        source: String,
        /// Name of the RemediationRequest, else of the WorkflowExecution.
        #[arg(long)]
        correlation_id: String,
        /// PEM file with the certificate authority of Data Storage (default: those of the system).
        #[arg(long, env = "WFE_DATA_STORAGE_CA")]
        data_storage_ca: Option<PathBuf>,
        /// File with the bearer token for Data Storage.
        #[arg(long, env = "WFE_DATA_STORAGE_TOKEN_FILE")]
        data_storage_token_file: Option<PathBuf>,
    },
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
    /// File that audit events are appended to where there is no Data Storage, one JSON object a line;
    /// - for standard output. A file of 100 MiB is renamed to FILE.1, FILE.2 and so on; none is deleted.
    #[arg(
        long,
        env = "WFE_AUDIT_FILE",
        default_value = "/var/lib/wfe/audit.jsonl",
        conflicts_with = "data_storage_url"
    )]
    pub audit_file: PathBuf,
    /// URL of Data Storage, which keeps the audit trail (instead of a file).
    #[arg(long, env = "WFE_DATA_STORAGE_URL")]
    pub data_storage_url: Option<Url>,
    /// PEM file with the certificate authority of Data Storage (default: those of the system).
    #[arg(long, env = "WFE_DATA_STORAGE_CA")]
    pub data_storage_ca: Option<PathBuf>,
    /// File with the bearer token for Data Storage; read for each request, since it rotates.
    #[arg(
        long,
        env = "WFE_DATA_STORAGE_TOKEN_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub data_storage_token_file: PathBuf,
    /// How long the Job of a succeeded execution is kept.
    #[arg(long, env = "WFE_RETENTION", default_value = "10m", value_parser = duration)]
    pub retention: Duration,
    /// How long the Job of a failed execution is kept: it is evidence.
    #[arg(long, env = "WFE_RETENTION_FAILED", default_value = "24h", value_parser = duration)]
    pub retention_failed: Duration,
    /// How long after a success the same workflow does not run again on its target.
    #[arg(long, env = "WFE_COOLDOWN", default_value = "5m", value_parser = duration)]
    pub cooldown: Duration,
    /// How long nothing runs on a target after one failure before execution; doubles with each.
    #[arg(long, env = "WFE_BACKOFF_BASE", default_value = "1m", value_parser = duration)]
    pub backoff_base: Duration,
    /// The longest backoff.
    #[arg(long, env = "WFE_BACKOFF_MAX", default_value = "10m", value_parser = duration)]
    pub backoff_max: Duration,
    /// After so many failures in a row before execution, a person must clear the target.
    #[arg(long, env = "WFE_MAX_CONSECUTIVE_FAILURES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_consecutive_failures: u32,
    /// How long an execution may take until its container starts; then it is given up.
    #[arg(long, env = "WFE_START_TIMEOUT", default_value = "5m", value_parser = duration)]
    pub start_timeout: Duration,
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
