//! The wiring.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::channel::mpsc;
use futures::{StreamExt, stream};
use kube::runtime::controller::{Config, ReconcileRequest, applier};
use prometheus_client::registry::Registry;
use wfe_peers::audit::{AuditSink, HttpSink, HttpSinkOptions, JsonlSink};
use wfe_peers::catalog::DirectoryCatalog;
use wfe_peers::client;
use wfe_process::endpoints::Readiness;
use wfe_process::shutdown;

use crate::args::RunArgs;
use crate::audit::outbox::Outbox;
use crate::execution::act::{Act, Schema};
use crate::execution::history::Limits;
use crate::execution::observe::Settings;
use crate::execution::{reconcile, retry};
use crate::metrics::Metrics;
use crate::sweep::Sweep;
use crate::watches::Caches;

/// How long open passes may go on after a signal: less than Kubernetes waits (30 s).
const GRACE: Duration = Duration::from_secs(20);
const CACHES_SYNCED: &str = "caches synced";

/// Runs WorkflowExecutions until a signal.
pub async fn run(args: RunArgs) -> Result<()> {
    let stop = shutdown::on_signal()?;
    let catalog = DirectoryCatalog::open(&args.catalog_dir).context("--catalog-dir")?;
    let sink = sink(&args)?;
    let client = client::connect().await?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::of(&[CACHES_SYNCED, Schema::CURRENT]);
    let endpoints = args.process.serve(readiness.clone(), registry, &stop);
    endpoints.await?;

    let (caches, triggers) = Caches::start(
        &client,
        args.watch_namespace.as_deref(),
        &args.execution_namespace,
    );
    let store = caches.workflow_executions.clone();
    // As many as a batch may have.
    let (told, audited) = mpsc::channel(100);
    let outbox = Arc::new(Outbox::new(sink, metrics.clone(), told, stop.clone()));
    let audited = audited.map(|reference| Ok(ReconcileRequest::from(reference)));
    let triggers = stream::select(triggers, audited);
    let settings = Settings {
        execution_namespace: args.execution_namespace,
        default_timeout: args.default_timeout,
        default_service_account: args.default_service_account,
        retention: args.retention,
        retention_failed: args.retention_failed,
        start_timeout: args.start_timeout,
        limits: Limits {
            cooldown: args.cooldown,
            backoff_base: args.backoff_base,
            backoff_max: args.backoff_max,
            max_consecutive_failures: args.max_consecutive_failures,
        },
    };
    let sweep = Sweep::new(&client, caches.clone(), &settings);
    let act = Arc::new(Act::new(
        &client,
        caches.clone(),
        Arc::new(catalog),
        outbox.clone(),
        settings,
        metrics,
        Schema::new(readiness.clone()),
    ));
    let (ready, objects) = (act.clone(), act.clone());
    let delivery = outbox.run(|reference| objects.newest(reference));
    let passes = applier(
        |wfe, act| Box::pin(reconcile(wfe, act)),
        retry,
        act,
        store,
        triggers.take_until(stop.clone().cancelled_owned()),
        Config::default().concurrency(args.concurrency),
    );
    let synced = async {
        if caches.synced().await.is_ok() {
            // What has vanished while nobody looked must not be in anybody's way.
            let ending = sweep.once().await;
            ready.set_ready();
            ready.count_active();
            readiness.set(CACHES_SYNCED, true);
            tracing::info!("caches synced");
            stop.run_until_cancelled(sweep.forever(ending)).await;
        }
    };
    // In one task: a store wakes the last of those that wait for it, and the applier waits too.
    let work = async {
        tokio::join!(
            passes.for_each(|_| futures::future::ready(())),
            synced,
            delivery
        )
    };
    // What runs is finished, within a grace; caches that never fill are not waited for.
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        _ = work => {}
        () = stopped => tracing::warn!("some work did not end in time"),
    }
    tracing::info!("done");
    Ok(())
}

/// Data Storage where there is one, else a file.
fn sink(args: &RunArgs) -> Result<Arc<dyn AuditSink>> {
    let Some(url) = args.data_storage_url.clone() else {
        let sink = JsonlSink::open(&args.audit_file)
            .with_context(|| format!("--audit-file {}", args.audit_file.display()))?;
        return Ok(Arc::new(sink));
    };
    let sink = HttpSink::new(HttpSinkOptions {
        url,
        ca: args.data_storage_ca.clone(),
        token_file: Some(args.data_storage_token_file.clone()),
        deadline: None,
    });
    Ok(Arc::new(sink.context("--data-storage-url")?))
}
