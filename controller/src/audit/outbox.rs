//! Delivers audit events, one batch at a time.
//!
//! A pass only offers the events of an object ([`Outbox::offer`]) and never waits for the sink.
//! Delivery is retried without limit, with growing delays; after a failure the sink's health is
//! checked first.

mod send;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use enumset::EnumSet;
use futures::SinkExt;
use futures::channel::mpsc::Sender;
use kube::runtime::reflector::ObjectRef;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wfe_model::audit::{AuditEvent, EventType};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_peers::audit::{AuditSink, Unasked};

use super::ledger::{DeliveryState, Ledger, PendingEvents};
use crate::election::{Leadership, NotLeading};
use crate::metrics::Metrics;
use wfe_core::audit;
use wfe_core::observed::Delivery;

/// Maximum number of events in a batch: Data Storage takes 80 ms for 100 events, which are about
/// 200 KB.
pub const BATCH: usize = 100;
/// How long the first events of an execution are held back until its workflow starts, so that an
/// execution takes two requests: one at its start and one at its end.
const HOLD: Duration = Duration::from_secs(10);
/// Delays after failures. The maximum bounds the time until the sink's recovery is noticed.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(500);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);
/// Number of failures in a row between two searches for the event that causes them.
const ISOLATION_INTERVAL: usize = 4;
/// Number of failures in a row that count as an outage, which conditions of WorkflowExecutions
/// report.
const OUTAGE_THRESHOLD: usize = 2;

/// Source of the WorkflowExecutions from which events are derived.
pub trait ObjectReader: Sync {
    /// The newest known version of an object.
    fn newest(&self, reference: &ObjectRef<WorkflowExecution>) -> Option<Arc<WorkflowExecution>>;
}

/// Delivers audit events to the sink; see the module documentation.
pub struct Outbox {
    ledger: Mutex<Ledger>,
    /// Last error of the sink during an outage.
    outage: Mutex<Option<String>>,
    offered: Notify,
    sink: Arc<dyn AuditSink>,
    /// Until then the sink may commit requests of an earlier leader.
    earlier_settle: Mutex<Instant>,
    leadership: Leadership,
    metrics: Metrics,
    /// Requests a reconcile of an object whose delivery state has changed.
    requeue: Sender<ObjectRef<WorkflowExecution>>,
    stop: CancellationToken,
}

/// Events of one request, each with the uid of its WorkflowExecution.
#[derive(Default)]
struct Batch {
    uids: Vec<String>,
    events: Vec<AuditEvent>,
}

/// Why a batch was not delivered completely.
struct DeliveryError {
    message: String,
    /// The request waited until its deadline, or the sink failed its health check afterwards: this
    /// counts as an outage without a second failure.
    outage: bool,
    /// The sink is healthy but failed on this batch: one of the events may be the cause.
    batch_failed: bool,
}

impl From<Unasked> for DeliveryError {
    fn from(error: Unasked) -> Self {
        Self {
            message: error.0,
            outage: false,
            batch_failed: false,
        }
    }
}

impl From<NotLeading> for DeliveryError {
    fn from(error: NotLeading) -> Self {
        Self {
            message: error.to_string(),
            outage: false,
            batch_failed: false,
        }
    }
}

impl Outbox {
    /// An outbox without events. It sends an object to `requeue` when the object's delivery state
    /// has changed. After `stop` it finishes the current batch and ends.
    pub fn new(
        sink: Arc<dyn AuditSink>,
        metrics: Metrics,
        requeue: Sender<ObjectRef<WorkflowExecution>>,
        stop: CancellationToken,
        leadership: Leadership,
    ) -> Self {
        Self {
            ledger: Mutex::default(),
            outage: Mutex::default(),
            offered: Notify::new(),
            earlier_settle: Mutex::new(Instant::now() + sink.settles_within()),
            leadership,
            sink,
            metrics,
            requeue,
            stop,
        }
    }

    /// This process begins to lead: until now another one may have sent events.
    pub fn lead(&self) {
        *self.earlier_settle.lock() = Instant::now() + self.sink.settles_within();
    }

    /// Queues the unacknowledged events of `wfe`. `new` are the events of a transition that this
    /// process has just stored: no process can have sent them before. Others may have been sent by
    /// an earlier process: the sink is asked for them when it can no longer commit such a request.
    pub fn offer(&self, wfe: &WorkflowExecution, new: EnumSet<EventType>) {
        let (uid, open) = (uid(wfe), audit::unconfirmed(wfe));
        if open.is_empty() {
            self.update_ledger(|ledger| ledger.forget(uid));
            return;
        }
        let reference = ObjectRef::from_obj(wfe);
        let settles = Some(*self.earlier_settle.lock()).filter(|it| *it > Instant::now());
        let held_until = awaits_start(wfe).then(|| Instant::now() + HOLD);
        let new = new & open;
        self.update_ledger(|ledger| {
            ledger.offer(uid, &reference, open, new, settles, held_until);
        });
        self.offered.notify_one();
    }

    /// The delivery state of `wfe`, for decisions.
    pub fn delivery(&self, wfe: &WorkflowExecution) -> Delivery {
        let open = audit::unconfirmed(wfe);
        if open.is_empty() {
            self.update_ledger(|ledger| ledger.forget(uid(wfe)));
            return Delivery::default();
        }
        let state = self.ledger().state(uid(wfe));
        let DeliveryState {
            queued,
            delivered,
            rejected,
            why,
        } = state;
        let waiting = open - delivered - rejected;
        Delivery {
            waiting,
            queued: queued.is_superset(waiting),
            rejected: why.map(|why| (rejected, why)),
            outage: self.outage.lock().clone(),
        }
    }

    /// Drops the undelivered events of a WorkflowExecution whose finalizer was removed.
    pub fn abandon(&self, wfe: &WorkflowExecution) {
        self.forget(uid(wfe), "abandoned");
    }

    fn forget(&self, uid: &str, result: &'static str) {
        for event_type in self.update_ledger(|ledger| ledger.forget(uid)) {
            self.metrics.audit_event(event_type, result);
        }
    }

    /// Delivers queued events, derived from `objects`, until `stop`.
    pub async fn run(&self, objects: &impl ObjectReader) {
        let stop = &self.stop;
        let (mut failures, mut batch_failures) = (0, 0_usize);
        let mut delays = retry_delays();
        while let Some(pending) = stop.run_until_cancelled(self.next()).await {
            match self
                .deliver(&pending, objects, failures, batch_failures)
                .await
            {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!("audit delivery resumed");
                    }
                    (failures, batch_failures, delays) = (0, 0, retry_delays());
                    *self.outage.lock() = None;
                }
                Err(error) => {
                    failures += if error.outage { OUTAGE_THRESHOLD } else { 1 };
                    batch_failures = if error.batch_failed {
                        batch_failures + 1
                    } else {
                        0
                    };
                    self.report_failure(error.message, failures).await;
                    let delay = delays.next().unwrap_or(MAX_RETRY_DELAY);
                    stop.run_until_cancelled(tokio::time::sleep(delay)).await;
                }
            }
        }
    }

    /// Waits until there are events to deliver.
    async fn next(&self) -> Vec<PendingEvents> {
        loop {
            let offered = self.offered.notified();
            let now = Instant::now();
            let pending = self.update_ledger(|ledger| {
                ledger.release(now);
                ledger.next(BATCH, now)
            });
            if !pending.is_empty() {
                return pending;
            }
            let due = self.ledger().next_due();
            match due {
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, offered).await;
                }
                None => offered.await,
            }
        }
    }

    /// Logs a failure. At the start of an outage it requeues every WorkflowExecution with waiting
    /// events, so that their conditions report the outage.
    async fn report_failure(&self, message: String, failures: usize) {
        tracing::warn!(error = message, failures, "audit delivery failed, retrying");
        if failures < OUTAGE_THRESHOLD {
            return;
        }
        let known = self.outage.lock().replace(message).is_some();
        if !known {
            let queued = self.ledger().queued();
            for reference in queued {
                self.request_reconcile(reference).await;
            }
        }
    }

    async fn request_reconcile(&self, reference: ObjectRef<WorkflowExecution>) {
        // After `stop` nothing receives from the channel, and a send could wait forever.
        let mut requeue = self.requeue.clone();
        self.stop.run_until_cancelled(requeue.send(reference)).await;
    }

    async fn deliver(
        &self,
        pending: &[PendingEvents],
        objects: &impl ObjectReader,
        failures: usize,
        batch_failures: usize,
    ) -> Result<(), DeliveryError> {
        self.leadership.check()?;
        if failures > 0 {
            self.sink.is_well().await?;
        }
        let (mut unsent, mut uncertain) = (Batch::default(), Batch::default());
        let mut ended = Vec::new();
        for pending in pending {
            let Some(wfe) = objects
                .newest(&pending.reference)
                .filter(|wfe| uid(wfe) == pending.uid)
            else {
                tracing::error!(
                    namespace = pending.reference.namespace,
                    name = pending.reference.name,
                    "WorkflowExecution is gone, dropping its undelivered audit events"
                );
                self.forget(&pending.uid, "lost");
                continue;
            };
            let events = audit::events(&wfe, pending.waiting);
            if events.len() < pending.waiting.len() {
                // The status does not show every queued transition any more: another client has
                // changed it. The next pass offers the events of the current status.
                self.update_ledger(|ledger| ledger.forget(&pending.uid));
                self.request_reconcile(pending.reference.clone()).await;
                continue;
            }
            if wfe.phase().is_some_and(Phase::is_final) {
                ended.push(pending);
            }
            for event in events {
                let batch = if pending.unsent.contains(event.event_type) {
                    &mut unsent
                } else {
                    &mut uncertain
                };
                batch.push(pending.uid.clone(), event);
            }
        }
        // Uncertain events of an object precede its unsent ones. If the sink cannot be asked about
        // them, only events of other objects are sent, to keep the order.
        let (mut batch, query_error) = match self.remove_recorded(&uncertain).await {
            Ok(rest) => (rest, None),
            Err(error) => {
                unsent.remove_objects(&uncertain.uids);
                (Batch::default(), Some(error))
            }
        };
        batch.append(unsent);
        // The search for the event that makes the sink fail costs many requests, so it is not
        // repeated at every attempt.
        let isolate = batch_failures.is_power_of_two()
            || batch_failures > 0 && batch_failures.is_multiple_of(ISOLATION_INTERVAL);
        let delivered = self.send(&batch, isolate).await;
        for pending in ended {
            if self.ledger().state(&pending.uid).queued.is_empty() {
                self.request_reconcile(pending.reference.clone()).await;
            }
        }
        delivered.and(query_error.map_or(Ok(()), Err))
    }

    /// Asks the sink which events of a batch it has, and returns the others.
    async fn remove_recorded(&self, batch: &Batch) -> Result<Batch, DeliveryError> {
        let mut rest = Batch::default();
        if batch.events.is_empty() {
            return Ok(rest);
        }
        let recorded = self.sink.recorded(&batch.events).await?;
        let entries = batch.uids.iter().zip(&batch.events);
        for ((uid, event), recorded) in entries.zip(recorded) {
            if recorded {
                self.mark_delivered(uid, event.event_type, "found");
            } else {
                self.ledger().mark_absent(uid, event.event_type);
                rest.push(uid.clone(), event.clone());
            }
        }
        Ok(rest)
    }

    fn mark_delivered(&self, uid: &str, event_type: EventType, result: &'static str) {
        self.update_ledger(|ledger| ledger.mark_delivered(uid, event_type));
        self.metrics.audit_event(event_type, result);
    }

    /// Changes the ledger and updates the metric of undelivered events.
    fn update_ledger<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger();
        let changed = change(&mut ledger);
        self.metrics.audit_pending(ledger.undelivered());
        changed
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }
}

impl Batch {
    fn push(&mut self, uid: String, event: AuditEvent) {
        self.uids.push(uid);
        self.events.push(event);
    }

    /// Removes the events of the WorkflowExecutions with these uids.
    fn remove_objects(&mut self, uids: &[String]) {
        let uids_of_events = std::mem::take(&mut self.uids).into_iter();
        let entries = uids_of_events.zip(std::mem::take(&mut self.events));
        let others = entries.filter(|(uid, _)| !uids.contains(uid));
        (self.uids, self.events) = others.unzip();
    }

    fn append(&mut self, other: Self) {
        self.uids.extend(other.uids);
        self.events.extend(other.events);
    }
}

fn retry_delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(MIN_RETRY_DELAY)
        .with_max_delay(MAX_RETRY_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}

/// The event of the workflow's start is still to come.
fn awaits_start(wfe: &WorkflowExecution) -> bool {
    let ends =
        wfe.phase().is_some_and(Phase::is_final) || wfe.metadata.deletion_timestamp.is_some();
    !ends && !audit::types(wfe).contains(EventType::WorkflowStarted)
}

fn uid(wfe: &WorkflowExecution) -> &str {
    wfe.metadata.uid.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests;
