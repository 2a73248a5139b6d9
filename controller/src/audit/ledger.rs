//! Delivery state of the audit events of each WorkflowExecution that has unacknowledged ones. Pure:
//! no clock, no requests.

use std::collections::{BTreeMap, HashMap};

use enumset::EnumSet;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;
use wfe_model::audit::EventType;
use wfe_model::workflow_execution::WorkflowExecution;

/// Delivery state of one WorkflowExecution. Holds sets of event types instead of events, because
/// events of thousands of objects may wait during an outage of the sink.
#[derive(Debug)]
struct Account {
    reference: ObjectRef<WorkflowExecution>,
    /// Position in the queue while events wait for delivery.
    position: Option<u64>,
    happened: EnumSet<EventType>,
    /// Certainly never sent: the sink need not be asked whether it has them.
    unsent: EnumSet<EventType>,
    delivered: EnumSet<EventType>,
    rejected: EnumSet<EventType>,
    /// Error of the sink for the last rejected event.
    why: Option<Box<str>>,
    /// Latest time at which the sink may still commit an unanswered request.
    settles: Option<Instant>,
    /// Until then the events are held back, to share a batch with the next event.
    held_until: Option<Instant>,
}

impl Account {
    fn waiting(&self) -> EnumSet<EventType> {
        self.happened - self.delivered - self.rejected
    }

    /// Earliest time at which the waiting events may be sent; `None`: now.
    fn due(&self) -> Option<Instant> {
        self.settles.max(self.held_until)
    }

    /// Number of waiting events, and of those that are held back.
    fn counts(&self) -> (usize, usize) {
        let waiting = self.waiting().len();
        let held = self.held_until.map_or(0, |_| waiting);
        (waiting, held)
    }
}

/// Delivery state of all WorkflowExecutions, and the queue of those with waiting events.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: HashMap<String, Account>,
    /// Uids of the WorkflowExecutions with waiting events, by position.
    queue: BTreeMap<u64, String>,
    next_position: u64,
    waiting: usize,
    /// Those of them that are held back.
    held: usize,
}

/// Events of one WorkflowExecution that wait for delivery.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PendingEvents {
    pub uid: String,
    pub reference: ObjectRef<WorkflowExecution>,
    pub waiting: EnumSet<EventType>,
    /// Subset that was certainly never sent.
    pub unsent: EnumSet<EventType>,
}

/// Delivery state of the events of one WorkflowExecution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeliveryState {
    /// Waiting for delivery in this process.
    pub queued: EnumSet<EventType>,
    /// Stored by the sink.
    pub delivered: EnumSet<EventType>,
    /// Rejected by the sink.
    pub rejected: EnumSet<EventType>,
    /// Error of the sink for the last rejected event.
    pub why: Option<String>,
}

impl Ledger {
    /// Adds the events `happened` that are neither delivered nor waiting. `unsent` is the subset
    /// that no process can have sent before; the others may be committed by an earlier process until
    /// `settles`. They are held back until `held_until`; a later offer does not prolong this.
    pub(super) fn offer(
        &mut self,
        uid: &str,
        reference: &ObjectRef<WorkflowExecution>,
        happened: EnumSet<EventType>,
        unsent: EnumSet<EventType>,
        settles: Option<Instant>,
        held_until: Option<Instant>,
    ) {
        let account = self
            .accounts
            .entry(uid.to_owned())
            .or_insert_with(|| Account {
                reference: reference.clone(),
                position: None,
                happened: EnumSet::empty(),
                unsent: EnumSet::empty(),
                delivered: EnumSet::empty(),
                rejected: EnumSet::empty(),
                why: None,
                settles: None,
                held_until: None,
            });
        let before = account.counts();
        if !(happened - account.happened - unsent).is_empty() {
            account.settles = account.settles.max(settles);
        }
        account.unsent |= unsent - account.happened;
        account.happened |= happened;
        if account.position.is_none() && !account.waiting().is_empty() {
            account.position = Some(self.next_position);
            self.queue.insert(self.next_position, uid.to_owned());
            self.next_position += 1;
            account.held_until = held_until;
        }
        if held_until.is_none() {
            account.held_until = None;
        }
        let after = account.counts();
        self.count(before, after);
    }

    fn count(&mut self, before: (usize, usize), after: (usize, usize)) {
        self.waiting = self.waiting + after.0 - before.0;
        self.held = self.held + after.1 - before.1;
    }

    /// Ends the time for which events are held back, where it is over.
    pub(super) fn release(&mut self, now: Instant) {
        let is_over = |it: &Account| it.held_until.is_some_and(|until| until <= now);
        for uid in self.queue.values() {
            if let Some(account) = self.accounts.get_mut(uid).filter(|it| is_over(it)) {
                account.held_until = None;
                self.held -= account.waiting().len();
            }
        }
    }

    /// The waiting events of the first WorkflowExecutions in the queue: at least one
    /// WorkflowExecution, otherwise at most `most` events. They stay queued until they are
    /// delivered or rejected.
    pub(super) fn next(&self, most: usize, now: Instant) -> Vec<PendingEvents> {
        let mut events = 0;
        let waiting = self.queue.values().filter_map(|uid| {
            let account = self.accounts.get(uid)?;
            account
                .due()
                .is_none_or(|it| it <= now)
                .then(|| PendingEvents {
                    uid: uid.clone(),
                    reference: account.reference.clone(),
                    waiting: account.waiting(),
                    unsent: account.unsent,
                })
        });
        waiting
            .take_while(|pending| {
                let first = events == 0;
                events += pending.waiting.len();
                first || events <= most
            })
            .collect()
    }

    /// Earliest time at which waiting events may be sent that may not be sent now.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let accounts = self.queue.values().filter_map(|uid| self.accounts.get(uid));
        accounts.filter_map(Account::due).min()
    }

    /// The sink has stored the event.
    pub(super) fn mark_delivered(&mut self, uid: &str, event_type: EventType) {
        self.change(uid, |account| account.delivered |= event_type);
    }

    /// The sink has rejected the event for its content.
    pub(super) fn mark_rejected(&mut self, uid: &str, event_type: EventType, why: &str) {
        self.change(uid, |account| {
            account.rejected |= event_type;
            account.why = Some(why.into());
        });
    }

    /// The sink has answered that it does not have the event.
    pub(super) fn mark_absent(&mut self, uid: &str, event_type: EventType) {
        self.change(uid, |account| {
            account.unsent |= event_type;
            account.settles = None;
        });
    }

    /// The sink may have stored the event, and may still commit it until `settles`.
    pub(super) fn mark_uncertain(&mut self, uid: &str, event_type: EventType, settles: Instant) {
        self.change(uid, |account| {
            account.unsent -= event_type;
            account.settles = Some(settles);
        });
    }

    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Account)) {
        let Some(account) = self.accounts.get_mut(uid) else {
            return;
        };
        let before = account.counts();
        change(account);
        let after = account.counts();
        if after.0 == 0 {
            account.settles = None;
            if let Some(position) = account.position.take() {
                self.queue.remove(&position);
            }
        }
        self.count(before, after);
    }

    /// Removes one WorkflowExecution and returns its waiting events.
    pub(super) fn forget(&mut self, uid: &str) -> EnumSet<EventType> {
        let Some(account) = self.accounts.remove(uid) else {
            return EnumSet::empty();
        };
        self.count(account.counts(), (0, 0));
        if let Some(position) = account.position {
            self.queue.remove(&position);
        }
        account.waiting()
    }

    /// Delivery state of one WorkflowExecution.
    pub(super) fn state(&self, uid: &str) -> DeliveryState {
        let Some(account) = self.accounts.get(uid) else {
            return DeliveryState::default();
        };
        DeliveryState {
            queued: account.waiting(),
            delivered: account.delivered,
            rejected: account.rejected,
            why: account.why.as_deref().map(str::to_owned),
        }
    }

    /// Number of waiting events.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Number of waiting events without those that are held back.
    pub(super) fn undelivered(&self) -> usize {
        self.waiting - self.held
    }

    /// All WorkflowExecutions with waiting events, in queue order.
    pub(super) fn queued(&self) -> Vec<ObjectRef<WorkflowExecution>> {
        let accounts = self.queue.values().filter_map(|uid| self.accounts.get(uid));
        accounts.map(|it| it.reference.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SELECTED: EventType = EventType::SelectionCompleted;
    const CREATED: EventType = EventType::ExecutionStarted;

    fn offer(ledger: &mut Ledger, uid: &str, happened: EnumSet<EventType>) {
        let unsent = EnumSet::empty();
        ledger.offer(uid, &ObjectRef::new(uid), happened, unsent, None, None);
    }

    fn queue(ledger: &Ledger, most: usize, now: Instant) -> Vec<(String, usize)> {
        let next = ledger.next(most, now).into_iter();
        next.map(|it| (it.uid, it.waiting.len())).collect()
    }

    /// BR-AUDIT-005
    #[test]
    fn next_returns_objects_in_queue_order_until_all_events_are_delivered() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        offer(&mut ledger, "a", SELECTED | CREATED);
        offer(&mut ledger, "b", SELECTED.into());
        offer(&mut ledger, "a", SELECTED | CREATED);
        assert_eq!(ledger.waiting(), 3, "each event is counted once");
        assert_eq!(queue(&ledger, 1, now), [("a".to_owned(), 2)], "all of a");
        assert_eq!(queue(&ledger, 3, now).len(), 2);
        ledger.mark_delivered("a", SELECTED);
        assert_eq!(queue(&ledger, 1, now), [("a".to_owned(), 1)]);
        ledger.mark_rejected("a", CREATED, "too long");
        assert_eq!(queue(&ledger, 9, now), [("b".to_owned(), 1)]);
        let state = ledger.state("a");
        assert_eq!(state.rejected, CREATED);
        assert_eq!(state.why.as_deref(), Some("too long"));
        assert_eq!(ledger.forget("b"), SELECTED);
        assert_eq!((ledger.waiting(), queue(&ledger, 9, now).len()), (0, 0));
    }

    /// BR-AUDIT-005
    #[test]
    fn uncertain_event_waits_until_settled_and_does_not_block_other_objects() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let selected = SELECTED.into();
        ledger.offer("a", &ObjectRef::new("a"), selected, selected, None, None);
        offer(&mut ledger, "b", SELECTED.into());
        assert_eq!(
            ledger.next(9, now).first().map(|it| it.unsent.len()),
            Some(1)
        );
        let later = now + Duration::from_secs(35);
        ledger.mark_uncertain("a", SELECTED, later);
        assert_eq!(queue(&ledger, 9, now), [("b".to_owned(), 1)]);
        assert_eq!(ledger.next_due(), Some(later));
        let next = ledger.next(9, later);
        assert_eq!(
            next.first().map(|it| it.unsent.len()),
            Some(0),
            "the sink must be asked"
        );
        ledger.mark_absent("a", SELECTED);
        assert_eq!(
            ledger.next(9, now).first().map(|it| it.unsent.len()),
            Some(1)
        );
    }

    /// BR-AUDIT-005
    #[test]
    fn offer_of_known_event_as_unsent_does_not_make_it_unsent() {
        let mut ledger = Ledger::default();
        offer(&mut ledger, "a", SELECTED.into());
        let both = SELECTED | CREATED;
        ledger.offer("a", &ObjectRef::new("a"), both, both, None, None);
        let next = ledger.next(9, Instant::now());
        assert_eq!(next.first().map(|it| it.unsent), Some(CREATED.into()));
    }

    /// BR-AUDIT-005
    #[test]
    fn first_events_are_held_back_until_the_next_one_or_their_time() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let selected = SELECTED.into();
        let [soon, later] = [5, 10].map(|seconds| now + Duration::from_secs(seconds));
        let hold = |ledger: &mut Ledger, uid: &str, happened, until| {
            let reference = ObjectRef::new(uid);
            ledger.offer(uid, &reference, happened, happened, None, Some(until));
            (queue(ledger, 9, now).len(), ledger.next_due())
        };
        assert_eq!(hold(&mut ledger, "a", selected, soon), (0, Some(soon)));
        let again = hold(&mut ledger, "a", selected | CREATED, later);
        assert_eq!(again, (0, Some(soon)), "a second offer does not prolong");
        assert_eq!(hold(&mut ledger, "b", selected, later), (0, Some(soon)));
        assert_eq!((ledger.waiting(), ledger.undelivered()), (3, 0));
        assert_eq!(queue(&ledger, 9, soon), [("a".to_owned(), 2)]);
        ledger.release(soon);
        assert_eq!((ledger.waiting(), ledger.undelivered()), (3, 2));
        offer(&mut ledger, "b", selected | CREATED);
        assert_eq!(ledger.undelivered(), 4, "no more to wait for");
        assert_eq!(queue(&ledger, 9, now).len(), 2);
        assert_eq!(hold(&mut ledger, "c", selected, later).0, 2);
        ledger.forget("c");
        assert_eq!((ledger.waiting(), ledger.undelivered()), (4, 4));
    }
}
