//! Builds the controller from its flags and runs it.

use std::path::Path;
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

use crate::args::{LimitArgs, RunArgs};
use crate::audit::outbox::{BATCH, Outbox};
use crate::connection;
use crate::executor::Executors;
use crate::metrics::{CacheMetrics, Metrics};
use crate::reconcile::{Reconciler, Schema, Shared, reconcile, retry};
use crate::sweep::Sweep;
use crate::view::View;
use crate::watches::{self, StartTimes};
use wfe_core::history::Limits;
use wfe_core::observed::Settings;

/// Time for open reconciles to end after SIGTERM; the default grace period of a pod is 30 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);
/// Data Storage closes a connection after this time and commits nothing afterwards.
const SERVER_DEADLINE: Duration = Duration::from_secs(30);
/// Readiness condition, named in the response of `/readyz` while it does not hold.
const CACHES_SYNCED: &str = "caches-synced";

/// Reconciles WorkflowExecutions until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> Result<()> {
    args.limits.check()?;
    let stop = shutdown::on_signal()?;
    let sink = sink(&args)?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::of(&[
        CACHES_SYNCED,
        Schema::CRD_UP_TO_DATE,
        connection::ACCEPTED,
        connection::CLOCK_IN_SYNC,
    ]);
    let observer = connection::observer(metrics.clone(), readiness.clone());
    let client = client::connect_observed(observer).await?;
    let catalog = catalog(&args.execution.catalog_dir, &metrics, &readiness)?;

    let start_times = StartTimes::default();
    let (executors, changes) =
        Executors::start(&client, &args.execution.execution_namespace, &start_times);
    let (caches, triggers) = watches::start(
        &client,
        args.watch_namespace.as_deref(),
        &args.execution.execution_namespace,
        start_times,
        changes,
    );
    registry.register_collector(Box::new(CacheMetrics(caches.clone())));
    let endpoints = args.process.serve(readiness.clone(), registry, &stop);
    endpoints.await?;
    let store = caches.store();
    let view = Arc::new(View::new(caches.clone()));
    // The outbox requests at most one reconcile per event of a batch.
    let (requeue, requeued) = mpsc::channel(BATCH);
    let wake = requeue.clone();
    let outbox = Arc::new(Outbox::new(sink, metrics.clone(), requeue, stop.clone()));
    let requeued = requeued.map(|reference| Ok(ReconcileRequest::from(reference)));
    let triggers = stream::select(triggers, requeued);
    let settings = Arc::new(settings(
        &args.limits,
        args.execution.execution_namespace.clone(),
        args.execution.default_service_account.clone(),
    ));
    let sweep = Sweep::new(
        &client,
        caches.clone(),
        executors.clone(),
        &settings,
        metrics.clone(),
    );
    let shared = Shared {
        view: view.clone(),
        executors: executors.clone(),
        catalog: Arc::new(catalog),
        outbox: outbox.clone(),
        notified: Arc::default(),
        failing: Arc::default(),
        settings,
        metrics: metrics.clone(),
        schema: Schema::new(readiness.clone()),
    };
    let reconciler = Arc::new(Reconciler::new(&client, shared, wake));
    let waiting = reconciler.clone();
    let delivery = outbox.run(view.as_ref());
    let passes = applier(
        |wfe, reconciler| Box::pin(reconcile(wfe, reconciler)),
        retry,
        reconciler,
        store,
        triggers.take_until(stop.clone().cancelled_owned()),
        Config::default().concurrency(args.concurrency),
    );
    let sync_then_sweep = async {
        if caches.synced().await.is_ok() && executors.synced().await.is_ok() {
            // Orphaned executions and stale locks must not delay the first reconciles.
            let ending = sweep.once().await;
            waiting.set_ready();
            metrics.leader.set(1);
            readiness.set(CACHES_SYNCED, true);
            tracing::info!("caches synced");
            stop.run_until_cancelled(sweep.run(ending)).await;
        }
    };
    // In one task: the store of kube wakes only the last waiter, and the applier waits for it, too.
    let work = async {
        tokio::join!(
            passes.for_each(|_| futures::future::ready(())),
            sync_then_sweep,
            delivery
        )
    };
    // Open reconciles may end within the grace period; caches that never fill must not block the
    // exit.
    let grace_over = async {
        stop.cancelled().await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        _ = work => {}
        () = grace_over => tracing::warn!(
            grace_seconds = SHUTDOWN_GRACE.as_secs(),
            "shutdown grace period exceeded, aborting open reconciles"
        ),
    }
    tracing::info!("shutdown complete");
    Ok(())
}

/// The catalog; the files that it sets aside are counted and noted.
fn catalog(directory: &Path, metrics: &Metrics, readiness: &Readiness) -> Result<DirectoryCatalog> {
    let rejected = metrics.catalog_rejected_entries.clone();
    let readiness = readiness.clone();
    let catalog = DirectoryCatalog::open(directory, move |errors| {
        rejected.set(i64::try_from(errors.len()).unwrap_or(i64::MAX));
        readiness.note("catalog", (!errors.is_empty()).then(|| errors.join("; ")));
    });
    catalog.context("--catalog-dir")
}

/// The settings that decisions depend on.
pub fn settings(
    limits: &LimitArgs,
    execution_namespace: String,
    default_service_account: String,
) -> Settings {
    Settings {
        execution_namespace,
        default_timeout: limits.default_timeout,
        default_service_account,
        retention: limits.retention,
        retention_failed: limits.retention_failed,
        start_timeout: limits.start_timeout,
        limits: Limits {
            cooldown: limits.cooldown,
            backoff_base: limits.backoff_base,
            backoff_max: limits.backoff_max,
            max_consecutive_failures: limits.max_consecutive_failures,
        },
    }
}

/// Data Storage if `--data-storage-url` is given, else the audit file.
fn sink(args: &RunArgs) -> Result<Arc<dyn AuditSink>> {
    let Some(url) = args.data_storage_url.clone() else {
        let sink = JsonlSink::open(&args.audit_file)
            .with_context(|| format!("--audit-file {}", args.audit_file.display()))?;
        return Ok(Arc::new(sink));
    };
    if args.data_storage_timeout <= SERVER_DEADLINE {
        tracing::warn!(
            "--data-storage-timeout is not longer than Data Storage's own deadline of 30s: after a crash an audit event may be stored twice"
        );
    }
    let sink = HttpSink::new(HttpSinkOptions {
        url,
        ca: args.data_storage_ca.clone(),
        token_file: Some(args.data_storage_token_file.clone()),
        deadline: args.data_storage_timeout,
    });
    Ok(Arc::new(sink.context("--data-storage-url")?))
}
