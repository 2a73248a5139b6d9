//! What everything in the process is built on: the client, the metrics, and what the process reports of
//! itself.

use anyhow::Result;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use wfe_peers::client;
use wfe_process::endpoints::Readiness;
use wfe_process::shutdown;

use crate::args::RunArgs;
use crate::connection;
use crate::metrics::Metrics;
use crate::reconcile::Schema;
use crate::watches::{self, WatchAges, crd_rules};

/// Readiness condition, named in the response of `/readyz` while it does not hold.
pub const CACHES_SYNCED: &str = "caches-synced";

/// What everything else is built on.
pub struct Base {
    /// Cancelled by SIGTERM and SIGINT.
    pub stop: CancellationToken,
    /// Client for the API server.
    pub client: Client,
    /// Metrics.
    pub metrics: Metrics,
    /// What `/readyz` reports.
    pub readiness: Readiness,
    /// When the watches were last heard of.
    pub watch_ages: WatchAges,
}

impl Base {
    /// Connects to the API server; the metrics are in the returned registry.
    pub async fn connect(args: &RunArgs) -> Result<(Self, Registry)> {
        let stop = shutdown::on_signal()?;
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let readiness = Readiness::of(&[
            CACHES_SYNCED,
            Schema::CRD_UP_TO_DATE,
            crd_rules::CRD_HAS_RULES,
            connection::ACCEPTED,
            connection::CLOCK_IN_SYNC,
            watches::WATCHES_ALIVE,
        ]);
        let watch_ages = WatchAges::default();
        let observer = connection::observer(metrics.clone(), readiness.clone(), watch_ages.clone());
        let client = client::connect_observed(observer, Some(args.pace())).await?;
        client::check_apart(&client, &args.execution.execution_namespace)?;
        let base = Self {
            stop,
            client,
            metrics,
            readiness,
            watch_ages,
        };
        Ok((base, registry))
    }
}
