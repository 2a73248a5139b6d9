//! What the sink has of each WorkflowExecution whose events are not acknowledged yet, as far as this
//! process knows. Pure: no clock, no requests.

use std::collections::{BTreeMap, HashMap};

use enumset::EnumSet;
use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;
use wfe_model::audit::EventType;
use wfe_model::workflow_execution::WorkflowExecution;

/// One WorkflowExecution's events. Small: there may be many.
#[derive(Debug)]
struct Account {
    reference: ObjectRef<WorkflowExecution>,
    /// Its place in line, while something waits.
    ticket: Option<u64>,
    happened: EnumSet<EventType>,
    /// Sent by nobody: need not be asked for.
    unsent: EnumSet<EventType>,
    delivered: EnumSet<EventType>,
    rejected: EnumSet<EventType>,
    /// Why the sink did not take the last rejected one.
    why: Option<Box<str>>,
    /// An unanswered send may be committed until then.
    settles: Option<Instant>,
}

impl Account {
    fn waiting(&self) -> EnumSet<EventType> {
        self.happened - self.delivered - self.rejected
    }
}

/// All accounts, and in which order they are served.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: HashMap<String, Account>,
    /// Uids of those that wait, by their tickets.
    queue: BTreeMap<u64, String>,
    next_ticket: u64,
    waiting: usize,
}

/// Events of one WorkflowExecution that are to be delivered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parcel {
    pub uid: String,
    pub reference: ObjectRef<WorkflowExecution>,
    pub waiting: EnumSet<EventType>,
    /// Of these the sink has nothing for sure.
    pub unsent: EnumSet<EventType>,
}

/// How one WorkflowExecution stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Waits for delivery here.
    pub queued: EnumSet<EventType>,
    /// The sink has it.
    pub delivered: EnumSet<EventType>,
    /// The sink will not have it.
    pub rejected: EnumSet<EventType>,
    /// Why.
    pub why: Option<String>,
}

impl Ledger {
    /// `happened` is to be delivered, unless it is already; `unsent`: nobody can have sent it before.
    pub(super) fn offer(
        &mut self,
        uid: &str,
        reference: &ObjectRef<WorkflowExecution>,
        happened: EnumSet<EventType>,
        unsent: EnumSet<EventType>,
    ) {
        let account = self
            .accounts
            .entry(uid.to_owned())
            .or_insert_with(|| Account {
                reference: reference.clone(),
                ticket: None,
                happened: EnumSet::empty(),
                unsent: EnumSet::empty(),
                delivered: EnumSet::empty(),
                rejected: EnumSet::empty(),
                why: None,
                settles: None,
            });
        let before = account.waiting();
        account.unsent |= unsent - account.happened;
        account.happened |= happened;
        let after = account.waiting();
        if account.ticket.is_none() && !after.is_empty() {
            account.ticket = Some(self.next_ticket);
            self.queue.insert(self.next_ticket, uid.to_owned());
            self.next_ticket += 1;
        }
        self.waiting += after.len() - before.len();
    }

    /// The next to be delivered, of as many WorkflowExecutions as have `most` events together, at
    /// least one. They stay in line until they are settled.
    pub(super) fn next(&self, most: usize, now: Instant) -> Vec<Parcel> {
        let mut events = 0;
        let waiting = self.queue.values().filter_map(|uid| {
            let account = self.accounts.get(uid)?;
            account.settles.is_none_or(|it| it <= now).then(|| Parcel {
                uid: uid.clone(),
                reference: account.reference.clone(),
                waiting: account.waiting(),
                unsent: account.unsent,
            })
        });
        waiting
            .take_while(|parcel| {
                let first = events == 0;
                events += parcel.waiting.len();
                first || events <= most
            })
            .collect()
    }

    /// When there is something to deliver again, where everything that waits has to settle first.
    pub(super) fn settles(&self) -> Option<Instant> {
        let accounts = self.queue.values().filter_map(|uid| self.accounts.get(uid));
        accounts.filter_map(|it| it.settles).min()
    }

    /// The sink has it.
    pub(super) fn delivered(&mut self, uid: &str, event_type: EventType) {
        self.change(uid, |account| account.delivered |= event_type);
    }

    /// The sink will not have it.
    pub(super) fn rejected(&mut self, uid: &str, event_type: EventType, why: &str) {
        self.change(uid, |account| {
            account.rejected |= event_type;
            account.why = Some(why.into());
        });
    }

    /// The sink was asked, and does not have it.
    pub(super) fn absent(&mut self, uid: &str, event_type: EventType) {
        self.change(uid, |account| {
            account.unsent |= event_type;
            account.settles = None;
        });
    }

    /// The sink may have it; what it does not have when it `settles` will not come any more.
    pub(super) fn doubtful(&mut self, uid: &str, event_type: EventType, settles: Instant) {
        self.change(uid, |account| {
            account.unsent -= event_type;
            account.settles = Some(settles);
        });
    }

    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Account)) {
        let Some(account) = self.accounts.get_mut(uid) else {
            return;
        };
        let before = account.waiting().len();
        change(account);
        let after = account.waiting().len();
        self.waiting -= before - after;
        if after == 0 {
            account.settles = None;
            if let Some(ticket) = account.ticket.take() {
                self.queue.remove(&ticket);
            }
        }
    }

    /// Nothing more is to be done for it; what was still waiting.
    pub(super) fn forget(&mut self, uid: &str) -> EnumSet<EventType> {
        let Some(account) = self.accounts.remove(uid) else {
            return EnumSet::empty();
        };
        let waiting = account.waiting();
        self.waiting -= waiting.len();
        if let Some(ticket) = account.ticket {
            self.queue.remove(&ticket);
        }
        waiting
    }

    /// How it stands.
    pub(super) fn standing(&self, uid: &str) -> Standing {
        let Some(account) = self.accounts.get(uid) else {
            return Standing::default();
        };
        Standing {
            queued: account.waiting(),
            delivered: account.delivered,
            rejected: account.rejected,
            why: account.why.as_deref().map(str::to_owned),
        }
    }

    /// How many events wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Everybody in line.
    pub(super) fn in_line(&self) -> Vec<ObjectRef<WorkflowExecution>> {
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
        ledger.offer(uid, &ObjectRef::new(uid), happened, EnumSet::empty());
    }

    fn in_line(ledger: &Ledger, most: usize, now: Instant) -> Vec<(String, usize)> {
        let next = ledger.next(most, now).into_iter();
        next.map(|it| (it.uid, it.waiting.len())).collect()
    }

    #[test]
    fn br_audit_005_each_is_served_in_turn_until_everything_of_it_is_delivered() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        offer(&mut ledger, "a", SELECTED | CREATED);
        offer(&mut ledger, "b", SELECTED.into());
        offer(&mut ledger, "a", SELECTED | CREATED);
        assert_eq!(ledger.waiting(), 3, "once each");
        assert_eq!(in_line(&ledger, 1, now), [("a".to_owned(), 2)], "whole");
        assert_eq!(in_line(&ledger, 3, now).len(), 2);
        ledger.delivered("a", SELECTED);
        assert_eq!(in_line(&ledger, 1, now), [("a".to_owned(), 1)]);
        ledger.rejected("a", CREATED, "too long");
        assert_eq!(in_line(&ledger, 9, now), [("b".to_owned(), 1)]);
        let standing = ledger.standing("a");
        assert_eq!(standing.rejected, CREATED);
        assert_eq!(standing.why.as_deref(), Some("too long"));
        assert_eq!(ledger.forget("b"), SELECTED);
        assert_eq!((ledger.waiting(), in_line(&ledger, 9, now).len()), (0, 0));
    }

    #[test]
    fn br_audit_005_what_may_be_committed_late_waits_and_holds_up_nobody_else() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.offer("a", &ObjectRef::new("a"), SELECTED.into(), SELECTED.into());
        offer(&mut ledger, "b", SELECTED.into());
        assert_eq!(
            ledger.next(9, now).first().map(|it| it.unsent.len()),
            Some(1)
        );
        let later = now + Duration::from_secs(35);
        ledger.doubtful("a", SELECTED, later);
        assert_eq!(in_line(&ledger, 9, now), [("b".to_owned(), 1)]);
        assert_eq!(ledger.settles(), Some(later));
        let next = ledger.next(9, later);
        assert_eq!(next.first().map(|it| it.unsent.len()), Some(0), "asked for");
        ledger.absent("a", SELECTED);
        assert_eq!(
            ledger.next(9, now).first().map(|it| it.unsent.len()),
            Some(1)
        );
    }

    #[test]
    fn br_audit_005_only_what_is_new_is_taken_for_unsent() {
        let mut ledger = Ledger::default();
        offer(&mut ledger, "a", SELECTED.into());
        let both = SELECTED | CREATED;
        ledger.offer("a", &ObjectRef::new("a"), both, both);
        let next = ledger.next(9, Instant::now());
        assert_eq!(next.first().map(|it| it.unsent), Some(CREATED.into()));
    }
}
