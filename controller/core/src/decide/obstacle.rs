//! Why a request may not start now: the execution namespace is paused or gone, the target is busy, or its
//! history restricts the next run. The request then ends as Skipped or stays Pending, as its
//! `executionConfig.whenBlocked` says.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use wfe_model::duration;
use wfe_model::rules::{CheckedSpec, WhenBlocked};
use wfe_model::target::Target;
use wfe_model::workflow_execution::{
    ConflictingWorkflow, Phase, RecentRemediation, SkipDetails, SkipReason, TriState,
    WorkflowExecution,
};

use super::ending::{pending, resolved, stalled, store, store_or, target_history};
use crate::clearing;
use crate::condition::{ConditionType, Reason};
use crate::execution::{Alive, Source};
use crate::history::{Entry, History, Outcome, Restriction};
use crate::line::{Line, age, is_waiting};
use crate::lock::Lock;
use crate::names::{self, TargetHash};
use crate::observed::{Full, Observed, Unread};
use crate::status::{Change, stored, time};
use crate::step::{Effect, Step};

/// What keeps a request from starting.
#[derive(Clone, Debug)]
pub(super) enum Obstacle {
    /// No execution starts in the execution namespace, for this reason.
    Closed(String),
    /// The target is in use, or another WorkflowExecution is next.
    Busy(User),
    /// As many executions run as may.
    Full(Full),
    /// Cooldown, backoff or block.
    History(Restriction),
}

/// Who uses the target.
#[derive(Clone, Debug)]
pub(super) enum User {
    /// The WorkflowExecution that holds the lock.
    Holder(Source),
    /// The text that a user has written as the lock's holder.
    ByHand(String),
    /// A WorkflowExecution in phase Running that does not hold the lock.
    Running(Source),
    /// An object that has not ended.
    Alive(Alive),
    /// An older WorkflowExecution that waits for the target.
    Next(Source),
    /// A WorkflowExecution that cannot be read: it may run, or block the target.
    Unread(Unread),
}

impl User {
    fn source(&self) -> Option<&Source> {
        match self {
            Self::Holder(source) | Self::Running(source) | Self::Next(source) => Some(source),
            Self::Alive(alive) => Some(&alive.source),
            Self::Unread(unread) => Some(&unread.source),
            Self::ByHand(_) => None,
        }
    }

    /// Who uses the target, as part of a sentence; `lock` is the namespace and name of its Lease.
    fn sentence(&self, lock: &str) -> String {
        match self {
            Self::Holder(it) => format!(
                "WorkflowExecution {}/{} holds its lock",
                it.namespace, it.name
            ),
            Self::ByHand(text) => format!(
                "its lock was taken by hand (Lease {lock} has the holder {text:?}; remove spec.holderIdentity to free it)"
            ),
            Self::Running(it) => {
                format!("WorkflowExecution {}/{} runs on it", it.namespace, it.name)
            }
            Self::Alive(it) => format!(
                "{} of WorkflowExecution {}/{} has not ended",
                it.object, it.source.namespace, it.source.name
            ),
            Self::Next(it) => format!(
                "WorkflowExecution {}/{} has waited for it longer",
                it.namespace, it.name
            ),
            Self::Unread(it) => format!(
                "WorkflowExecution {}/{} cannot be read by this version of the controller and may run or block it ({}; upgrade the controller, or correct the object)",
                it.source.namespace, it.source.name, it.error
            ),
        }
    }
}

/// The first obstacle, in the documented order of the skip reasons.
pub(super) fn find(observed: &Observed, checked: &CheckedSpec) -> Option<Obstacle> {
    let namespace = &observed.settings.execution_namespace;
    if let Some((cause, until)) = observed.gate.closed(namespace) {
        return Some(Obstacle::Closed(format!("{cause} until {until}")));
    }
    let history = target_history(observed, None);
    let busy = match &observed.lock {
        Lock::Held(holder) => Some(User::Holder(holder.clone())),
        Lock::ByHand(text) => Some(User::ByHand(text.clone())),
        Lock::Free => (observed.unread.clone().map(User::Unread))
            .or_else(|| running_without_lock(observed).map(User::Running))
            .or_else(|| observed.others_alive.clone().map(User::Alive))
            .or_else(|| older_waiting(observed, &history).map(User::Next)),
        // Checked before this WorkflowExecution took the lock.
        Lock::Ours => None,
    };
    if let Some(user) = busy {
        return Some(Obstacle::Busy(user));
    }
    let limits = &observed.settings.limits;
    let restriction = history.restriction(&checked.workflow_id, observed.now, limits);
    restriction.map(Obstacle::History)
}

/// A WorkflowExecution that runs although the lock is free: its Lease was deleted. If the lock has
/// a record of its end, the cached phase Running is stale.
fn running_without_lock(observed: &Observed) -> Option<Source> {
    let has_ended = |source: &Source| {
        let mut records = observed.target_lock.records();
        records.any(|record| record.uid == source.uid)
    };
    let running = observed
        .neighbours
        .iter()
        .filter(|it| it.phase() == Some(Phase::Running));
    running
        .map(|it| Source::of(it))
        .find(|source| !has_ended(source))
}

/// The WorkflowExecution that is next for the target, if older than the observed one. One that is
/// past its deadline, or whose pass fails, does not delay the others.
fn older_waiting(observed: &Observed, history: &History) -> Option<Source> {
    let line = Line {
        requests: observed.neighbours.iter().map(AsRef::as_ref).collect(),
        history,
        failing: &observed.failing,
        settings: &observed.settings,
        now: observed.now,
    };
    let oldest = line.next()?;
    (age(oldest) < age(&observed.wfe)).then(|| Source::of(oldest))
}

/// The step for an obstacle. Frees the lock first if the obstacle appeared after the lock was
/// taken.
pub(super) fn blocked(observed: &Observed, checked: &CheckedSpec, obstacle: &Obstacle) -> Step {
    if observed.lock == Lock::Ours {
        return if observed.pods_alive || observed.others_alive.is_some() {
            Step::Done
        } else {
            Step::Do(Effect::FreeLock(None))
        };
    }
    let waits = checked.when_blocked == WhenBlocked::Wait;
    match obstacle {
        Obstacle::Closed(message) => wait(observed, Reason::Paused, message, Step::Done),
        Obstacle::Busy(user) => busy(observed, checked, user, waits),
        Obstacle::Full(full) => no_room(observed, *full, waits),
        Obstacle::History(restriction) => restricted(observed, checked, restriction, waits),
    }
}

fn busy(observed: &Observed, checked: &CheckedSpec, user: &User, waits: bool) -> Step {
    let (reason, target) = (SkipReason::ResourceBusy, &checked.target);
    let namespace = &observed.settings.execution_namespace;
    let lock = names::lock_name(&TargetHash::of(target));
    let lock = format!("{namespace}/{lock}");
    let who = user.sentence(&lock);
    if !waits {
        let message = format!(
            "{target} is busy, {who}: create this WorkflowExecution again later, or with executionConfig.whenBlocked Wait"
        );
        let conflicting = user.source().map(|it| conflict(observed, checked, it));
        return skip(observed, reason, message, |details| {
            details.conflicting_workflow = conflicting;
        });
    }
    // Stored once: if it followed every change of the holder, each would cause a status write for
    // every request that waits. Not so where a person must act, which is rare.
    let person = matches!(user, User::ByHand(_) | User::Unread(_));
    let waiting = stored(&observed.wfe, ConditionType::Blocked).filter(|it| {
        it.status == TriState::True.as_str() && it.reason == Reason::ResourceBusy.as_str()
    });
    if let Some(maximum) = waiting.is_none().then(|| line_is_full(observed)).flatten() {
        let message = format!(
            "{target} is busy, {who}, and {maximum} older WorkflowExecutions wait for it, as many as may wait (--max-waiting-per-target): create this WorkflowExecution again later"
        );
        return skip(observed, reason, message, |_| ());
    }
    // The reason is also that of too many running executions.
    let of_target = format!("{target} was busy");
    let waiting = waiting
        .filter(|it| it.message.starts_with(&of_target) && (!person || it.message.contains(&who)));
    let message = waiting.map_or_else(
        || {
            format!(
                "{target} was busy at {}, {who}: this WorkflowExecution starts after the older ones that wait for the target; the holder of Lease {lock}, if there is one, uses it now",
                time(observed.now).0
            )
        },
        |it| it.message.clone(),
    );
    wait(observed, reason.into(), &message, Step::Done)
}

fn no_room(observed: &Observed, full: Full, waits: bool) -> Step {
    let cause = match full {
        Full::Cluster(maximum) => {
            format!("{maximum} executions run, as many as may at the same time (--max-running)")
        }
        Full::Namespace(maximum) => format!(
            "{maximum} executions of namespace {} run, as many as may at the same time (--max-running-per-namespace)",
            observed.source.namespace
        ),
    };
    let reason = SkipReason::ResourceBusy;
    if waits {
        let message = format!("{cause}: this WorkflowExecution starts when one has ended");
        return wait(observed, reason.into(), &message, Step::Done);
    }
    let message = format!(
        "{cause}: create this WorkflowExecution again later, or with executionConfig.whenBlocked Wait"
    );
    skip(observed, reason, message, |_| ())
}

/// The number of requests that may wait for a target, if as many older ones do.
fn line_is_full(observed: &Observed) -> Option<u32> {
    let maximum = observed.settings.max_waiting_per_target;
    let waiting = observed.neighbours.iter();
    let older = waiting.filter(|it| is_waiting(it) && age(it) < age(&observed.wfe));
    let older = u32::try_from(older.count()).unwrap_or(u32::MAX);
    (maximum > 0 && older >= maximum).then_some(maximum)
}

fn restricted(
    observed: &Observed,
    checked: &CheckedSpec,
    restriction: &Restriction,
    waits: bool,
) -> Step {
    let target = &checked.target;
    let (reason, entry, until, message) = match restriction {
        Restriction::PreviousExecutionFailed(entry) => {
            let message = format!(
                "the last execution on {target}, {}, failed at {} and may have changed the target, and its block is not cleared: {}",
                named(entry),
                entry.completion_time,
                how_to_clear(observed, target, entry)
            );
            (SkipReason::PreviousExecutionFailed, entry, None, message)
        }
        Restriction::ExhaustedRetries(entry, failures) => {
            let message = format!(
                "{failures} executions in a row on {target} failed before a container started, the last was {}: {}",
                named(entry),
                how_to_clear(observed, target, entry)
            );
            (SkipReason::ExhaustedRetries, entry, None, message)
        }
        Restriction::BackoffActive(entry, until) => {
            let message = format!(
                "the last execution on {target}, {}, failed at {} before a container started: no execution starts on the target before {until}",
                named(entry),
                entry.completion_time
            );
            (SkipReason::BackoffActive, entry, Some(*until), message)
        }
        Restriction::RecentlyRemediated(entry, until) => {
            let message = format!(
                "WorkflowExecution {}/{} ran the same workflow on {target} and succeeded at {}: the workflow may run on the target again at {until}",
                entry.namespace, entry.name, entry.completion_time
            );
            (SkipReason::RecentlyRemediated, entry, Some(*until), message)
        }
    };
    if let Some(until) = until.filter(|_| waits) {
        return wait(observed, reason.into(), &message, Step::Wait(until));
    }
    let recent = recent(
        observed,
        entry,
        until.filter(|_| reason == SkipReason::RecentlyRemediated),
    );
    skip(observed, reason, message, |details| {
        details.recent_remediation = Some(recent);
        details.retry_at = until.map(rounded_up);
    })
}

/// Statuses have whole seconds; rounding down would give a time that is too early.
fn rounded_up(moment: Timestamp) -> Time {
    let floor = time(moment);
    if floor.0 < moment {
        return time(floor.0 + std::time::Duration::from_secs(1));
    }
    floor
}

fn named(entry: &Entry) -> String {
    format!(
        "WorkflowExecution {}/{} (workflow {})",
        entry.namespace, entry.name, entry.workflow_id
    )
}

fn how_to_clear(observed: &Observed, target: &Target, entry: &Entry) -> String {
    let neighbours = observed.neighbours.iter().map(AsRef::as_ref);
    let namespace = &observed.settings.execution_namespace;
    let command = clearing::command_for(entry, neighbours, &target.to_string(), namespace);
    format!("look at the target, then clear the block: {command}")
}

fn conflict(observed: &Observed, checked: &CheckedSpec, source: &Source) -> ConflictingWorkflow {
    let neighbours = observed.neighbours.iter();
    let known = neighbours
        .map(AsRef::as_ref)
        .find(|wfe: &&WorkflowExecution| wfe.metadata.uid.as_ref() == Some(&source.uid));
    ConflictingWorkflow {
        name: source.name.clone(),
        namespace: source.namespace.clone(),
        target_resource: known.map_or_else(
            || checked.target.to_string(),
            |it| it.spec.target_resource.clone(),
        ),
        workflow_id: known
            .map(|it| it.spec.workflow_ref.workflow_id.clone())
            .unwrap_or_default(),
        started_at: known.and_then(|it| it.status.as_ref()?.start_time.clone()),
    }
}

fn recent(observed: &Observed, entry: &Entry, until: Option<Timestamp>) -> RecentRemediation {
    let left = until.map(|until| until.duration_since(observed.now));
    RecentRemediation {
        name: entry.name.clone(),
        workflow_id: entry.workflow_id.clone(),
        completed_at: Some(time(entry.completion_time)),
        outcome: match entry.outcome {
            Outcome::Succeeded => "Succeeded".to_owned(),
            Outcome::Failed => "Failed".to_owned(),
        },
        cooldown_remaining: left.map(|left| duration::format(left.try_into().unwrap_or_default())),
    }
}

/// Stays Pending, with the obstacle in the condition `Blocked`.
fn wait(observed: &Observed, reason: Reason, message: &str, then: Step) -> Step {
    let change = resolved(Change::of(&observed.wfe, observed.now)).condition(
        ConditionType::Blocked,
        TriState::True,
        reason,
        message,
    );
    let change = pending(change, reason, message).with(|status| {
        // Dependencies are read again when the request may run: an old read error would
        // mislead.
        let unknown = |it: &Condition| {
            it.type_ == ConditionType::DependenciesReady.as_str()
                && it.status == TriState::Unknown.as_str()
        };
        status.conditions.retain(|it| !unknown(it));
    });
    store_or(observed, change, then)
}

/// Ends as Skipped: the request did not start within its own timeout.
pub(super) fn skip_stale(observed: &Observed, timeout: std::time::Duration) -> Step {
    let obstacles = [
        (ConditionType::Blocked, TriState::True),
        (ConditionType::WorkflowResolved, TriState::Unknown),
        (ConditionType::DependenciesReady, TriState::Unknown),
    ];
    let found = obstacles.iter().find_map(|(kind, truth)| {
        stored(&observed.wfe, *kind).filter(|it| it.status == truth.as_str())
    });
    let why = found.map_or_else(
        || "the controller did not reconcile the WorkflowExecution in time".to_owned(),
        |it| it.message.clone(),
    );
    let message = format!(
        "the execution did not start within its timeout of {}: create the WorkflowExecution again if it is still needed; the last obstacle was: {why}",
        duration::format(timeout)
    );
    let change = Change::of(&observed.wfe, observed.now);
    skipped(
        observed,
        change,
        SkipReason::StartDeadlineExceeded,
        message,
        |_| (),
    )
}

fn skip(
    observed: &Observed,
    reason: SkipReason,
    message: String,
    more: impl FnOnce(&mut SkipDetails),
) -> Step {
    let change = resolved(Change::of(&observed.wfe, observed.now));
    skipped(observed, change, reason, message, more)
}

fn skipped(
    observed: &Observed,
    change: Change,
    reason: SkipReason,
    message: String,
    more: impl FnOnce(&mut SkipDetails),
) -> Step {
    let change = stalled(observed, change, reason.into(), &message);
    let mut details = SkipDetails {
        reason,
        message,
        skipped_at: time(observed.now),
        conflicting_workflow: None,
        recent_remediation: None,
        retry_at: None,
    };
    more(&mut details);
    let change = change.with(|status| {
        status.phase = Some(Phase::Skipped);
        status.completion_time = Some(time(observed.now));
        status.skip_details = Some(details);
    });
    Step::Do(store(change))
}

#[cfg(test)]
mod tests;
