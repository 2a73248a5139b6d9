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
use crate::executor::Executors;
use crate::metrics::Metrics;
use crate::reconcile::{Actions, Notified, Observer, Reconciler, Schema, Shared, reconcile, retry};
use crate::sweep::Sweep;
use crate::view::View;
use crate::watches::{self, Began};
use wfe_core::history::Limits;
use wfe_core::observed::Settings;

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

    let began = Began::default();
    let (executors, changes) = Executors::start(&client, &args.execution_namespace, &began);
    let (caches, triggers) = watches::start(
        &client,
        args.watch_namespace.as_deref(),
        &args.execution_namespace,
        began,
        changes,
    );
    let store = caches.store();
    let view = Arc::new(View::new(caches.clone()));
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
    let settings = Arc::new(settings);
    let sweep = Sweep::new(&client, caches.clone(), executors.clone(), &settings);
    let notified = Arc::new(Notified::default());
    let observer = Observer::new(
        view.clone(),
        executors.clone(),
        outbox.clone(),
        notified.clone(),
        settings.clone(),
    );
    let shared = Shared {
        view: view.clone(),
        executors: executors.clone(),
        catalog: Arc::new(catalog),
        outbox: outbox.clone(),
        notified,
        settings,
        metrics: metrics.clone(),
        schema: Schema::new(readiness.clone()),
    };
    let reconciler = Arc::new(Reconciler::new(observer, Actions::new(&client, shared)));
    let ready = reconciler.clone();
    let delivery = outbox.run(view.as_ref());
    let passes = applier(
        |wfe, reconciler| Box::pin(reconcile(wfe, reconciler)),
        retry,
        reconciler,
        store,
        triggers.take_until(stop.clone().cancelled_owned()),
        Config::default().concurrency(args.concurrency),
    );
    let synced = async {
        if caches.synced().await.is_ok() && executors.synced().await.is_ok() {
            // What has vanished while nobody looked must not be in anybody's way.
            let ending = sweep.once().await;
            ready.set_ready();
            // What an earlier process has started.
            for wfe in caches.workflow_executions() {
                metrics.found(&wfe);
            }
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
