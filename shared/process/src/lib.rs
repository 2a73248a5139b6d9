//! What every binary does around its own work: logs, health and metrics endpoints, shutdown.

pub mod endpoints;
pub mod shutdown;
pub mod telemetry;

use std::net::SocketAddr;

use clap::Args;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::endpoints::{ListenError, Readiness};
use crate::telemetry::LogFormat;

/// Flags that every binary has.
#[derive(Args, Clone, Debug)]
pub struct ProcessArgs {
    /// Address of /metrics.
    #[arg(long, env = "WFE_METRICS_ADDR", default_value = "0.0.0.0:9090")]
    pub metrics_addr: SocketAddr,
    /// Address of /healthz and /readyz.
    #[arg(long, env = "WFE_HEALTH_ADDR", default_value = "0.0.0.0:8081")]
    pub health_addr: SocketAddr,
    /// How log lines look.
    #[arg(long, env = "WFE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged, as `info` or `info,wfe_controller=debug`.
    #[arg(long, env = "WFE_LOG_FILTER", default_value = "info")]
    pub log_filter: String,
}

impl ProcessArgs {
    /// Serves health and metrics in the background until `stop`.
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
