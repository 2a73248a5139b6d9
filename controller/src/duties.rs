//! What the leader does, and when: standby keeps the caches warm, the leader reconciles, sweeps,
//! delivers the audit trail, publishes Events, renews the webhook's certificate and runs the reconcilers
//! of the platform, until it is stopped or loses the Lease.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::channel::mpsc::{Receiver, Sender, channel};
use futures::{SinkExt, StreamExt, stream};
use kube::runtime::controller::{Config, ReconcileRequest, applier};
use kube::runtime::reflector::ObjectRef;
use tokio_util::sync::CancellationToken;
use wfe_model::workflow_execution::WorkflowExecution;

use crate::audit::outbox::Outbox;
use crate::base::Base;
use crate::certificates::Certificates;
use crate::election::{Elector, NotLeading};
use crate::metrics::Metrics;
use crate::platform::Platform;
use crate::reconcile::{Lane, Reconciler, Shared, reconcile, retry};
use crate::recorder::Publisher;
use crate::sweep::Sweep;
use crate::view::View;
use crate::watches::{Caches, Trigger, Triggers};

/// Requests that are on their way to a lane, which takes them at once.
const LANE: usize = 64;
/// Time for open reconciles to end after SIGTERM; the default grace period of a pod is 30 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);

/// What the leader does.
pub struct Duties {
    stop: CancellationToken,
    caches: Caches,
    reconciler: Arc<Reconciler>,
    sweep: Sweep,
    outbox: Arc<Outbox>,
    view: Arc<View>,
    metrics: Metrics,
    concurrency: u16,
    certificates: Option<Certificates>,
    platform: Platform,
}

impl Duties {
    /// The duties of this process; they send WorkflowExecutions that may proceed to `wake`.
    pub fn new(
        base: &Base,
        shared: Shared,
        wake: Sender<ObjectRef<WorkflowExecution>>,
        concurrency: u16,
        certificates: Option<Certificates>,
        platform: Platform,
    ) -> Self {
        Self {
            stop: base.stop.clone(),
            caches: shared.view.caches().clone(),
            sweep: Sweep::new(&base.client, &shared),
            outbox: shared.outbox.clone(),
            view: shared.view.clone(),
            metrics: base.metrics.clone(),
            reconciler: Arc::new(Reconciler::new(&base.client, shared, wake)),
            concurrency,
            certificates,
            platform,
        }
    }

    /// Keeps the caches warm until this process leads, then carries out the duties until `stop`.
    /// `synced` ends when all caches are synced, or with the reason not to begin.
    pub async fn run(
        &self,
        mut triggers: Triggers,
        synced: impl Future<Output = Result<()>>,
        elector: &mut Option<Elector>,
        publisher: &mut Publisher,
    ) -> Result<()> {
        let led = async {
            synced.await?;
            match elector {
                Some(elector) => elector.acquire().await,
                None => drop(self.metrics.leader.set(1)),
            }
            anyhow::Ok(())
        };
        // The caches are filled only while the triggers are polled. What changes before this process
        // leads is decided on when it does.
        tokio::select! {
            led = led => led?,
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
            () = self.reconcile(triggers, publisher) => {}
            () = grace_over(&self.stop) => {}
            () = lost => bail!(NotLeading),
        }
        Ok(())
    }

    /// Reconciles every WorkflowExecution, then those that change, until `stop`.
    async fn reconcile(&self, triggers: Triggers, publisher: &mut Publisher) {
        self.outbox.lead();
        let all = self.caches.workflow_executions();
        let all = all.iter().map(|wfe| ObjectRef::from_obj(wfe.as_ref()));
        let all: Vec<_> = all.map(Trigger::Execution).collect();
        let reconciler = self.reconciler.clone();
        let requests = stream::iter(all).chain(triggers).flat_map(move |trigger| {
            stream::iter(match trigger {
                Trigger::Execution(reference) => vec![reference],
                Trigger::Target(target) => reconciler.concerned(&target),
            })
        });
        let (starting, starting_requests) = channel(LANE);
        let (started, started_requests) = channel(LANE);
        let caches = self.caches.clone();
        let routing = async move {
            let mut requests = std::pin::pin!(requests);
            while let Some(reference) = requests.next().await {
                let wfe = caches.workflow_execution(&reference);
                let lane = wfe.map_or(Lane::Started, |it| Lane::of(&it));
                let mut lane = match lane {
                    Lane::Starting => starting.clone(),
                    Lane::Started => started.clone(),
                };
                // Both ends live as long as this function.
                let _ = lane.send(reference).await;
            }
        };
        let passes = async {
            tokio::join!(
                routing,
                self.passes(Lane::Starting, starting_requests),
                self.passes(Lane::Started, started_requests)
            )
        };
        let ended = CancellationToken::new();
        let certificates = async {
            if let Some(certificates) = &self.certificates {
                self.stop.run_until_cancelled(certificates.run()).await;
            }
        };
        let acting = async {
            tokio::join!(
                passes,
                certificates,
                self.platform.run(&self.stop),
                self.stop.run_until_cancelled(self.sweep.run()),
                self.outbox.run(self.view.as_ref())
            );
            ended.cancel();
        };
        tokio::join!(acting, publisher.run(&ended));
    }

    /// Runs the passes of one lane until its requests end.
    async fn passes(&self, lane: Lane, requests: Receiver<ObjectRef<WorkflowExecution>>) {
        let passes = applier(
            move |wfe, reconciler| Box::pin(reconcile(wfe, reconciler, lane)),
            retry,
            self.reconciler.clone(),
            self.caches.store(),
            requests.map(|it| Ok::<_, Infallible>(ReconcileRequest::from(it))),
            Config::default().concurrency(lane.share(self.concurrency)),
        );
        passes.for_each(|_| futures::future::ready(())).await;
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
