//! Builds the controller from its flags and runs it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::channel::mpsc;
use futures::{StreamExt, stream};
use kube::Client;
use kube::runtime::controller::{Config, ReconcileRequest, applier};
use kube::runtime::reflector::ObjectRef;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use wfe_peers::audit::{AuditSink, HttpSink, HttpSinkOptions, JsonlSink};
use wfe_peers::catalog::DirectoryCatalog;
use wfe_peers::client;
use wfe_process::endpoints::Readiness;
use wfe_process::shutdown;

use crate::args::{LimitArgs, RunArgs};
use crate::audit::outbox::{BATCH, Outbox};
use crate::connection;
use crate::election::{Elector, Leadership, NotLeading};
use crate::executor::Executors;
use crate::metrics::{CacheMetrics, Metrics};
use crate::reconcile::{Failing, Reconciler, Schema, Shared, reconcile, retry};
use crate::sweep::Sweep;
use crate::view::View;
use crate::watches::{self, Caches, StartTimes, Triggers};
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
    let view = Arc::new(View::new(caches.clone()));
    // The outbox requests at most one reconcile per event of a batch.
    let (requeue, requeued) = mpsc::channel(BATCH);
    let wake = requeue.clone();
    let leadership = if args.leader_elect {
        Leadership::default()
    } else {
        Leadership::always()
    };
    let outbox = Arc::new(Outbox::new(
        sink,
        metrics.clone(),
        requeue,
        stop.clone(),
        leadership.clone(),
    ));
    let requeued = requeued.map(|reference| Ok(ReconcileRequest::from(reference)));
    let triggers = stream::select(triggers, requeued);
    let triggers = triggers.take_until(stop.clone().cancelled_owned()).boxed();
    let settings = Arc::new(settings(
        &args.limits,
        args.execution.execution_namespace.clone(),
        args.execution.default_service_account.clone(),
    ));
    let failing: Arc<Failing> = Arc::default();
    let sweep = Sweep::new(
        &client,
        caches.clone(),
        executors.clone(),
        &settings,
        metrics.clone(),
        leadership.clone(),
        failing.clone(),
    );
    let shared = Shared {
        view: view.clone(),
        executors: executors.clone(),
        catalog: Arc::new(catalog),
        outbox: outbox.clone(),
        notified: Arc::default(),
        failing,
        leadership: leadership.clone(),
        settings,
        metrics: metrics.clone(),
        schema: Schema::new(readiness.clone()),
    };
    let reconciler = Arc::new(Reconciler::new(&client, shared, wake));
    let mut elector = elector(&args, &client, leadership, &metrics);
    let duties = Duties {
        stop: stop.clone(),
        caches: caches.clone(),
        reconciler,
        sweep,
        outbox,
        view,
        metrics: metrics.clone(),
        concurrency: args.concurrency,
    };
    let standby = async {
        if caches.synced().await.is_ok() && executors.synced().await.is_ok() {
            readiness.set(CACHES_SYNCED, true);
            tracing::info!("caches synced");
        }
    };
    duties.run(triggers, standby, &mut elector).await?;
    if let Some(mut elector) = elector {
        elector.release().await;
    }
    tracing::info!("shutdown complete");
    Ok(())
}

/// `None`: this process is the only one.
fn elector(
    args: &RunArgs,
    client: &Client,
    leadership: Leadership,
    metrics: &Metrics,
) -> Option<Elector> {
    args.leader_elect.then(|| {
        let namespace = args.lease_namespace.as_deref();
        let namespace = namespace.unwrap_or(client.default_namespace());
        let (name, metrics) = (&args.lease_name, metrics.clone());
        Elector::new(client, namespace, name, identity(), leadership, metrics)
    })
}

/// What the leader does.
struct Duties {
    stop: CancellationToken,
    caches: Caches,
    reconciler: Arc<Reconciler>,
    sweep: Sweep,
    outbox: Arc<Outbox>,
    view: Arc<View>,
    metrics: Metrics,
    concurrency: u16,
}

impl Duties {
    /// Keeps the caches warm until this process leads, then carries out the duties until `stop`.
    /// `synced` ends when all caches are synced.
    async fn run(
        &self,
        mut triggers: Triggers,
        synced: impl Future<Output = ()>,
        elector: &mut Option<Elector>,
    ) -> Result<()> {
        let led = async {
            synced.await;
            match elector {
                Some(elector) => elector.acquire().await,
                None => drop(self.metrics.leader.set(1)),
            }
        };
        // The caches are filled only while the triggers are polled. What changes before this process
        // leads is decided on when it does.
        tokio::select! {
            () = led => {}
            () = (&mut triggers).for_each(async |_| ()) => {}
        }
        if self.stop.is_cancelled() {
            return Ok(());
        }
        let lost = async {
            match elector {
                Some(elector) => elector.hold().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.reconcile(triggers) => {}
            () = grace_over(&self.stop) => {}
            () = lost => bail!(NotLeading),
        }
        Ok(())
    }

    /// Reconciles every WorkflowExecution, then those that change, until `stop`.
    async fn reconcile(&self, triggers: Triggers) {
        self.outbox.lead();
        let all = self.caches.workflow_executions();
        let all: Vec<_> = all
            .iter()
            .map(|wfe| Ok(ReconcileRequest::from(ObjectRef::from_obj(wfe.as_ref()))))
            .collect();
        let passes = applier(
            |wfe, reconciler| Box::pin(reconcile(wfe, reconciler)),
            retry,
            self.reconciler.clone(),
            self.caches.store(),
            stream::iter(all).chain(triggers),
            Config::default().concurrency(self.concurrency),
        );
        tokio::join!(
            passes.for_each(|_| futures::future::ready(())),
            self.stop.run_until_cancelled(self.sweep.run()),
            self.outbox.run(self.view.as_ref())
        );
    }
}

/// Open reconciles may end within the grace period.
async fn grace_over(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(SHUTDOWN_GRACE).await;
    tracing::warn!(
        grace_seconds = SHUTDOWN_GRACE.as_secs(),
        "shutdown grace period exceeded, aborting open reconciles"
    );
}

/// A name of this process that no other has, also after a restart of the pod.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "wfe-controller".to_owned());
    let started = jiff::Timestamp::now().as_nanosecond();
    format!("{host}_{}_{started:x}", std::process::id())
}

/// The catalog; the files that it sets aside are counted and noted.
fn catalog(directory: &Path, metrics: &Metrics, readiness: &Readiness) -> Result<DirectoryCatalog> {
    let rejected = metrics.catalog_rejected_entries.clone();
    let readiness = readiness.clone();
    let catalog = DirectoryCatalog::open(directory, move |errors| {
        readiness.report_rejected_entries(&rejected, errors);
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
