//! Delivers what waits, one batch at a time.
//!
//! Passes only say what has happened ([`Outbox::offer`]); nothing waits for the sink. Delivery goes on
//! for ever: with longer and longer pauses while the sink is down, asking whether it is well before
//! the next try.

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

use super::ledger::{Ledger, Parcel, Standing};
use crate::metrics::Metrics;
use wfe_core::audit;
use wfe_core::observed::Delivery;

/// Events of a batch: 100 take the peer 80 ms, and are some 200 KB here.
const BATCH: usize = 100;
/// Pauses after a failure: the sink's return is noticed within seconds.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After so many failures of the sink on what it was sent, the event is looked for again.
const LOOKS: usize = 4;
/// So many failures in a row are an outage: WorkflowExecutions say that they wait for the sink.
const OUTAGE: usize = 2;

/// Where the objects are that are reported.
pub trait Objects: Sync {
    /// The newest version of one.
    fn newest(&self, reference: &ObjectRef<WorkflowExecution>) -> Option<Arc<WorkflowExecution>>;
}

/// See the module.
pub struct Outbox {
    ledger: Mutex<Ledger>,
    /// Why nothing is delivered, while that is so.
    outage: Mutex<Option<String>>,
    offered: Notify,
    sink: Arc<dyn AuditSink>,
    metrics: Metrics,
    /// Whose events are all delivered, or will not be for a while.
    told: Sender<ObjectRef<WorkflowExecution>>,
    stop: CancellationToken,
}

/// Events that go together, and whose they are.
#[derive(Default)]
struct Batch {
    uids: Vec<String>,
    events: Vec<AuditEvent>,
}

/// Why a batch was not delivered whole.
struct Trouble {
    why: String,
    /// Nobody answered, for as long as an answer is waited for.
    unanswered: bool,
    /// The sink failed on the events, though it is well.
    failed: bool,
}

impl From<Unasked> for Trouble {
    fn from(error: Unasked) -> Self {
        Self {
            why: error.0,
            unanswered: false,
            failed: false,
        }
    }
}

impl Outbox {
    /// An empty one: what waits is offered by the passes. `told` hears of WorkflowExecutions that
    /// should be looked at. At `stop` what is being sent is sent to its end.
    pub fn new(
        sink: Arc<dyn AuditSink>,
        metrics: Metrics,
        told: Sender<ObjectRef<WorkflowExecution>>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            ledger: Mutex::default(),
            outage: Mutex::default(),
            offered: Notify::new(),
            sink,
            metrics,
            told,
            stop,
        }
    }

    /// Takes what has happened to `wfe` and is not acknowledged. `new` is what this process has just
    /// stored itself: nobody can have sent it before.
    pub fn offer(&self, wfe: &WorkflowExecution, new: EnumSet<EventType>) {
        let (uid, open) = (uid(wfe), audit::open(wfe));
        if open.is_empty() {
            self.change(|ledger| ledger.forget(uid));
            return;
        }
        let reference = ObjectRef::from_obj(wfe);
        self.change(|ledger| ledger.offer(uid, &reference, open, new & open));
        self.offered.notify_one();
    }

    /// How delivery stands for `wfe`.
    pub fn delivery(&self, wfe: &WorkflowExecution) -> Delivery {
        let open = audit::open(wfe);
        if open.is_empty() {
            self.change(|ledger| ledger.forget(uid(wfe)));
            return Delivery::default();
        }
        let standing = self.ledger().standing(uid(wfe));
        let Standing {
            queued,
            delivered,
            rejected,
            why,
        } = standing;
        let waiting = open - delivered - rejected;
        Delivery {
            waiting,
            queued: queued.is_superset(waiting),
            rejected: why.map(|why| (rejected, why)),
            outage: self.outage.lock().clone(),
        }
    }

    /// Gives up what waits for one that is let go.
    pub fn abandon(&self, wfe: &WorkflowExecution) {
        self.forget(uid(wfe), "abandoned");
    }

    fn forget(&self, uid: &str, result: &'static str) {
        for event_type in self.change(|ledger| ledger.forget(uid)) {
            self.metrics.audit_event(event_type, result);
        }
    }

    /// Delivers until it is to stop; `objects` has what is reported.
    pub async fn run(&self, objects: &impl Objects) {
        let stop = &self.stop;
        let (mut failures, mut failed) = (0, 0_usize);
        let mut pauses = pauses();
        while let Some(parcels) = stop.run_until_cancelled(self.next()).await {
            match self
                .try_to_deliver(&parcels, objects, failures, failed)
                .await
            {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!("the audit sink takes events again");
                    }
                    (failures, failed, pauses) = (0, 0, self::pauses());
                    *self.outage.lock() = None;
                }
                Err(trouble) => {
                    // An answer that did not come has taken its time already.
                    failures += if trouble.unanswered { OUTAGE } else { 1 };
                    failed = if trouble.failed { failed + 1 } else { 0 };
                    self.note(trouble.why, failures).await;
                    let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                    stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                }
            }
        }
    }

    /// Until there is something to deliver.
    async fn next(&self) -> Vec<Parcel> {
        loop {
            let offered = self.offered.notified();
            let parcels = self.ledger().next(BATCH, Instant::now());
            if !parcels.is_empty() {
                return parcels;
            }
            let settles = self.ledger().settles();
            match settles {
                Some(settles) => {
                    let _ = tokio::time::timeout_at(settles, offered).await;
                }
                None => offered.await,
            }
        }
    }

    /// Says that nothing is delivered, in the log each time and to those who wait once.
    async fn note(&self, why: String, failures: usize) {
        tracing::warn!(
            error = why,
            failures,
            "the audit sink did not take the events: they will be sent again"
        );
        if failures < OUTAGE {
            return;
        }
        let known = self.outage.lock().replace(why).is_some();
        if !known {
            let in_line = self.ledger().in_line();
            for reference in in_line {
                self.tell(reference).await;
            }
        }
    }

    async fn tell(&self, reference: ObjectRef<WorkflowExecution>) {
        // Nobody listens while the process ends.
        let mut told = self.told.clone();
        self.stop.run_until_cancelled(told.send(reference)).await;
    }

    async fn try_to_deliver(
        &self,
        parcels: &[Parcel],
        objects: &impl Objects,
        failures: usize,
        failed: usize,
    ) -> Result<(), Trouble> {
        if failures > 0 {
            self.sink.is_well().await?;
        }
        let (mut unsent, mut doubtful) = (Batch::default(), Batch::default());
        let mut ended = Vec::new();
        for parcel in parcels {
            let Some(wfe) = objects
                .newest(&parcel.reference)
                .filter(|wfe| uid(wfe) == parcel.uid)
            else {
                tracing::error!(reference = %parcel.reference, "gone before its audit events were delivered");
                self.forget(&parcel.uid, "lost");
                continue;
            };
            let events = audit::events(&wfe, parcel.waiting);
            if events.len() < parcel.waiting.len() {
                // Somebody has changed the status back: what there is now is offered again.
                self.change(|ledger| ledger.forget(&parcel.uid));
                self.tell(parcel.reference.clone()).await;
                continue;
            }
            if wfe.phase().is_some_and(Phase::is_final) {
                ended.push(parcel);
            }
            for event in events {
                let batch = if parcel.unsent.contains(event.event_type) {
                    &mut unsent
                } else {
                    &mut doubtful
                };
                batch.push(parcel.uid.clone(), event);
            }
        }
        // What is doubtful happened before what is not; where it cannot be asked for, the others go.
        let (mut batch, unasked) = match self.without_known(&doubtful).await {
            Ok(rest) => (rest, None),
            Err(trouble) => {
                unsent.leave_out(&doubtful.uids);
                (Batch::default(), Some(trouble))
            }
        };
        batch.append(unsent);
        // One failure may be a moment's: then the event is looked for, less and less often.
        let looks = failed.is_power_of_two() || failed > 0 && failed.is_multiple_of(LOOKS);
        let delivered = self.send(&batch, looks).await;
        for parcel in ended {
            if self.ledger().standing(&parcel.uid).queued.is_empty() {
                self.tell(parcel.reference.clone()).await;
            }
        }
        delivered.and(unasked.map_or(Ok(()), Err))
    }

    /// Asks the sink what it has of a batch, and leaves the rest.
    async fn without_known(&self, batch: &Batch) -> Result<Batch, Trouble> {
        let mut rest = Batch::default();
        if batch.events.is_empty() {
            return Ok(rest);
        }
        let known = self.sink.recorded(&batch.events).await?;
        let letters = batch.uids.iter().zip(&batch.events);
        for ((uid, event), known) in letters.zip(known) {
            if known {
                self.settle(uid, event.event_type, "found");
            } else {
                self.ledger().absent(uid, event.event_type);
                rest.push(uid.clone(), event.clone());
            }
        }
        Ok(rest)
    }

    fn settle(&self, uid: &str, event_type: EventType, result: &'static str) {
        self.change(|ledger| ledger.delivered(uid, event_type));
        self.metrics.audit_event(event_type, result);
    }

    /// Changes the ledger; the number of those that wait goes with it.
    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger();
        let changed = change(&mut ledger);
        self.metrics.audit_pending(ledger.waiting());
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

    /// Leaves out the events of these.
    fn leave_out(&mut self, uids: &[String]) {
        let letters = std::mem::take(&mut self.uids).into_iter();
        let letters = letters.zip(std::mem::take(&mut self.events));
        let others = letters.filter(|(uid, _)| !uids.contains(uid));
        (self.uids, self.events) = others.unzip();
    }

    fn append(&mut self, other: Self) {
        self.uids.extend(other.uids);
        self.events.extend(other.events);
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

fn uid(wfe: &WorkflowExecution) -> &str {
    wfe.metadata.uid.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests;
