//! The command line; every flag has an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use wfe_process::ProcessArgs;

/// Admission webhook for WorkflowExecutions: turns bad ones away before they are stored.
#[derive(Debug, Parser)]
#[command(name = "wfe-webhook", version)]
pub struct Args {
    /// Address to serve admission reviews on, with TLS.
    #[arg(long, env = "WFE_LISTEN", default_value = "0.0.0.0:9443")]
    pub listen: SocketAddr,
    /// Directory with tls.crt and tls.key; read again when their content changes.
    #[arg(long, env = "WFE_CERT_DIR", default_value = "/etc/wfe-webhook/tls")]
    pub cert_dir: PathBuf,
    /// Namespace whose WorkflowExecutions a controller runs; repeatable, all where none is named.
    #[arg(long, env = "WFE_WATCH_NAMESPACE", value_delimiter = ',')]
    pub watch_namespace: Vec<String>,
    /// Namespace that workflows run in.
    #[arg(
        long,
        env = "WFE_EXECUTION_NAMESPACE",
        default_value = "kubernaut-workflows"
    )]
    pub execution_namespace: String,
    /// Directory with the workflow schemas (a mounted ConfigMap).
    #[arg(long, env = "WFE_CATALOG_DIR")]
    pub catalog_dir: PathBuf,
    /// ServiceAccount of WorkflowExecutions that name none.
    #[arg(
        long,
        env = "WFE_DEFAULT_SERVICE_ACCOUNT",
        default_value = "kubernaut-workflow-runner"
    )]
    pub default_service_account: String,
    /// What to do about an image without a digest: refuse it, or fill in the catalog's.
    #[arg(long, env = "WFE_IMAGE_DIGEST", value_enum, default_value_t = ImageDigest::Require)]
    pub image_digest: ImageDigest,
    /// What to do while the catalog or the API server cannot be asked: the controller checks again
    /// before anything runs.
    #[arg(long, env = "WFE_ON_CATALOG_OUTAGE", value_enum, default_value_t = OnOutage::Allow)]
    pub on_catalog_outage: OnOutage,
    /// Logs, health and metrics.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// What happens to a request without a digest.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ImageDigest {
    /// An image without one is refused; a bundle may go without.
    Require,
    /// Both get the catalog's.
    Fill,
}

/// What happens to a request that cannot be judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum OnOutage {
    /// Let it in with a warning.
    Allow,
    /// Refuse it.
    Deny,
}
