//! After the end: the target is freed, the audit acknowledged, the execution deleted, the object let
//! go.

use std::time::Duration;

use enumset::EnumSet;
use jiff::Timestamp;
use wfe_model::audit::EventType;
use wfe_model::workflow_execution::{Phase, TriState};

use super::ending::{LOOK_AGAIN, delete, fail, past, started, store, tell_or, undelivered};
use crate::audit;
use crate::condition::{ConditionType, Reason};
use crate::execution::{Execution, Remains};
use crate::failure::Failure;
use crate::history::{Entry, Obstacle};
use crate::lock::Lock;
use crate::names;
use crate::observed::Observed;
use crate::status::{Change, after, stored};
use crate::step::{Effect, Notice, Question, Step};

/// A pod that is alive so long after the end is on a node that nobody reaches.
const PODS_END_WITHIN: Duration = Duration::from_mins(2);

pub(super) fn decide(observed: &Observed, deleted: bool) -> Step {
    if let Some(step) = end_what_runs(observed) {
        return step;
    }
    if observed.answers.lock_lost {
        return Step::Ask(Question::Lock);
    }
    let ours = observed.lock == Lock::Ours;
    let alive = observed.pods_alive || ours && observed.others_alive.is_some();
    if alive && (ours || deleted) {
        return pods_remain(observed);
    }
    if let Some(step) = started_late(observed) {
        return step;
    }
    if ours {
        return free(observed);
    }
    if let Some(step) = acknowledge(observed) {
        return step;
    }
    if let Some(execution) = observed.execution.as_ref().filter(|it| !it.deleting) {
        let until = kept_until(observed);
        return if deleted || until <= observed.now {
            delete(observed, &execution.reference)
        } else {
            Step::Wait(until)
        };
    }
    if deleted {
        let_go(observed)
    } else {
        Step::Done
    }
}

/// Deletes an execution that was ended by us (cancelled), not by itself: unless only the cache still
/// shows it as running.
fn end_what_runs(observed: &Observed) -> Option<Step> {
    let runs = |it: &Execution| it.is_active() && !it.deleting;
    let shown = observed.execution.as_ref().is_some_and(runs);
    match &observed.answers.execution {
        None => shown.then_some(Step::Ask(Question::Execution)),
        Some(read) => {
            let execution = read.as_ref().filter(|it| shown && runs(it))?;
            Some(delete(observed, &execution.reference))
        }
    }
}

/// Says that the audit trail is whole, or why it is not yet.
fn acknowledge(observed: &Observed) -> Option<Step> {
    let status = observed.wfe.status.as_ref()?;
    let cleared = status.block_clearance.as_ref();
    let clearance = cleared.map(|_| ConditionType::ClearanceRecorded);
    let kinds = std::iter::once(ConditionType::AuditRecorded).chain(clearance);
    let open: Vec<_> = kinds
        .filter(|kind| !audit::is_settled(&observed.wfe, *kind))
        .collect();
    if open.is_empty() {
        return None;
    }
    let change = Change::of(&observed.wfe, observed.now);
    let said = open
        .into_iter()
        .fold(change, |change, kind| said(observed, change, kind));
    let changed = said.unless_stored(&observed.wfe)?;
    Some(Step::Do(Effect::Store(Box::new(changed))))
}

/// Says of the events that belong to a condition whether they are delivered.
fn said(observed: &Observed, change: Change, kind: ConditionType) -> Change {
    let mut events = EnumSet::only(EventType::BlockCleared);
    if kind == ConditionType::AuditRecorded {
        events = !events;
    }
    if !observed.audit.waiting.is_disjoint(events) {
        let (reason, message) = undelivered(observed);
        // Said once: what the sink answers may change with each try. And only what lasts.
        let known = stored(&observed.wfe, kind).is_some_and(|it| it.reason == reason.as_str());
        return if known || observed.audit.outage.is_none() {
            change
        } else {
            change.condition(kind, TriState::False, reason, &message)
        };
    }
    let rejected = observed.audit.rejected.as_ref();
    let rejected = rejected.filter(|(rejected, _)| !rejected.is_disjoint(events));
    if let Some((rejected, why)) = rejected {
        let names: Vec<_> = (*rejected & events).iter().map(EventType::as_str).collect();
        let message = format!("the sink does not take {}: {why}", names.join(", "));
        return change.condition(kind, TriState::False, Reason::AuditEventRejected, &message);
    }
    let message = "every audit event was delivered";
    change.condition(kind, TriState::True, Reason::AuditSucceeded, message)
}

/// Frees the lock when nothing can be alive any more. An execution that has ended by itself says so;
/// of one that the cache does not show only the API server knows.
fn free(observed: &Observed) -> Step {
    let ended = |it: &Execution| !it.is_active();
    if observed.execution.as_ref().is_some_and(ended) {
        return free_now(observed);
    }
    match (observed.wfe.execution_ref(), observed.answers.remains) {
        (_, None) => Step::Ask(Question::Remains),
        (Some(reference), Some(Remains::Alive)) => delete(observed, reference),
        // The watch will show it, then it is deleted.
        (None, Some(Remains::Alive)) => Step::Wait(observed.now + LOOK_AGAIN),
        (_, Some(Remains::Nothing | Remains::Ended)) => free_now(observed),
    }
}

fn free_now(observed: &Observed) -> Step {
    let executed = observed
        .wfe
        .execution_ref()
        .and_then(|_| Entry::of(&observed.wfe));
    Step::Do(Effect::FreeLock(executed.map(Box::new)))
}

/// The sign to look again is the end of the pod.
fn pods_remain(observed: &Observed) -> Step {
    let since = ended_at(observed).unwrap_or(observed.now);
    let late = after(since, PODS_END_WITHIN);
    if observed.now < late {
        return Step::Wait(late);
    }
    tell_or(observed, Notice::PodRemains, Step::Done)
}

/// A container started between the word that nothing ran and the end of the pod: the word is
/// corrected while the lock is still held.
fn started_late(observed: &Observed) -> Option<Step> {
    let since = observed.began?;
    let details = observed.wfe.status.as_ref()?.failure_details.as_ref()?;
    if details.was_execution_failure || observed.wfe.execution_ref().is_none() {
        return None;
    }
    let failure = Failure {
        reason: details.reason,
        message: details.message.clone(),
        exit_code: details.exit_code,
        was_execution_failure: true,
    };
    let change = started(Change::of(&observed.wfe, observed.now), since);
    Some(Step::Do(store(fail(
        observed,
        change,
        &failure,
        details.failed_at.0,
    ))))
}

/// What the history would lose with this one is kept by the lock. One that blocks its target stays
/// until somebody has cleared it, or its namespace goes.
fn remembered(observed: &Observed) -> Option<Step> {
    let entry = Entry::of(&observed.wfe)?;
    let past = past(observed, Some(&entry));
    let blocks = match past.obstacle(&entry.workflow_id, observed.now, &observed.settings.limits) {
        Some(
            Obstacle::PreviousExecutionFailed(blocking) | Obstacle::ExhaustedRetries(blocking, _),
        ) => blocking.uid == entry.uid,
        _ => false,
    };
    if blocks && !observed.namespace_ending {
        return Some(tell_or(observed, Notice::DeletionWaits, Step::Done));
    }
    let matters = entry.matters(observed.now, &observed.settings.limits);
    let known = observed.answers.recorded || observed.target_lock.remembers(&entry);
    (matters && !known).then(|| Step::Do(Effect::Record(Box::new(entry))))
}

/// Takes the finalizer off when nothing is left.
fn let_go(observed: &Observed) -> Step {
    if let Some(step) = remembered(observed) {
        return step;
    }
    if !observed.audit.waiting.is_empty() {
        let annotations = observed.wfe.metadata.annotations.as_ref();
        let abandoned = annotations.is_some_and(|it| it.contains_key(names::ABANDON_AUDIT));
        if !abandoned {
            return Step::Done;
        }
        let notice = Notice::AuditAbandoned;
        if !observed.notified.contains(&notice) {
            return Step::Do(Effect::Tell(notice));
        }
    }
    match (observed.wfe.execution_ref(), observed.answers.remains) {
        (None, _) | (_, Some(Remains::Nothing)) => Step::Do(Effect::RemoveFinalizer),
        (Some(_), None) => Step::Ask(Question::Remains),
        (Some(reference), Some(Remains::Ended | Remains::Alive)) => delete(observed, reference),
    }
}

fn kept_until(observed: &Observed) -> Timestamp {
    let status = observed.wfe.status.as_ref();
    let cleared = status.is_some_and(|status| status.block_clearance.is_some());
    let retention = match observed.wfe.phase() {
        // Evidence, until somebody has looked at it.
        Some(Phase::Failed) if cleared => Duration::ZERO,
        Some(Phase::Failed) => observed.settings.retention_failed,
        _ => observed.settings.retention,
    };
    after(ended_at(observed).unwrap_or(observed.now), retention)
}

fn ended_at(observed: &Observed) -> Option<Timestamp> {
    let status = observed.wfe.status.as_ref()?;
    Some(status.completion_time.as_ref()?.0)
}
