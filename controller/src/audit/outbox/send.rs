//! Sends a batch, and finds the events in it that the sink rejects.

use std::ops::Range;

use tokio::time::Instant;
use wfe_peers::audit::NotRecorded;

use super::{Batch, DeliveryError, MIN_RETRY_DELAY, Outbox, retry_delays};

/// Number of retries of an event on which the sink fails without naming its content as the cause.
pub(super) const SUSPECT_RETRIES: usize = 3;
/// Number of suspect events that count as an outage if the sink has accepted no event meanwhile.
/// One WorkflowExecution has at most six events.
const MAX_SUSPECTS: usize = 24;

/// Result of sending a part of a batch.
enum Sent {
    Accepted,
    Rejected(String),
    Failed(String),
}

impl Outbox {
    /// Sends a batch. An event that the sink rejects for its content is found by bisection. With
    /// `isolate`, events on which the sink fails are searched as well. Such an event counts as
    /// rejected only if the sink accepts another part afterwards; one part is held back for this
    /// check.
    pub(super) async fn send(&self, batch: &Batch, isolate: bool) -> Result<(), DeliveryError> {
        let whole = 0..batch.events.len();
        let mut parts = Vec::from([whole]);
        let (mut suspects, mut any_accepted) = (Vec::new(), false);
        while parts.len() > usize::from(!suspects.is_empty()) {
            let Some(part) = parts.pop() else { break };
            let (error, rejected) = match self.send_part(batch, part.clone()).await? {
                Sent::Accepted => {
                    any_accepted = true;
                    continue;
                }
                Sent::Rejected(error) => (error, true),
                Sent::Failed(error) if isolate => (error, false),
                Sent::Failed(error) => return Err(batch_failed(error)),
            };
            match halves(&part) {
                // The first half is sent next, to keep the order of events.
                Some((first, second)) => parts.extend([second, first]),
                None if rejected => self.reject(batch, part.start, &error),
                None if !any_accepted && suspects.len() >= MAX_SUSPECTS => {
                    return Err(batch_failed(error));
                }
                None => suspects.push(part),
            }
        }
        let mut rejected = Vec::new();
        for part in suspects {
            let error = self.retry_suspect(batch, &part).await?;
            rejected.extend(error.map(|error| (part, error)));
        }
        let control = match parts.pop() {
            Some(part) => Some(self.send_part(batch, part).await?),
            None => None,
        };
        match (rejected.first(), control) {
            (None, None | Some(Sent::Accepted)) => Ok(()),
            (Some(_), Some(Sent::Accepted)) => {
                for (part, _) in rejected {
                    // The last retry may have failed because of the sink, which has recovered
                    // since.
                    match self.send_part(batch, part.clone()).await? {
                        Sent::Accepted => {}
                        Sent::Rejected(error) | Sent::Failed(error) => {
                            self.reject(batch, part.start, &error);
                        }
                    }
                }
                Ok(())
            }
            // Without an accepted part the cause may be the event or the sink.
            (Some((_, error)), _) => Err(batch_failed(error.clone())),
            (None, Some(Sent::Rejected(error) | Sent::Failed(error))) => Err(batch_failed(error)),
        }
    }

    /// Retries one suspect event. Returns the last error, or `None` if the sink has accepted the
    /// event.
    async fn retry_suspect(
        &self,
        batch: &Batch,
        part: &Range<usize>,
    ) -> Result<Option<String>, DeliveryError> {
        let mut delays = retry_delays().take(SUSPECT_RETRIES);
        loop {
            let error = match self.send_part(batch, part.clone()).await? {
                Sent::Accepted => return Ok(None),
                Sent::Rejected(error) | Sent::Failed(error) => error,
            };
            let Some(delay) = delays.next() else {
                return Ok(Some(error));
            };
            tokio::time::sleep(delay).await;
        }
    }

    async fn send_part(&self, batch: &Batch, part: Range<usize>) -> Result<Sent, DeliveryError> {
        let events = batch.events.get(part.clone()).unwrap_or_default();
        if events.is_empty() {
            return Ok(Sent::Accepted);
        }
        let entries = || {
            batch
                .uids
                .get(part.clone())
                .unwrap_or_default()
                .iter()
                .zip(events)
        };
        match self.sink.record(events).await {
            Ok(()) => {
                for (uid, event) in entries() {
                    self.mark_delivered(uid, event.event_type, "delivered");
                }
                Ok(Sent::Accepted)
            }
            Err(NotRecorded::Refused(error)) => Ok(Sent::Rejected(error)),
            Err(NotRecorded::Failed(error)) => {
                // The sink may have failed after it had stored the events.
                let recorded = self.sink.recorded(events).await?;
                if !recorded.into_iter().all(|it| it) {
                    return Ok(Sent::Failed(error));
                }
                for (uid, event) in entries() {
                    self.mark_delivered(uid, event.event_type, "found");
                }
                Ok(Sent::Accepted)
            }
            Err(NotRecorded::Unavailable(message)) => Err(DeliveryError {
                message,
                outage: false,
                batch_failed: false,
            }),
            Err(NotRecorded::Unanswered { why, settled_after }) => {
                let settles = Instant::now() + settled_after;
                for (uid, event) in entries() {
                    self.ledger().mark_uncertain(uid, event.event_type, settles);
                }
                Err(DeliveryError {
                    message: why,
                    outage: settled_after < MIN_RETRY_DELAY,
                    batch_failed: false,
                })
            }
        }
    }

    fn reject(&self, batch: &Batch, index: usize, error: &str) {
        let (Some(uid), Some(event)) = (batch.uids.get(index), batch.events.get(index)) else {
            return;
        };
        tracing::error!(
            namespace = event.namespace,
            name = event.resource_id,
            event_type = event.event_type.as_str(),
            error,
            "audit sink rejected the event, not retrying it"
        );
        self.update_ledger(|ledger| ledger.mark_rejected(uid, event.event_type, error));
        self.metrics.audit_event(event.event_type, "rejected");
    }
}

fn batch_failed(message: String) -> DeliveryError {
    DeliveryError {
        message,
        outage: false,
        batch_failed: true,
    }
}

fn halves(part: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let middle = usize::midpoint(part.start, part.end);
    (part.len() > 1).then_some((part.start..middle, middle..part.end))
}
