//! Why one may not start now: the target is busy, or its history forbids it, or everything is
//! paused. What comes of it is what the request asked for: the end as Skipped, or to wait.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use wfe_model::duration;
use wfe_model::rules::{CheckedSpec, WhenBlocked};
use wfe_model::workflow_execution::{
    ConflictingWorkflow, Phase, RecentRemediation, SkipDetails, SkipReason, TriState,
    WorkflowExecution,
};

use super::ending::{cancel_reason, past, pending_audit, resolved, store, store_or};
use crate::condition::{ConditionType, Reason};
use crate::execution::Source;
use crate::history::{self, Entry, History, Outcome};
use crate::lock::Lock;
use crate::names::{self, TargetHash};
use crate::observed::Observed;
use crate::status::{Change, stored, time};
use crate::step::{Effect, Step};

/// What is in the way.
#[derive(Clone, Debug)]
pub(super) enum Obstacle {
    /// The execution namespace says that nothing new starts.
    Paused,
    /// Somebody works on the target, or is next.
    Busy(Source),
    /// What happened before.
    History(history::Obstacle),
}

/// What is in the way now, in the order of the contract.
pub(super) fn find(observed: &Observed, checked: &CheckedSpec) -> Option<Obstacle> {
    if observed.paused {
        return Some(Obstacle::Paused);
    }
    let history = past(observed, None);
    let busy = match &observed.lock {
        Lock::Held(holder) => Some(holder.clone()),
        Lock::Free => runs(observed)
            .or_else(|| observed.others_alive.clone())
            .or_else(|| ahead(observed, &history)),
        // Who holds it has been in nobody's way.
        Lock::Ours => None,
    };
    if let Some(who) = busy {
        return Some(Obstacle::Busy(who));
    }
    let limits = &observed.settings.limits;
    let found = history.obstacle(&checked.workflow_id, observed.now, limits);
    found.map(Obstacle::History)
}

/// One that runs without holding the lock: somebody deleted its Lease. One that the lock's record
/// knows to have ended only seems to run.
fn runs(observed: &Observed) -> Option<Source> {
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

/// The oldest of those that wait for the target and may run now, where that is another one.
fn ahead(observed: &Observed, history: &History) -> Option<Source> {
    let age = |wfe: &WorkflowExecution| {
        let created = wfe.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, wfe.metadata.uid.clone())
    };
    let limits = &observed.settings.limits;
    let may_run = |wfe: &&WorkflowExecution| {
        let workflow = &wfe.spec.workflow_ref.workflow_id;
        waits(wfe) && history.obstacle(workflow, observed.now, limits).is_none()
    };
    let waiting = observed
        .neighbours
        .iter()
        .map(AsRef::as_ref)
        .filter(may_run);
    let oldest = waiting.min_by_key(|wfe| age(wfe))?;
    (age(oldest) < age(&observed.wfe)).then(|| Source::of(oldest))
}

/// Whether a request waits for nothing but its turn, or will as soon as it has been looked at.
fn waits(wfe: &WorkflowExecution) -> bool {
    let is =
        |kind, truth: TriState| stored(wfe, kind).is_some_and(|it| it.status == truth.as_str());
    let patient = wfe.spec.execution_config.when_blocked.as_deref() == Some("Wait");
    wfe.phase().is_none_or(|phase| phase == Phase::Pending)
        && wfe.metadata.deletion_timestamp.is_none()
        && cancel_reason(wfe).is_none()
        && (patient || is(ConditionType::Blocked, TriState::True))
        && !is(ConditionType::WorkflowResolved, TriState::Unknown)
        && !is(ConditionType::DependenciesReady, TriState::Unknown)
}

/// What comes of it. A lock that was taken before the obstacle was seen is given back first.
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
        Obstacle::Paused => {
            let message = format!(
                "the namespace {} has the annotation {}: nothing new starts until it is taken off",
                observed.settings.execution_namespace,
                names::PAUSED
            );
            wait(observed, Reason::Paused, &message, Step::Done)
        }
        Obstacle::Busy(_) if waits => {
            // Who that is changes with each that goes before: the lock says it, and a status write
            // for each would be one for everybody's turn.
            let lock = names::lock_name(&TargetHash::of(&checked.target));
            let message = format!(
                "{} is being worked on: this one runs as soon as it may, the oldest first; the holder of Lease {}/{lock} is at work",
                checked.target, observed.settings.execution_namespace
            );
            wait(observed, Reason::ResourceBusy, &message, Step::Done)
        }
        Obstacle::Busy(who) => {
            let message = format!(
                "{} is being worked on by {}/{}",
                checked.target, who.namespace, who.name
            );
            let reason = SkipReason::ResourceBusy;
            let conflicting = conflict(observed, checked, who);
            skip(observed, reason, message, |details| {
                details.conflicting_workflow = Some(conflicting);
            })
        }
        Obstacle::History(found) => by_history(observed, checked, found, waits),
    }
}

fn by_history(
    observed: &Observed,
    checked: &CheckedSpec,
    found: &history::Obstacle,
    waits: bool,
) -> Step {
    let target = &checked.target;
    let (reason, entry, until, message) = match found {
        history::Obstacle::PreviousExecutionFailed(entry) => {
            let message = format!(
                "the last execution on {target}, {}, failed midway at {} and nobody has cleared it: {}",
                named(entry),
                entry.completion_time,
                how_to_clear(entry)
            );
            (SkipReason::PreviousExecutionFailed, entry, None, message)
        }
        history::Obstacle::ExhaustedRetries(entry, failures) => {
            let message = format!(
                "{failures} executions in a row on {target} failed before anything ran, the last was {}: {}",
                named(entry),
                how_to_clear(entry)
            );
            (SkipReason::ExhaustedRetries, entry, None, message)
        }
        history::Obstacle::BackoffActive(entry, until) => {
            let message = format!(
                "{}, the last execution on {target}, failed before anything ran at {}: the next one may start at {until}",
                named(entry),
                entry.completion_time
            );
            (SkipReason::BackoffActive, entry, Some(*until), message)
        }
        history::Obstacle::RecentlyRemediated(entry, until) => {
            let message = format!(
                "{}/{} ran the same workflow on {target} and succeeded at {}: it may run there again at {until}",
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

/// Never before the moment that is meant: statuses have whole seconds.
fn rounded_up(moment: Timestamp) -> Time {
    let floor = time(moment);
    if floor.0 < moment {
        return time(floor.0 + std::time::Duration::from_secs(1));
    }
    floor
}

fn named(entry: &Entry) -> String {
    format!(
        "{}/{} with workflow {}",
        entry.namespace, entry.name, entry.workflow_id
    )
}

fn how_to_clear(entry: &Entry) -> String {
    format!(
        "look at the target, then clear it: kubectl -n {} patch workflowexecution {} --subresource=status --type=merge -p '{{\"status\":{{\"blockClearanceRequest\":{{\"clearReason\":\"<what you found>\"}}}}}}'",
        entry.namespace, entry.name
    )
}

fn conflict(observed: &Observed, checked: &CheckedSpec, who: &Source) -> ConflictingWorkflow {
    let neighbours = observed.neighbours.iter();
    let known = neighbours
        .map(AsRef::as_ref)
        .find(|wfe: &&WorkflowExecution| wfe.metadata.uid.as_ref() == Some(&who.uid));
    ConflictingWorkflow {
        name: who.name.clone(),
        namespace: who.namespace.clone(),
        target_resource: checked.target.to_string(),
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

/// Stays Pending, and says why.
fn wait(observed: &Observed, reason: Reason, message: &str, then: Step) -> Step {
    let change = resolved(Change::of(&observed.wfe, observed.now))
        .condition(ConditionType::Blocked, TriState::True, reason, message)
        .with(|status| {
            status.phase = Some(Phase::Pending);
            // What could not be read before is read again when it may run.
            let unknown = |it: &Condition| {
                it.type_ == ConditionType::DependenciesReady.as_str()
                    && it.status == TriState::Unknown.as_str()
            };
            status.conditions.retain(|it| !unknown(it));
        });
    store_or(observed, change, then)
}

/// Ends as Skipped, after its own time was up.
pub(super) fn too_late(observed: &Observed, timeout: std::time::Duration) -> Step {
    let in_the_way = [
        (ConditionType::Blocked, TriState::True),
        (ConditionType::WorkflowResolved, TriState::Unknown),
        (ConditionType::DependenciesReady, TriState::Unknown),
    ];
    let found = in_the_way.iter().find_map(|(kind, truth)| {
        stored(&observed.wfe, *kind).filter(|it| it.status == truth.as_str())
    });
    let why = found.map_or_else(
        || "the controller did not see it in time".to_owned(),
        |it| it.message.clone(),
    );
    let message = format!(
        "it did not start within its timeout of {}, and is stale by now; what was in its way: {why}",
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
    let change = change
        .condition(
            ConditionType::Blocked,
            TriState::True,
            reason.into(),
            &message,
        )
        .condition(
            ConditionType::Ready,
            TriState::False,
            Reason::NotReady,
            &message,
        );
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
    Step::Do(store(pending_audit(observed, change)))
}

#[cfg(test)]
mod tests;
