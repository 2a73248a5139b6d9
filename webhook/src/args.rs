//! Command-line flags; every flag has an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use wfe_peers::flags::{CatalogArgs, DataStorageArgs};
use wfe_process::{ExecutionArgs, ProcessArgs};

/// Admission webhook that validates WorkflowExecutions and completes them before they are stored.
#[derive(Debug, Parser)]
#[command(name = "wfe-webhook", version)]
pub struct Args {
    /// Address on which admission reviews are served over TLS.
    #[arg(long, env = "WFE_LISTEN", default_value = "0.0.0.0:9443")]
    pub listen: SocketAddr,
    /// Directory with tls.crt and tls.key; both files are reloaded when their content changes.
    #[arg(long, env = "WFE_CERT_DIR", default_value = "/etc/wfe-webhook/tls")]
    pub cert_dir: PathBuf,
    /// PEM file with the certificate authority of the API server's certificate for webhooks; clients
    /// without one are not answered. Reloaded when its content changes. Default: any client is answered.
    #[arg(long, env = "WFE_CLIENT_CA")]
    pub client_ca: Option<PathBuf>,
    /// Name in that certificate, as common name or DNS name; repeatable, default any.
    #[arg(
        long,
        env = "WFE_CLIENT_NAME",
        value_delimiter = ',',
        requires = "client_ca"
    )]
    pub client_name: Vec<String>,
    /// Namespace that a controller watches for WorkflowExecutions; repeatable, default all.
    #[arg(long, env = "WFE_WATCH_NAMESPACE", value_delimiter = ',')]
    pub watch_namespace: Vec<String>,
    /// What is executed, and where.
    #[command(flatten)]
    pub execution: ExecutionArgs,
    /// Where the workflow catalog is.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Where Data Storage is.
    #[command(flatten)]
    pub data_storage: DataStorageArgs,
    /// Handling of an image without a digest: deny the request, or fill in the digest from the
    /// workflow catalog.
    #[arg(long, env = "WFE_IMAGE_DIGEST", value_enum, default_value_t = ImageDigest::Require)]
    pub image_digest: ImageDigest,
    /// Handling of a request while the workflow catalog or the API server is unavailable; the
    /// controller repeats every check before it creates a Job or PipelineRun.
    #[arg(long, env = "WFE_ON_CATALOG_OUTAGE", value_enum, default_value_t = OnOutage::Allow)]
    pub on_catalog_outage: OnOutage,
    /// Logging, health and metrics flags.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Handling of an image or bundle reference without a digest.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ImageDigest {
    /// Deny an image without a digest; a bundle does not need a digest.
    Require,
    /// Fill in the digest of the catalog entry, for an image and for a bundle.
    Fill,
}

/// Handling of a request that cannot be checked completely.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum OnOutage {
    /// Allow the request with a warning.
    Allow,
    /// Deny the request with 503.
    Deny,
}
