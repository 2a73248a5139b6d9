//! Sends a batch, and finds the one event in it that the sink does not take.

use std::ops::Range;

use tokio::time::Instant;
use wfe_peers::audit::NotRecorded;

use super::{Batch, FIRST_PAUSE, Outbox, Trouble, pauses};

/// How often an event is tried again that only a failure speaks against.
pub(super) const TRIES_OF_A_SUSPECT: usize = 3;
/// So many events that fail while none is taken are an outage: a WorkflowExecution has up to six.
const MOST_SUSPECTS: usize = 24;

/// What came of sending a part.
enum Sent {
    Taken,
    Refused(String),
    Failed(String),
}

impl Outbox {
    /// Sends a batch. An event that the sink does not take for its content is found by halving. Where
    /// it says so by failing (`looks`), only if it takes others afterwards: one part is held back for
    /// that.
    pub(super) async fn send(&self, batch: &Batch, looks: bool) -> Result<(), Trouble> {
        let whole = 0..batch.events.len();
        let mut parts = Vec::from([whole]);
        let (mut suspects, mut taken) = (Vec::new(), false);
        while parts.len() > usize::from(!suspects.is_empty()) {
            let Some(part) = parts.pop() else { break };
            let (why, refused) = match self.send_part(batch, part.clone()).await? {
                Sent::Taken => {
                    taken = true;
                    continue;
                }
                Sent::Refused(why) => (why, true),
                Sent::Failed(why) if looks => (why, false),
                Sent::Failed(why) => return Err(failed(why)),
            };
            match halves(&part) {
                // The first half next: what happened first is sent first.
                Some((first, second)) => parts.extend([second, first]),
                None if refused => self.reject(batch, part.start, &why),
                None if !taken && suspects.len() >= MOST_SUSPECTS => return Err(failed(why)),
                None => suspects.push(part),
            }
        }
        let mut rejected = Vec::new();
        for part in suspects {
            rejected.extend(self.fails_again(batch, &part).await?.map(|why| (part, why)));
        }
        let witness = match parts.pop() {
            Some(part) => Some(self.send_part(batch, part).await?),
            None => None,
        };
        match (rejected.first(), witness) {
            (None, None | Some(Sent::Taken)) => Ok(()),
            (Some(_), Some(Sent::Taken)) => {
                for (part, _) in rejected {
                    // Once more: it may have been the sink until a moment ago.
                    match self.send_part(batch, part.clone()).await? {
                        Sent::Taken => {}
                        Sent::Refused(why) | Sent::Failed(why) => {
                            self.reject(batch, part.start, &why);
                        }
                    }
                }
                Ok(())
            }
            // Nobody knows whether it is the event or the sink.
            (Some((_, why)), _) => Err(failed(why.clone())),
            (None, Some(Sent::Refused(why) | Sent::Failed(why))) => Err(failed(why)),
        }
    }

    /// Whether the sink goes on to fail on one event, and how.
    async fn fails_again(
        &self,
        batch: &Batch,
        part: &Range<usize>,
    ) -> Result<Option<String>, Trouble> {
        let mut pauses = pauses().take(TRIES_OF_A_SUSPECT);
        loop {
            let why = match self.send_part(batch, part.clone()).await? {
                Sent::Taken => return Ok(None),
                Sent::Refused(why) | Sent::Failed(why) => why,
            };
            let Some(pause) = pauses.next() else {
                return Ok(Some(why));
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn send_part(&self, batch: &Batch, part: Range<usize>) -> Result<Sent, Trouble> {
        let events = batch.events.get(part.clone()).unwrap_or_default();
        if events.is_empty() {
            return Ok(Sent::Taken);
        }
        let of_part = || {
            batch
                .uids
                .get(part.clone())
                .unwrap_or_default()
                .iter()
                .zip(events)
        };
        match self.sink.record(events).await {
            Ok(()) => {
                for (uid, event) in of_part() {
                    self.settle(uid, event.event_type, "delivered");
                }
                Ok(Sent::Taken)
            }
            Err(NotRecorded::Refused(why)) => Ok(Sent::Refused(why)),
            Err(NotRecorded::Failed(why)) => {
                // Its answer may be about the end of what it did, not about the middle.
                let known = self.sink.recorded(events).await?;
                if !known.into_iter().all(|it| it) {
                    return Ok(Sent::Failed(why));
                }
                for (uid, event) in of_part() {
                    self.settle(uid, event.event_type, "found");
                }
                Ok(Sent::Taken)
            }
            Err(NotRecorded::Unavailable(why)) => Err(Trouble {
                why,
                unanswered: false,
                failed: false,
            }),
            Err(NotRecorded::Unanswered { why, settled_after }) => {
                let settles = Instant::now() + settled_after;
                let took_its_time = settled_after < FIRST_PAUSE;
                for (uid, event) in of_part() {
                    self.ledger().doubtful(uid, event.event_type, settles);
                }
                Err(Trouble {
                    why,
                    unanswered: took_its_time,
                    failed: false,
                })
            }
        }
    }

    fn reject(&self, batch: &Batch, index: usize, why: &str) {
        let (Some(uid), Some(event)) = (batch.uids.get(index), batch.events.get(index)) else {
            return;
        };
        tracing::error!(
            namespace = event.namespace,
            name = event.resource_id,
            event_type = event.event_type.as_str(),
            why,
            "the audit sink does not take this event: it is set aside"
        );
        self.change(|ledger| ledger.rejected(uid, event.event_type, why));
        self.metrics.audit_event(event.event_type, "rejected");
    }
}

fn failed(why: String) -> Trouble {
    Trouble {
        why,
        unanswered: false,
        failed: true,
    }
}

fn halves(part: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let middle = usize::midpoint(part.start, part.end);
    (part.len() > 1).then_some((part.start..middle, middle..part.end))
}
