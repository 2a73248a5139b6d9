//! After the end: the target is freed, the audit acknowledged, the execution deleted, the object let
//! go. Events were delivered before anything here is decided.

use std::time::Duration;

use jiff::Timestamp;
use wfe_model::workflow_execution::{ExecutionRef, Phase, TriState};

use super::super::lock::Lock;
use super::super::observe::Observed;
use super::super::status::{Change, condition, holds};
use super::{Effect, Question, Step, store, store_or};
use crate::executor::{Execution, Remains};

/// In case the watch that should show a deletion is behind.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

pub(super) fn decide(observed: &Observed, deleted: bool) -> Step {
    let active = |it: &&Execution| it.is_active() && !it.deleting;
    // Ended by us (cancelled), not by itself.
    if let Some(execution) = observed.execution.as_ref().filter(active) {
        return delete(observed, &execution.reference);
    }
    // The sign to look again is the end of the pod.
    if observed.pods_alive && (observed.lock == Lock::Ours || deleted) {
        return Step::Done;
    }
    if observed.lock == Lock::Ours {
        return free(observed);
    }
    if let Some(why) = observed
        .answers
        .audit_unavailable
        .as_ref()
        .filter(|_| !observed.unaudited.is_empty())
    {
        let change = Change::of(&observed.wfe, observed.now);
        let change = change.condition(
            condition::AUDIT_RECORDED,
            TriState::False,
            "AuditSinkUnavailable",
            why,
        );
        return store_or(observed, change, Step::Done);
    }
    if !holds(&observed.wfe, condition::AUDIT_RECORDED) {
        let change = Change::of(&observed.wfe, observed.now);
        let message = "every audit event was delivered";
        return Step::Do(store(change.condition(
            condition::AUDIT_RECORDED,
            TriState::True,
            "AuditSucceeded",
            message,
        )));
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

/// Frees the lock when nothing can be alive any more. An execution that has ended by itself says so;
/// of one that the cache does not show only the API server knows.
fn free(observed: &Observed) -> Step {
    let ended = observed
        .execution
        .as_ref()
        .is_some_and(|it| !it.is_active());
    match (observed.wfe.execution_ref(), observed.answers.remains) {
        (Some(_), None) if !ended => Step::Ask(Question::Remains),
        (Some(reference), Some(Remains::Alive)) if !ended => delete(observed, reference),
        _ => Step::Do(Effect::FreeLock),
    }
}

/// Takes the finalizer off when nothing is left.
fn let_go(observed: &Observed) -> Step {
    match (observed.wfe.execution_ref(), observed.answers.remains) {
        (None, _) | (_, Some(Remains::Nothing)) => Step::Do(Effect::RemoveFinalizer),
        (Some(_), None) => Step::Ask(Question::Remains),
        (Some(reference), Some(Remains::Ended | Remains::Alive)) => delete(observed, reference),
    }
}

/// Deletes it once in a pass, then waits for the watch to show it.
fn delete(observed: &Observed, reference: &ExecutionRef) -> Step {
    if observed.answers.deleted {
        return Step::Wait(observed.now + LOOK_AGAIN);
    }
    Step::Do(Effect::Delete(reference.clone()))
}

fn kept_until(observed: &Observed) -> Timestamp {
    let status = observed.wfe.status.as_ref();
    let retention = match observed.wfe.phase() {
        Some(Phase::Failed) => observed.settings.retention_failed,
        _ => observed.settings.retention,
    };
    let ended = status
        .and_then(|status| status.completion_time.as_ref())
        .map_or(observed.now, |time| time.0);
    // A retention that ends after the end of time never ends.
    ended.checked_add(retention).unwrap_or(Timestamp::MAX)
}
