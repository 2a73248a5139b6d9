//! Shared by all binaries: logs, the HTTP server, health and metrics endpoints, shutdown.

pub mod endpoints;
pub mod server;
pub mod shutdown;
pub mod telemetry;

use std::net::SocketAddr;

use clap::Args;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::endpoints::{ListenError, Readiness};
use crate::telemetry::LogFormat;

/// Flags of all binaries.
#[derive(Args, Clone, Debug)]
pub struct ProcessArgs {
    /// Listen address of /metrics.
    #[arg(long, env = "WFE_METRICS_ADDR", default_value = "0.0.0.0:9090")]
    pub metrics_addr: SocketAddr,
    /// Listen address of /healthz and /readyz.
    #[arg(long, env = "WFE_HEALTH_ADDR", default_value = "0.0.0.0:8081")]
    pub health_addr: SocketAddr,
    /// Format of the logs.
    #[arg(long, env = "WFE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// Filter for the logs, for example `info` or `info,wfe_controller=debug`.
    #[arg(long, env = "WFE_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
}

/// Flags about what is executed, and where: the webhook checks with the same values as the controller.
#[derive(Args, Clone, Debug)]
pub struct ExecutionArgs {
    /// Namespace in which the Jobs and PipelineRuns of workflows run.
    #[arg(
        long,
        env = "WFE_EXECUTION_NAMESPACE",
        default_value = "kubernaut-workflows"
    )]
    pub execution_namespace: String,
    /// ServiceAccount of WorkflowExecutions without executionConfig.serviceAccountName.
    #[arg(
        long,
        env = "WFE_DEFAULT_SERVICE_ACCOUNT",
        default_value = "kubernaut-workflow-runner"
    )]
    pub default_service_account: String,
}

impl ProcessArgs {
    /// Serves the health and metrics endpoints in the background until `stop` is cancelled.
    pub async fn serve(
        &self,
        readiness: Readiness,
        registry: Registry,
        stop: &CancellationToken,
    ) -> Result<(), ListenError> {
        let (health, metrics) = (endpoints::health(readiness), endpoints::metrics(registry));
        endpoints::serve(self.health_addr, health, stop.clone()).await?;
        endpoints::serve(self.metrics_addr, metrics, stop.clone()).await
    }
}
