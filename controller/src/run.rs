//! Builds the controller from its flags and runs it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::channel::mpsc;
use futures::{StreamExt, stream};
use wfe_core::election::Candidate;
use wfe_core::history::Limits;
use wfe_core::observed::Settings;
use wfe_peers::audit::{AuditSink, HttpSink, JsonlSink};
use wfe_peers::catalog::Catalog;
use wfe_peers::client::{self, OnExchange};
use wfe_peers::data_storage::DataStorage;

use crate::args::{LimitArgs, RunArgs};
use crate::audit::outbox::{BATCH, Outbox};
use crate::base::{self, Base};
use crate::certificates::Certificates;
use crate::duties::Duties;
use crate::election::{Elector, Leadership};
use crate::executor::Executors;
use crate::metrics::CacheMetrics;
use crate::platform::Platform;
use crate::reconcile::{Schema, Shared};
use crate::recorder::Recorder;
use crate::slots::Slots;
use crate::view::View;
use crate::vitals;
use crate::watches::{self, StartTimes, Trigger, crd_rules};

/// Data Storage closes a connection after this time and commits nothing afterwards.
const SERVER_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline of a request with which Data Storage is asked for a workflow.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(10);

/// Reconciles WorkflowExecutions until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> Result<()> {
    args.limits.check()?;
    args.certificates.check()?;
    let (base, mut registry) = Base::connect(&args).await?;
    let server = args.data_storage.connect(&base.client);
    let server = server.context("--data-storage-url")?;
    let sink = sink(&args, server.clone())?;
    let catalog = catalog(&args, &base, server)?;
    let namespace = &args.execution.execution_namespace;
    let start_times = StartTimes::default();
    let (executors, changes) = Executors::start(&base.client, namespace, &start_times);
    let (caches, triggers) = watches::start(
        &base.client,
        &args.watch_namespace,
        namespace,
        start_times,
        changes,
    );
    let collector = CacheMetrics {
        caches: caches.clone(),
        watches: base.watch_ages.clone(),
    };
    registry.register_collector(Box::new(collector));
    let readiness = base.readiness.clone();
    let endpoints = args.process.serve(readiness.clone(), registry, &base.stop);
    endpoints.await?;
    vitals::end_when_stuck(readiness.clone());
    let leadership = if args.leader_elect {
        Leadership::default()
    } else {
        Leadership::always()
    };
    let (recorder, mut publisher) = Recorder::new(&base.client, base.metrics.clone());
    let mut elector = elector(&args, &base, leadership.clone(), recorder.clone()).await?;
    // The outbox requests at most one reconcile per event of a batch.
    let (requeue, requeued) = mpsc::channel(BATCH);
    let triggers = stream::select(triggers, requeued.map(Trigger::Execution));
    let triggers = triggers.take_until(base.stop.clone().cancelled_owned());
    let outbox = Outbox::new(
        sink,
        base.metrics.clone(),
        requeue.clone(),
        base.stop.clone(),
        leadership.clone(),
    );
    let platform = Platform::new(
        args.platform.clone(),
        args.watch_namespace.clone(),
        &base.client,
        &catalog,
    )?;
    let view = Arc::new(View::new(caches.clone()));
    let shared = Shared {
        slots: Arc::new(Slots::new(view.clone(), args.max_running())),
        view,
        executors: executors.clone(),
        catalog,
        outbox: Arc::new(outbox),
        notified: Arc::default(),
        failing: Arc::default(),
        leadership,
        watches: base.watch_ages.clone(),
        settings: Arc::new(settings(
            &args.limits,
            namespace.clone(),
            args.execution.default_service_account.clone(),
        )),
        recorder,
        metrics: base.metrics.clone(),
        schema: Schema::new(readiness.clone()),
    };
    let certificates = Certificates::new(&base.client, &args.certificates);
    let duties = Duties::new(
        &base,
        shared,
        requeue,
        args.concurrency,
        certificates,
        platform,
    );
    let synced = async {
        if caches.synced().await.is_ok() && executors.synced().await.is_ok() {
            caches.refuse_older_shape()?;
            readiness.set(base::CACHES_SYNCED, true);
            tracing::info!("caches synced");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = duties.run(triggers.boxed(), synced, &mut elector, &mut publisher) => ended?,
        () = vitals::beat(&readiness, &base.watch_ages) => {}
        () = crd_rules::watch(&base.client, &readiness) => {}
    }
    if let Some(mut elector) = elector {
        elector.release().await;
    }
    tracing::info!("shutdown complete");
    Ok(())
}

/// `None`: this process is the only one. The elector has a connection of its own, so that no other
/// request delays a renewal.
async fn elector(
    args: &RunArgs,
    base: &Base,
    leadership: Leadership,
    recorder: Recorder,
) -> Result<Option<Elector>> {
    if !args.leader_elect {
        return Ok(None);
    }
    let counted = base.metrics.clone();
    let count: OnExchange = Arc::new(move |exchange| counted.kube_request(exchange));
    let client = client::connect_observed(count, None).await?;
    let namespace = args.lease_namespace.as_deref();
    let namespace = namespace.unwrap_or(client.default_namespace());
    let (name, metrics) = (&args.lease_name, base.metrics.clone());
    let candidate = Candidate::new(identity());
    let elector = Elector::new(
        &client, namespace, name, candidate, leadership, recorder, metrics,
    );
    Ok(Some(elector))
}

/// A name of this process that no other has, also after a restart of the pod.
fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "wfe-controller".to_owned());
    let started = jiff::Timestamp::now().as_nanosecond();
    format!("{host}_{}_{started:x}", std::process::id())
}

/// The catalog; the entries that cannot be run are counted and noted.
fn catalog(
    args: &RunArgs,
    base: &Base,
    server: Option<Arc<DataStorage>>,
) -> Result<Arc<dyn Catalog>> {
    let rejected = base.metrics.catalog_rejected_entries.clone();
    let readiness = base.readiness.clone();
    let catalog = args.catalog.open(
        &base.client,
        server,
        LOOKUP_DEADLINE,
        base.stop.clone(),
        move |errors| readiness.report_rejected_entries(&rejected, errors),
    );
    Ok(catalog?)
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
        default_resources: limits.default_resources.clone(),
        ttl_after_finished: Some(limits.ttl_after_finished).filter(|it| !it.is_zero()),
        max_waiting_per_target: limits.max_waiting_per_target,
        limits: Limits {
            cooldown: limits.cooldown,
            backoff_base: limits.backoff_base,
            backoff_max: limits.backoff_max,
            max_consecutive_failures: limits.max_consecutive_failures,
        },
    }
}

/// Data Storage if `--data-storage-url` is given, else the audit file.
fn sink(args: &RunArgs, server: Option<Arc<DataStorage>>) -> Result<Arc<dyn AuditSink>> {
    let Some(server) = server else {
        let sink = JsonlSink::open(&args.audit_file)
            .with_context(|| format!("--audit-file {}", args.audit_file.display()))?;
        return Ok(Arc::new(sink));
    };
    if args.data_storage_timeout <= SERVER_DEADLINE {
        tracing::warn!(
            "--data-storage-timeout is not longer than Data Storage's own deadline of 30s: after a crash an audit event may be stored twice"
        );
    }
    Ok(Arc::new(HttpSink::new(server, args.data_storage_timeout)))
}
