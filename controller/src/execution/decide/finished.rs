//! After the end: the target is freed, the audit acknowledged, the execution deleted, the object let
//! go. Events were delivered before anything here is decided.

use jiff::Timestamp;
use wfe_model::workflow_execution::Phase;

use super::super::lock::Lock;
use super::super::observe::Observed;
use super::super::status::{Change, Truth, condition, holds};
use super::{Effect, Step, store};
use crate::executor::{Execution, Progress};

pub(super) fn decide(observed: &Observed, deleted: bool) -> Step {
    let active = |it: &&Execution| matches!(it.progress, Progress::Active { .. }) && !it.deleting;
    // Ended by us (cancelled), not by itself.
    if let Some(execution) = observed.execution.as_ref().filter(active) {
        return Step::Do(Effect::Delete(execution.reference.clone()));
    }
    if observed.lock == Lock::Ours {
        // The sign to look again is the end of the pod.
        return if observed.pods_alive {
            Step::Done
        } else {
            Step::Do(Effect::FreeLock)
        };
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
            Truth::False,
            "AuditSinkUnavailable",
            why,
        );
        return change
            .unless_stored(&observed.wfe)
            .map_or(Step::Done, |status| {
                Step::Do(Effect::Store(Box::new(status)))
            });
    }
    if !holds(&observed.wfe, condition::AUDIT_RECORDED) {
        let change = Change::of(&observed.wfe, observed.now);
        return Step::Do(store(change.condition(
            condition::AUDIT_RECORDED,
            Truth::True,
            "AuditSucceeded",
            "every audit event was delivered",
        )));
    }
    if let Some(execution) = observed.execution.as_ref().filter(|it| !it.deleting) {
        let until = kept_until(observed);
        if deleted || until <= observed.now {
            return Step::Do(Effect::Delete(execution.reference.clone()));
        }
        return Step::Wait(until);
    }
    if deleted && !observed.pods_alive {
        Step::Do(Effect::RemoveFinalizer)
    } else {
        Step::Done
    }
}

fn kept_until(observed: &Observed) -> Timestamp {
    let status = observed.wfe.status.as_ref();
    let retention = match status.and_then(|status| status.phase) {
        Some(Phase::Failed) => observed.settings.retention_failed,
        _ => observed.settings.retention,
    };
    let ended = status
        .and_then(|status| status.completion_time.as_ref())
        .map_or(observed.now, |time| time.0);
    // A retention that ends after the end of time never ends.
    ended.checked_add(retention).unwrap_or(Timestamp::MAX)
}
