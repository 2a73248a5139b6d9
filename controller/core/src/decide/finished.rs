//! Final phases: frees the lock, records the delivery of the audit events, deletes the execution
//! after its retention, and removes the finalizer of a deleted WorkflowExecution.

use std::time::Duration;

use enumset::EnumSet;
use jiff::Timestamp;
use kube::ResourceExt;
use wfe_model::audit::EventType;
use wfe_model::workflow_execution::{Phase, TriState};

use super::ending::{
    RECHECK_DELAY, cancel, delete, fail, notify_or, overdue_at, started, store, target_history,
    undelivered,
};
use crate::audit;
use crate::condition::{ConditionType, Reason};
use crate::execution::{Execution, Remains};
use crate::failure::Failure;
use crate::history::{Entry, Restriction};
use crate::lock::Lock;
use crate::names;
use crate::observed::Observed;
use crate::status::{Change, after, cleared_at, is_cleared_in_future, stored};
use crate::step::{Effect, Notice, Question, Step};

/// A pod that is alive this long after the end is probably on a node that is lost.
const POD_END_GRACE: Duration = Duration::from_mins(2);

/// An ended execution that still exists this long after its deletion is kept by another client.
const DELETION_GRACE: Duration = Duration::from_mins(2);

pub(super) fn decide(observed: &Observed, deleted: bool) -> Step {
    if let Some(step) = cancel_active_execution(observed) {
        return step;
    }
    if observed.answers.lock_lost {
        return Step::Ask(Question::Lock);
    }
    let ours = observed.lock == Lock::Ours;
    let alive = observed.pods_alive || ours && observed.others_alive.is_some();
    if alive && (ours || deleted) {
        return wait_for_pods(observed);
    }
    if let Some(step) = correct_late_start(observed) {
        return step;
    }
    if ours {
        return free_lock(observed);
    }
    if let Some(step) = record_delivery(observed) {
        return step;
    }
    if let Some(step) = record_clearance(observed) {
        return step;
    }
    let expires = (!deleted).then(|| expires_at(observed)).flatten();
    if expires.is_some_and(|at| at <= observed.now) {
        return Step::Do(Effect::Expire);
    }
    let step = clean_up(observed, deleted);
    match expires {
        Some(at) => step.at_latest(at),
        None => step,
    }
}

/// Deletes the execution after its retention, and removes the finalizer.
fn clean_up(observed: &Observed, deleted: bool) -> Step {
    if let Some(execution) = observed.execution.as_ref().filter(|it| !it.ending) {
        let until = kept_until(observed);
        return if deleted || until <= observed.now {
            delete(observed, &execution.reference)
        } else {
            Step::Wait(until)
        };
    }
    let stuck = notify_stuck_deletion(observed);
    match stuck {
        Some(step @ Step::Do(_)) => step,
        waits if deleted => match finalize(observed) {
            Step::Done => waits.unwrap_or(Step::Done),
            step => step,
        },
        waits => waits.unwrap_or(Step::Done),
    }
}

/// When the WorkflowExecution itself is deleted; `None` while its audit trail is not delivered or its
/// target is blocked by it. One with an owner is deleted with it: the owner may not have seen its end.
fn expires_at(observed: &Observed) -> Option<Timestamp> {
    let lifetime = observed.settings.ttl_after_finished?;
    let mut owners = observed.wfe.owner_references().iter();
    if owners.any(|owner| owner.controller == Some(true)) {
        return None;
    }
    let settled = observed.audit.waiting.is_empty()
        && audit::is_settled(&observed.wfe, ConditionType::AuditRecorded);
    let blocks = Entry::of(&observed.wfe).is_some_and(|entry| blocks(observed, &entry));
    (settled && !blocks).then(|| after(ended_at(observed).unwrap_or(observed.now), lifetime))
}

/// Whether `entry`, of this WorkflowExecution, blocks the target until a user clears it.
fn blocks(observed: &Observed, entry: &Entry) -> bool {
    let history = target_history(observed, Some(entry));
    let limits = &observed.settings.limits;
    match history.restriction(&entry.workflow_id, observed.now, limits) {
        Some(
            Restriction::PreviousExecutionFailed(blocking)
            | Restriction::ExhaustedRetries(blocking, _),
        ) => blocking.uid == entry.uid,
        _ => false,
    }
}

/// Notifies operators of an execution that a finalizer of another client keeps.
fn notify_stuck_deletion(observed: &Observed) -> Option<Step> {
    let deleted_at = observed.execution.as_ref()?.deleted_at?;
    let late = after(deleted_at, DELETION_GRACE);
    if observed.now < late {
        return Some(Step::Wait(late));
    }
    Some(notify_or(observed, Notice::DeletionStuck, Step::Done))
}

/// Cancels an execution that is still active, as after a cancellation. The cache may show an ended
/// execution as active, so an uncached read decides.
fn cancel_active_execution(observed: &Observed) -> Option<Step> {
    let active = |it: &Execution| it.is_active() && !it.ending;
    let shown = observed.execution.as_ref().is_some_and(active);
    match &observed.answers.execution {
        None => shown.then_some(Step::Ask(Question::Execution)),
        Some(read) => {
            let execution = read.as_ref().filter(|it| shown && active(it))?;
            Some(cancel(observed, &execution.reference))
        }
    }
}

/// Stores that a clearance is noticed now, whose own time is still to come.
pub(super) fn notice_clearance(observed: &Observed) -> Option<Step> {
    let message = "the time of the clearance is in the future: it counts from now";
    is_cleared_in_future(&observed.wfe, observed.now).then(|| {
        let change = Change::of(&observed.wfe, observed.now).condition(
            ConditionType::ClearanceRecorded,
            TriState::False,
            Reason::AuditPending,
            message,
        );
        Step::Do(store(change))
    })
}

/// Stores in the conditions whether the audit events are delivered, and if not, why.
fn record_delivery(observed: &Observed) -> Option<Step> {
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
    let change = open.into_iter().fold(change, |change, kind| {
        with_delivery_condition(observed, change, kind)
    });
    let changed = change.unless_stored(&observed.wfe)?;
    Some(Step::Do(Effect::Store(Box::new(changed))))
}

/// Sets the condition `kind` by the delivery of the events that it covers.
fn with_delivery_condition(observed: &Observed, change: Change, kind: ConditionType) -> Change {
    let mut events = EnumSet::only(EventType::BlockCleared);
    if kind == ConditionType::AuditRecorded {
        events = !events;
    }
    if !observed.audit.waiting.is_disjoint(events) {
        let (reason, message) = undelivered(observed);
        // Stored once, since the sink's message may differ with each attempt, and only during an
        // outage, since delivery takes a moment anyway.
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
        let message = format!("the audit sink rejected {}: {why}", names.join(", "));
        return change.condition(kind, TriState::False, Reason::AuditEventRejected, &message);
    }
    let message = "every audit event was delivered";
    let reason = Reason::AuditSucceeded;
    match cleared_at(&observed.wfe).filter(|_| kind == ConditionType::ClearanceRecorded) {
        // Its transition time says since when a clearance counts that was in the future.
        Some(since) => change.condition_since(kind, TriState::True, reason, message, since),
        None => change.condition(kind, TriState::True, reason, message),
    }
}

/// Frees the lock when nothing of the execution is alive. An ended execution in the cache proves
/// it where it ends with its pods, since ended executions never become active again; otherwise an
/// uncached read is needed.
fn free_lock(observed: &Observed) -> Step {
    let execution = observed.execution.as_ref();
    let ended = execution.filter(|it| !it.is_active());
    if ended.is_some_and(|it| it.ends_with_pods) {
        return free_lock_now(observed);
    }
    // A cancelled pipeline runs its last tasks; the watch shows its end.
    if execution.is_some_and(|it| it.ending) && !observed.answers.deleted {
        return wait_for_pods(observed);
    }
    match (observed.wfe.execution_ref(), observed.answers.remains) {
        (_, None) => Step::Ask(Question::Remains),
        // The pod watch lags, or does not select the pod any more.
        (_, Some(Remains::Alive)) if ended.is_some() => Step::Wait(observed.now + RECHECK_DELAY),
        (Some(reference), Some(Remains::Alive)) => cancel(observed, reference),
        // The watch will show the execution, which is deleted then.
        (None, Some(Remains::Alive)) => Step::Wait(observed.now + RECHECK_DELAY),
        (_, Some(Remains::Nothing | Remains::Ended)) => free_lock_now(observed),
    }
}

fn free_lock_now(observed: &Observed) -> Step {
    let executed = observed
        .wfe
        .execution_ref()
        .and_then(|_| Entry::of(&observed.wfe));
    Step::Do(Effect::FreeLock(executed.map(Box::new)))
}

/// The pod watch triggers the next reconcile; the requeue is for the notice only.
fn wait_for_pods(observed: &Observed) -> Step {
    let execution = observed.execution.as_ref();
    // A finalizer of another client keeps the execution, and with it its pods.
    let deleted_at = execution.and_then(|it| it.deleted_at);
    // A cancelled pipeline runs its last tasks within its own timeout.
    let (late, notice) = if let Some(at) = deleted_at {
        (after(at, DELETION_GRACE), Notice::DeletionStuck)
    } else if execution.is_some_and(|it| it.ending && it.is_active()) {
        (overdue_at(observed), Notice::Overdue)
    } else {
        let since = ended_at(observed).unwrap_or(observed.now);
        (after(since, POD_END_GRACE), Notice::PodRemains)
    };
    if observed.now < late {
        return Step::Wait(late);
    }
    notify_or(observed, notice, Step::Done)
}

/// Corrects `wasExecutionFailure`: a container started after the failure was stored and before the
/// pod ended. The lock is still held then, so the next execution sees the correction.
fn correct_late_start(observed: &Observed) -> Option<Step> {
    let since = observed.began?;
    let details = observed.wfe.status.as_ref()?.failure_details.as_ref()?;
    if details.was_execution_failure || observed.wfe.execution_ref().is_none() {
        return None;
    }
    let failure = Failure {
        exit_code: details.exit_code,
        ..Failure::new(details.reason, details.message.clone(), true)
    };
    let change = started(Change::of(&observed.wfe, observed.now), since);
    Some(Step::Do(store(fail(
        observed,
        change,
        &failure,
        details.failed_at.0,
    ))))
}

/// Stores a clearance in the lock's record, which outlives this object.
fn record_clearance(observed: &Observed) -> Option<Step> {
    let entry = Entry::of(&observed.wfe)?;
    let lacking = observed.target_lock.lacks_clearance(&entry) && !observed.answers.recorded;
    lacking.then(|| Step::Do(Effect::Record(Box::new(entry))))
}

/// Keeps the history that would be lost with this object. The lock gets a record of the outcome; an
/// object that blocks its target keeps its finalizer until the block is cleared or its namespace
/// terminates.
fn preserve_history(observed: &Observed) -> Option<Step> {
    let entry = Entry::of(&observed.wfe)?;
    if blocks(observed, &entry) && !observed.namespace_terminating {
        return Some(notify_or(observed, Notice::DeletionWaits, Step::Done));
    }
    let lock = &observed.target_lock;
    let relevant =
        entry.is_relevant(observed.now, &observed.settings.limits) || lock.lacks_clearance(&entry);
    let known = observed.answers.recorded || lock.has_record(&entry);
    (relevant && !known).then(|| Step::Do(Effect::Record(Box::new(entry))))
}

/// Removes the finalizer of a deleted WorkflowExecution when nothing of the execution is left.
fn finalize(observed: &Observed) -> Step {
    if let Some(step) = preserve_history(observed) {
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
            return Step::Do(Effect::Notify(notice));
        }
    }
    match (observed.wfe.execution_ref(), observed.answers.remains) {
        (None, _) | (_, Some(Remains::Nothing)) => Step::Do(Effect::RemoveFinalizer),
        (Some(_), None) => Step::Ask(Question::Remains),
        (Some(reference), Some(Remains::Alive)) => cancel(observed, reference),
        (Some(reference), Some(Remains::Ended)) => delete(observed, reference),
    }
}

fn kept_until(observed: &Observed) -> Timestamp {
    let cleared = cleared_at(&observed.wfe);
    let settings = &observed.settings;
    let ended = ended_at(observed).unwrap_or(observed.now);
    if observed.wfe.phase() != Some(Phase::Failed) {
        return after(ended, settings.retention);
    }
    // A failed execution is evidence: its log may be read until some time after the clearance.
    let at_most = after(ended, settings.retention_failed);
    cleared.map_or(at_most, |at| at_most.min(after(at, settings.retention)))
}

fn ended_at(observed: &Observed) -> Option<Timestamp> {
    let status = observed.wfe.status.as_ref()?;
    Some(status.completion_time.as_ref()?.0)
}
