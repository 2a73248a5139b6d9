//! From created to ended: the execution is followed, its end is stored. The backend's clock is not
//! the only one: what does not start in time is given up, what does not end is told of.

use std::time::Duration;

use jiff::Timestamp;
use wfe_model::duration;
use wfe_model::workflow_execution::{ExecutionStatusSummary, FailureReason, Phase, TriState};

use super::ending::{
    LOOK_AGAIN, began, began_before, delete, elapsed, fail, pending_audit, started, store,
    store_or, tell_or, timeout, told_of_start,
};
use crate::condition::{ConditionType, Reason};
use crate::execution::{Cause, Created, Execution, Facts, Progress, Remains, Waiting};
use crate::failure::{self, Failure};
use crate::lock::Lock;
use crate::observed::Observed;
use crate::status::{Change, after, stored, time};
use crate::step::{Effect, Notice, Question, Step};

/// An execution that has not ended so long after its timeout has a backend that does not work.
const OVERDUE: Duration = Duration::from_mins(2);

/// What has not started after so long is asked for the reason, where its pod does not say it.
const SLOW: Duration = Duration::from_secs(10);

pub(super) fn decide(observed: &Observed) -> Step {
    let stored = observed.wfe.execution_ref();
    let same =
        |execution: &&Execution| stored.is_some_and(|stored| stored.uid == execution.reference.uid);
    let read = observed.answers.execution.as_ref();
    if let Some(execution) = observed.execution.as_ref().filter(same) {
        // The watch of the pods may be behind: only the API server knows what they say.
        return match read {
            None if lacks_facts(execution) => Step::Ask(Question::Execution),
            read => {
                let newer = read.and_then(Option::as_ref).filter(same);
                follow(observed, newer.unwrap_or(execution))
            }
        };
    }
    // Created in this very pass: the cache will show it.
    if let Some(created) = &observed.answers.created {
        return match created {
            Created::Ours(execution) if same(&execution.as_ref()) => follow(observed, execution),
            _ => Step::Done,
        };
    }
    // Not in the cache: only the API server itself knows whether it is gone.
    match read {
        None => Step::Ask(Question::Execution),
        Some(read) => match read.as_ref().filter(same) {
            Some(execution) => match follow(observed, execution) {
                Step::Done => Step::Wait(observed.now + LOOK_AGAIN),
                Step::Wait(until) => Step::Wait(until.min(observed.now + LOOK_AGAIN)),
                step => step,
            },
            None if given_up(observed) => gave_up(observed),
            None => deleted(observed),
        },
    }
}

/// Whether it failed and nobody knows how.
fn lacks_facts(execution: &Execution) -> bool {
    matches!(&execution.progress, Progress::Failed { facts, .. } if facts.container.is_none())
}

fn follow(observed: &Observed, execution: &Execution) -> Step {
    match &execution.progress {
        Progress::Active { waiting } => active(observed, execution, waiting.as_ref()),
        Progress::Succeeded { at } => {
            let at = at.unwrap_or(observed.now);
            let message = "the workflow has succeeded";
            let change = ran(
                observed,
                execution,
                Change::of(&observed.wfe, observed.now),
                true,
            )
            .condition(
                ConditionType::ExecutionComplete,
                TriState::True,
                Reason::ExecutionSucceeded,
                message,
            )
            .condition(ConditionType::Ready, TriState::True, Reason::Ready, message)
            .with(|status| {
                status.phase = Some(Phase::Succeeded);
                status.completion_time = Some(time(at));
                status.duration = status.start_time.as_ref().map(|start| elapsed(start.0, at));
                status.execution_status = Some(summary(TriState::True, "Complete", message));
            });
            Step::Do(store(pending_audit(observed, change)))
        }
        Progress::Failed { at, facts } => {
            failed(observed, execution, facts, at.unwrap_or(observed.now))
        }
    }
}

fn failed(observed: &Observed, execution: &Execution, facts: &Facts, at: jiff::Timestamp) -> Step {
    let began = began(observed, Some(execution)).is_some() || began_before(observed);
    let known = began || facts.container.is_some() || waited(observed).is_some();
    if !known && lacks_diagnosis(observed, facts.waiting.as_ref()) {
        return diagnose(execution);
    }
    let waited = diagnosed(observed).cloned().or_else(|| waited(observed));
    let failure = failure::judge(facts, began, waited.as_ref());
    let reason = facts.reason.as_deref().unwrap_or("Failed");
    let change = ran(
        observed,
        execution,
        Change::of(&observed.wfe, observed.now),
        failure.was_execution_failure,
    )
    .with(|status| {
        status.execution_status = Some(summary(TriState::False, reason, &failure.message));
    });
    Step::Do(store(fail(observed, change, &failure, at)))
}

/// What the stored status says of why it does not start, or is taken away.
fn waited(observed: &Observed) -> Option<Waiting> {
    let summary = observed.wfe.status.as_ref()?.execution_status.as_ref()?;
    Some(Waiting {
        cause: summary.reason.as_deref()?.parse().ok()?,
        message: summary.message.clone().unwrap_or_default(),
    })
}

/// Says that it began, where it did: with the container's own time.
fn ran(observed: &Observed, execution: &Execution, change: Change, ran: bool) -> Change {
    if !ran {
        return change;
    }
    let since = began(observed, Some(execution))
        .or(execution.created)
        .unwrap_or(observed.now);
    started(change, since)
}

fn active(observed: &Observed, execution: &Execution, waiting: Option<&Waiting>) -> Step {
    // Somebody deleted its Lease: others must not take the target for free.
    match observed.lock {
        _ if observed.answers.lock_lost => return Step::Ask(Question::Lock),
        Lock::Free => return Step::Do(Effect::TakeLock),
        Lock::Ours | Lock::Held(_) => {}
    }
    if given_up(observed) {
        return delete(observed, &execution.reference);
    }
    // It is stored that this object is the execution, and the status cannot go back: so this object
    // is the only one that is ever started.
    let alone = observed.lock == Lock::Ours && observed.others_alive.is_none();
    if execution.held && alone && !observed.answers.started {
        return Step::Do(Effect::Start(execution.reference.clone()));
    }
    let wait = clocks(observed, execution);
    let taken = waiting.filter(|it| it.cause == Cause::Disrupted);
    if let Some(taken) = taken.filter(|it| waited(observed).as_ref() != Some(*it)) {
        return taken_away(observed, execution, taken);
    }
    if began_before(observed) {
        return wait;
    }
    let change = Change::of(&observed.wfe, observed.now);
    let change = if began(observed, Some(execution)).is_some() {
        ran(observed, execution, change, true).with(|status| {
            status.execution_status = Some(summary(
                TriState::Unknown,
                "Running",
                "the workflow is running",
            ));
        })
    } else if must_have_begun_at(observed) <= observed.now {
        // The watch of the pods may be behind: that nothing started takes the API server's word.
        return match observed.answers.execution {
            None => Step::Ask(Question::Execution),
            Some(_) if lacks_diagnosis(observed, waiting) => diagnose(execution),
            Some(_) => give_up(observed, waiting.or(diagnosed(observed))),
        };
    } else if lacks_diagnosis(observed, waiting)
        && waited(observed).is_none()
        && slow_at(observed) <= observed.now
    {
        return diagnose(execution);
    } else if let Some(waiting) = waiting.or(diagnosed(observed)) {
        // ErrImagePull and ImagePullBackOff take turns: one of them is enough to know.
        if waited(observed).is_some_and(|before| before.cause == waiting.cause) {
            return wait;
        }
        not_running(change, Reason::Waiting, waiting)
    } else {
        return wait;
    };
    store_or(observed, change, wait)
}

/// When to look again though nothing has changed.
fn clocks(observed: &Observed, execution: &Execution) -> Step {
    if began(observed, Some(execution)).is_none() && !began_before(observed) {
        let slow = slow_at(observed);
        let until = must_have_begun_at(observed);
        return Step::Wait(if observed.now < slow {
            until.min(slow)
        } else {
            until
        });
    }
    let overdue = since_start(observed, timeout(observed).saturating_add(OVERDUE));
    if observed.now < overdue {
        return Step::Wait(overdue);
    }
    tell_or(observed, Notice::Overdue, Step::Done)
}

/// Whether its pod does not say why it does not start: then the Events are asked.
fn lacks_diagnosis(observed: &Observed, waiting: Option<&Waiting>) -> bool {
    waiting.is_none() && observed.answers.startup_diagnosis.is_none()
}

fn diagnose(execution: &Execution) -> Step {
    Step::Ask(Question::StartupDiagnosis(execution.reference.clone()))
}

/// What the Events said.
fn diagnosed(observed: &Observed) -> Option<&Waiting> {
    observed.answers.startup_diagnosis.as_ref()?.as_ref()
}

/// The cluster takes its pod away: this is stored as soon as it is seen, the pod will not be there
/// to say it at the end.
fn taken_away(observed: &Observed, execution: &Execution, taken: &Waiting) -> Step {
    let began = began(observed, Some(execution)).is_some();
    let change = Change::of(&observed.wfe, observed.now).with(|status| {
        let (cause, message) = (taken.cause.as_str(), &taken.message);
        status.execution_status = Some(summary(TriState::Unknown, cause, message));
    });
    Step::Do(store(ran(observed, execution, change, began)))
}

/// Before the backend's own deadline takes the pod away.
fn slow_at(observed: &Observed) -> Timestamp {
    since_start(observed, SLOW.min(timeout(observed) / 2))
}

fn must_have_begun_at(observed: &Observed) -> Timestamp {
    since_start(observed, observed.settings.start_timeout)
}

fn since_start(observed: &Observed, span: Duration) -> Timestamp {
    let status = observed.wfe.status.as_ref();
    let start = status.and_then(|status| status.start_time.as_ref());
    let start = start.map_or(observed.now, |time| time.0);
    after(start, span)
}

/// Whether it is stored that the execution did not start in time and is being deleted: without it
/// that could not be told from a deletion by hand.
fn given_up(observed: &Observed) -> bool {
    let running = stored(&observed.wfe, ConditionType::ExecutionRunning);
    running.is_some_and(|it| it.reason == Reason::NotStarted.as_str())
}

/// No container started in time: first the cause is stored, then the execution is deleted.
fn give_up(observed: &Observed, waiting: Option<&Waiting>) -> Step {
    let allowed = duration::format(observed.settings.start_timeout);
    let (cause, why) = match waiting.cloned().or_else(|| waited(observed)) {
        Some(waiting) => (waiting.cause, format!(": {}", waiting.message)),
        None => (Cause::NotStarted, String::new()),
    };
    let message = format!("no container started within {allowed}{why}");
    let change = Change::of(&observed.wfe, observed.now);
    let waiting = Waiting { cause, message };
    Step::Do(store(not_running(change, Reason::NotStarted, &waiting)))
}

/// Says why no container runs.
fn not_running(change: Change, reason: Reason, waiting: &Waiting) -> Change {
    let (cause, message) = (waiting.cause.as_str(), &waiting.message);
    change
        .condition(
            ConditionType::ExecutionRunning,
            TriState::False,
            reason,
            message,
        )
        .with(|status| {
            status.execution_status = Some(summary(TriState::Unknown, cause, message));
        })
}

/// The execution that was given up is gone: when its pods are, too, this is the end.
fn gave_up(observed: &Observed) -> Step {
    if observed.pods_alive {
        // The sign to look again is the end of the pod.
        let late = after(must_have_begun_at(observed), OVERDUE);
        if observed.now < late {
            return Step::Wait(late);
        }
        return tell_or(observed, Notice::PodRemains, Step::Done);
    }
    match observed.answers.remains {
        None => Step::Ask(Question::Remains),
        Some(Remains::Alive | Remains::Ended) => Step::Wait(observed.now + LOOK_AGAIN),
        Some(Remains::Nothing) => {
            // It may have started while it was being deleted.
            let late = observed.began.filter(|_| !began_before(observed));
            let ran = late.is_some() || began_before(observed);
            let failure = failure::never_started(waited(observed), ran);
            let change = Change::of(&observed.wfe, observed.now);
            let change = match late {
                Some(since) => started(change, since),
                None => change,
            };
            Step::Do(store(fail(observed, change, &failure, observed.now)))
        }
    }
}

/// Somebody else has deleted it.
fn deleted(observed: &Observed) -> Step {
    let what = observed.wfe.execution_ref().map_or_else(
        || "the execution".to_owned(),
        |it| format!("{} {}/{}", it.kind, it.namespace, it.name),
    );
    let failure = Failure {
        reason: FailureReason::ExecutionDeleted,
        message: format!("{what} was deleted while it ran"),
        exit_code: None,
        // Whether it ran cannot be known any more.
        was_execution_failure: true,
    };
    let change = told_of_start(observed, None);
    Step::Do(store(fail(observed, change, &failure, observed.now)))
}

fn summary(status: TriState, reason: &str, message: &str) -> ExecutionStatusSummary {
    ExecutionStatusSummary {
        status,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        completed_tasks: None,
        total_tasks: None,
    }
}
