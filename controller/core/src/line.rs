//! Who may use a target next. Requests that wait for a target take turns in the order of their
//! creation; one that may not run yet, or whose pass fails, does not delay the others.

use std::collections::HashSet;

use jiff::Timestamp;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecution};
use wfe_model::{CANCEL, CANCELLED_BY};

use crate::condition::ConditionType;
use crate::history::{History, Restriction};
use crate::lock::{Holder, TargetLock};
use crate::observed::Settings;
use crate::status::{after, stored};

/// The WorkflowExecutions on a target, and what decides which of them is next.
pub struct Line<'a> {
    /// WorkflowExecutions on the target, also those that do not wait.
    pub requests: Vec<&'a WorkflowExecution>,
    /// Earlier executions on the target.
    pub history: &'a History,
    /// Uids of WorkflowExecutions whose last pass failed.
    pub failing: &'a HashSet<String>,
    /// Flags.
    pub settings: &'a Settings,
    /// Current time.
    pub now: Timestamp,
}

impl<'a> Line<'a> {
    /// The oldest request that may run now.
    pub fn next(&self) -> Option<&'a WorkflowExecution> {
        let may_run = self.waiting().filter(|it| self.restriction(it).is_none());
        may_run.min_by_key(|wfe| age(wfe))
    }

    /// Whom a change of the target concerns: the holder of its lock, those that run, and the request
    /// that is next. If none may run, the one whose restriction ends first: it waits for that
    /// moment, or ends because of a restriction without an end. Its own end concerns the one after
    /// it.
    pub fn concerned(&self, lock: &TargetLock) -> Vec<&'a WorkflowExecution> {
        let holder = match &lock.holder {
            Some(Holder::Execution(holder)) => Some(&holder.uid),
            Some(Holder::ByHand(_)) | None => None,
        };
        let is_user = |wfe: &&&WorkflowExecution| {
            wfe.phase() == Some(Phase::Running)
                || holder.is_some() && wfe.metadata.uid.as_ref() == holder
        };
        let users = self.requests.iter().filter(is_user).copied();
        let next = self.next().or_else(|| {
            let end = |wfe: &&WorkflowExecution| {
                let restriction = self.restriction(wfe);
                (restriction.and_then(|it| it.until()), age(wfe))
            };
            self.waiting().min_by_key(end)
        });
        users.chain(next).collect()
    }

    fn waiting(&self) -> impl Iterator<Item = &'a WorkflowExecution> {
        let is_candidate = |wfe: &&WorkflowExecution| {
            let uid = wfe.metadata.uid.as_ref();
            is_waiting(wfe)
                && uid.is_some_and(|uid| !self.failing.contains(uid))
                && self.now < start_deadline(wfe, self.settings, self.now)
        };
        self.requests.iter().copied().filter(is_candidate)
    }

    fn restriction(&self, wfe: &WorkflowExecution) -> Option<Restriction> {
        let workflow = &wfe.spec.workflow_ref.workflow_id;
        let limits = &self.settings.limits;
        self.history.restriction(workflow, self.now, limits)
    }
}

/// Of the requests that wait for a target, the one with the least age key goes first.
pub fn age(wfe: &WorkflowExecution) -> (Option<Timestamp>, Option<String>) {
    let created = wfe.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created, wfe.metadata.uid.clone())
}

/// Whether a request waits only for the target, or will once it is reconciled for the first time.
pub(crate) fn is_waiting(wfe: &WorkflowExecution) -> bool {
    let is =
        |kind, truth: TriState| stored(wfe, kind).is_some_and(|it| it.status == truth.as_str());
    let may_wait = wfe.spec.execution_config.when_blocked.as_deref() == Some("Wait");
    wfe.is_pending()
        && wfe.metadata.deletion_timestamp.is_none()
        && cancel_reason(wfe).is_none()
        && (may_wait || is(ConditionType::Blocked, TriState::True))
        && !is(ConditionType::WorkflowResolved, TriState::Unknown)
        && !is(ConditionType::DependenciesReady, TriState::Unknown)
}

/// Latest start of `wfe`. A remediation that waited for longer than its own timeout may no longer
/// fit the state of the target.
pub(crate) fn start_deadline(
    wfe: &WorkflowExecution,
    settings: &Settings,
    now: Timestamp,
) -> Timestamp {
    let created = wfe.metadata.creation_timestamp.as_ref();
    let created = created.map_or(now, |time| time.0);
    after(created, settings.timeout_of(wfe))
}

/// The user who cancelled, by the annotation; `None` without a cancellation.
pub(crate) fn cancelled_by(wfe: &WorkflowExecution) -> Option<&str> {
    cancel_reason(wfe)?;
    let annotations = wfe.metadata.annotations.as_ref()?;
    annotations.get(CANCELLED_BY).map(String::as_str)
}

/// The reason in the cancel annotation; `None` without a reason. The value `false` is none: users
/// write it to say that nothing is cancelled.
pub(crate) fn cancel_reason(wfe: &WorkflowExecution) -> Option<String> {
    /// Longer reasons would make the rest of the status hard to read.
    const MAX_REASON_CHARS: usize = 1024;
    let why = wfe.metadata.annotations.as_ref()?.get(CANCEL)?.trim();
    let is_reason = !why.is_empty() && !why.eq_ignore_ascii_case("false");
    is_reason.then(|| why.chars().take(MAX_REASON_CHARS).collect())
}

#[cfg(test)]
mod tests;
