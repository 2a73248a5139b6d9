//! Phase Running: starts the execution, follows it, and stores how it ended. Deletes an execution
//! that exceeds the start timeout, and notifies operators of an execution that does not end at its
//! own timeout.

use std::time::Duration;

use jiff::Timestamp;
use wfe_model::duration;
use wfe_model::workflow_execution::{ExecutionStatusSummary, FailureReason, Phase, TriState};

use super::ending::{
    OVERDUE, RECHECK_DELAY, began, delete, elapsed, fail, notify_or, overdue_at, pending_audit,
    since_start, start_is_stored, started, store, store_or, timeout, with_observed_start,
};
use crate::condition::{ConditionType, Reason};
use crate::execution::{Cause, Created, Execution, Facts, Progress, Remains, Tasks, Waiting};
use crate::failure::{self, Failure};
use crate::lock::Lock;
use crate::observed::Observed;
use crate::status::{Change, after, stored, time};
use crate::step::{Effect, Notice, Question, Step};

/// How long an execution may be without a started container, and without a reason in its pod, until
/// its Events are read.
const DIAGNOSIS_DELAY: Duration = Duration::from_secs(10);

/// `executionStatus.reason` while the workflow runs.
const RUNNING: &str = "Running";

pub(super) fn decide(observed: &Observed) -> Step {
    let stored = observed.wfe.execution_ref();
    let same =
        |execution: &&Execution| stored.is_some_and(|stored| stored.uid == execution.reference.uid);
    let read = observed.answers.execution.as_ref();
    if let Some(execution) = observed.execution.as_ref().filter(same) {
        // The pod watch may lag: an uncached read shows how the container ended.
        return match read {
            None if lacks_container_end(execution) => Step::Ask(Question::Execution),
            read => {
                let newer = read.and_then(Option::as_ref).filter(same);
                follow(observed, newer.unwrap_or(execution))
            }
        };
    }
    // Created in this pass: the cache does not show the execution yet.
    if let Some(created) = &observed.answers.created {
        return match created {
            Created::Ours(execution) if same(&execution.as_ref()) => follow(observed, execution),
            _ => Step::Done,
        };
    }
    // Not in the cache: only an uncached read proves that the execution is gone.
    match read {
        None => Step::Ask(Question::Execution),
        Some(read) => match read.as_ref().filter(same) {
            Some(execution) => match follow(observed, execution) {
                Step::Done => Step::Wait(observed.now + RECHECK_DELAY),
                Step::Wait(until) => Step::Wait(until.min(observed.now + RECHECK_DELAY)),
                step => step,
            },
            None if start_timed_out(observed) => finish_start_timeout(observed),
            None => fail_deleted(observed),
        },
    }
}

/// Whether the execution failed and its container's end is not known.
fn lacks_container_end(execution: &Execution) -> bool {
    matches!(&execution.progress, Progress::Failed { facts, .. } if facts.container.is_none())
}

fn follow(observed: &Observed, execution: &Execution) -> Step {
    match &execution.progress {
        Progress::Active { waiting } => active(observed, execution, waiting.as_ref()),
        Progress::Succeeded { at, summary: text } => {
            let at = at.unwrap_or(observed.now);
            let message = "the workflow has succeeded";
            let text = text.as_deref().unwrap_or(message);
            let change = with_start(
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
                status.execution_status =
                    Some(summary(TriState::True, "Complete", text, execution.tasks));
            });
            Step::Do(store(pending_audit(observed, change)))
        }
        Progress::Failed { at, facts } => {
            failed(observed, execution, facts, at.unwrap_or(observed.now))
        }
    }
}

fn failed(observed: &Observed, execution: &Execution, facts: &Facts, at: jiff::Timestamp) -> Step {
    let began = has_begun(observed, execution);
    let known = began || facts.container.is_some() || stored_waiting(observed).is_some();
    if !known && lacks_diagnosis(observed, facts.waiting.as_ref()) {
        return diagnose(execution);
    }
    let waiting = diagnosed(observed)
        .cloned()
        .or_else(|| stored_waiting(observed));
    let failure = failure::classify(facts, began, waiting.as_ref());
    let reason = facts.reason.as_deref().unwrap_or("Failed");
    let change = with_start(
        observed,
        execution,
        Change::of(&observed.wfe, observed.now),
        failure.was_execution_failure,
    )
    .with(|status| {
        status.execution_status = Some(summary(
            TriState::False,
            reason,
            &failure.message,
            execution.tasks,
        ));
    });
    Step::Do(store(fail(observed, change, &failure, at)))
}

/// The stored reason why the execution does not start or is being disrupted. A stored suspension is
/// none: it may be over, and a container may have run since.
fn stored_waiting(observed: &Observed) -> Option<Waiting> {
    stored_summary(observed).filter(|it| it.cause != Cause::Suspended)
}

fn stored_summary(observed: &Observed) -> Option<Waiting> {
    let summary = observed.wfe.status.as_ref()?.execution_status.as_ref()?;
    Some(Waiting {
        cause: summary.reason.as_deref()?.parse().ok()?,
        message: summary.message.clone().unwrap_or_default(),
    })
}

/// Sets `ExecutionRunning=True` if `ran`, since the container's own start time if known.
fn with_start(observed: &Observed, execution: &Execution, change: Change, ran: bool) -> Change {
    if !ran {
        return change;
    }
    let since = began(observed, Some(execution))
        .or(execution.created)
        .unwrap_or(observed.now);
    started(change, since)
}

fn active(observed: &Observed, execution: &Execution, waiting: Option<&Waiting>) -> Step {
    // The Lease was deleted while the execution runs: take it again before another request does.
    match observed.lock {
        _ if observed.answers.lock_lost => return Step::Ask(Question::Lock),
        Lock::Free => return Step::Do(Effect::TakeLock),
        Lock::Ours | Lock::Held(_) | Lock::ByHand(_) => {}
    }
    if start_timed_out(observed) {
        return delete(observed, &execution.reference);
    }
    let suspended = waiting.filter(|it| it.cause == Cause::Suspended);
    if let Some(suspended) = suspended.filter(|_| has_begun(observed, execution)) {
        return fail_suspended(observed, execution, suspended);
    }
    // The status stores this object's uid, and no later write changes that reference: so no other
    // object is ever started for this WorkflowExecution.
    let alone = observed.lock == Lock::Ours && observed.others_alive.is_none();
    // A start that always fails must not keep the start timeout from ending the execution.
    let timed_out = start_timeout_at(observed, execution).is_some_and(|it| it <= observed.now);
    if execution.held && alone && !timed_out && !observed.answers.started {
        return Step::Do(Effect::Start(execution.reference.clone()));
    }
    let wait = next_deadline(observed, execution);
    // What kept a container from starting matters more than the timeout.
    let begun = has_begun(observed, execution);
    let waiting = waiting.filter(|it| begun || it.cause != Cause::Stopping);
    let disruption = waiting.filter(|it| matches!(it.cause, Cause::Disrupted | Cause::Stopping));
    if let Some(disruption) = disruption.filter(|it| stored_waiting(observed).as_ref() != Some(*it))
    {
        return store_disruption(observed, execution, disruption);
    }
    if start_is_stored(observed) {
        return store_progress(observed, execution, wait);
    }
    let change = Change::of(&observed.wfe, observed.now);
    let change = if began(observed, Some(execution)).is_some() {
        with_start(observed, execution, change, true).with(|status| {
            status.execution_status = Some(summary(
                TriState::Unknown,
                RUNNING,
                "the workflow is running",
                execution.tasks,
            ));
        })
    } else if timed_out {
        // The pod watch may lag: only an uncached read proves that no container has started.
        return match observed.answers.execution {
            None => Step::Ask(Question::Execution),
            Some(_) if lacks_diagnosis(observed, waiting) => diagnose(execution),
            Some(_) => time_out_start(observed, execution, waiting.or(diagnosed(observed))),
        };
    } else if lacks_diagnosis(observed, waiting)
        && stored_waiting(observed).is_none()
        && diagnosis_at(observed) <= observed.now
    {
        return diagnose(execution);
    } else if let Some(waiting) = waiting.or(diagnosed(observed)) {
        // ErrImagePull and ImagePullBackOff alternate: store the cause once.
        if stored_summary(observed).is_some_and(|before| before.cause == waiting.cause) {
            return wait;
        }
        with_waiting(change, Reason::Waiting, waiting, execution.tasks)
    } else if stored_summary(observed).is_some_and(|it| it.cause == Cause::Suspended) {
        resumed(change)
    } else {
        return wait;
    };
    store_or(observed, change, wait)
}

/// Requeue time while no watch shows a change: the next timeout that applies.
fn next_deadline(observed: &Observed, execution: &Execution) -> Step {
    if !has_begun(observed, execution) {
        let diagnosis = diagnosis_at(observed);
        let diagnosis = Some(diagnosis).filter(|it| observed.now < *it);
        let until = start_timeout_at(observed, execution).into_iter();
        return until.chain(diagnosis).min().map_or(Step::Done, Step::Wait);
    }
    let overdue = overdue_at(observed);
    if observed.now < overdue {
        return Step::Wait(overdue);
    }
    notify_or(observed, Notice::Overdue, Step::Done)
}

/// Whether the pod gives no reason and the Events have not been read in this pass.
fn lacks_diagnosis(observed: &Observed, waiting: Option<&Waiting>) -> bool {
    waiting.is_none() && observed.answers.startup_diagnosis.is_none()
}

fn diagnose(execution: &Execution) -> Step {
    Step::Ask(Question::StartupDiagnosis(execution.reference.clone()))
}

/// The reason from the Events, if they were read in this pass.
fn diagnosed(observed: &Observed) -> Option<&Waiting> {
    observed.answers.startup_diagnosis.as_ref()?.as_ref()
}

/// Stores a disruption (eviction, preemption, lost node, exceeded timeout) as soon as it is seen: the pod with the
/// reason may be gone when the execution ends.
fn store_disruption(observed: &Observed, execution: &Execution, disruption: &Waiting) -> Step {
    let began = began(observed, Some(execution)).is_some();
    let change = Change::of(&observed.wfe, observed.now).with(|status| {
        let (cause, message) = (disruption.cause.as_str(), &disruption.message);
        status.execution_status = Some(summary(TriState::Unknown, cause, message, execution.tasks));
    });
    Step::Do(store(with_start(observed, execution, change, began)))
}

/// When to read the Events; within half of the timeout, since the Job's deadline deletes the pod.
fn diagnosis_at(observed: &Observed) -> Timestamp {
    since_start(observed, DIAGNOSIS_DELAY.min(timeout(observed) / 2))
}

/// When the start timeout ends; `None` while a queueing system holds the execution. Then the
/// timeout counts from the moment at which the execution is admitted.
fn start_timeout_at(observed: &Observed, execution: &Execution) -> Option<Timestamp> {
    let allowed = observed.settings.start_timeout;
    let until = since_start(observed, allowed);
    if !execution.queued {
        return Some(until);
    }
    let admitted = execution.resumed.map_or(until, |it| after(it, allowed));
    (!is_suspended(execution)).then(|| until.max(admitted))
}

fn is_suspended(execution: &Execution) -> bool {
    let suspended = |it: &Waiting| it.cause == Cause::Suspended;
    matches!(&execution.progress, Progress::Active { waiting: Some(it) } if suspended(it))
}

/// The execution is no longer suspended.
fn resumed(change: Change) -> Change {
    let message = "resumed, no container has started yet";
    let kind = ConditionType::ExecutionRunning;
    change
        .condition(kind, TriState::False, Reason::Waiting, message)
        .with(|status| status.execution_status = None)
}

/// Whether a container of the workflow has started.
fn has_begun(observed: &Observed, execution: &Execution) -> bool {
    began(observed, Some(execution)).is_some() || start_is_stored(observed)
}

/// Whether the status says that the start timeout was exceeded: the controller deletes the
/// execution then, and must not take that deletion for one by another client.
fn start_timed_out(observed: &Observed) -> bool {
    let running = stored(&observed.wfe, ConditionType::ExecutionRunning);
    running.is_some_and(|it| it.reason == Reason::NotStarted.as_str())
}

/// Stores that no container started in time, and why. The execution is deleted after this is
/// stored.
fn time_out_start(observed: &Observed, execution: &Execution, waiting: Option<&Waiting>) -> Step {
    let allowed = duration::format(observed.settings.start_timeout);
    let (cause, why) = match waiting.cloned().or_else(|| stored_waiting(observed)) {
        Some(waiting) => (waiting.cause, format!(": {}", waiting.message)),
        None => (Cause::NotStarted, String::new()),
    };
    let message = format!("no container started within {allowed}{why}");
    let change = Change::of(&observed.wfe, observed.now);
    let waiting = Waiting { cause, message };
    let change = with_waiting(change, Reason::NotStarted, &waiting, execution.tasks);
    Step::Do(store(change))
}

/// Sets `ExecutionRunning=False` with the reason why no container runs.
fn with_waiting(change: Change, reason: Reason, waiting: &Waiting, tasks: Tasks) -> Change {
    let (cause, message) = (waiting.cause.as_str(), &waiting.message);
    change
        .condition(
            ConditionType::ExecutionRunning,
            TriState::False,
            reason,
            message,
        )
        .with(|status| {
            status.execution_status = Some(summary(TriState::Unknown, cause, message, tasks));
        })
}

/// The execution was deleted after its start timeout: ends as Failed when its pods are gone, too.
fn finish_start_timeout(observed: &Observed) -> Step {
    if observed.pods_alive {
        // The pod watch triggers the next reconcile; the requeue is for the notice only.
        let deleted = since_start(observed, observed.settings.start_timeout);
        let late = after(deleted, OVERDUE);
        if observed.now < late {
            return Step::Wait(late);
        }
        return notify_or(observed, Notice::PodRemains, Step::Done);
    }
    match observed.answers.remains {
        None => Step::Ask(Question::Remains),
        Some(Remains::Alive | Remains::Ended) => Step::Wait(observed.now + RECHECK_DELAY),
        Some(Remains::Nothing) => {
            // A container may have started while the execution was being deleted.
            let late = observed.began.filter(|_| !start_is_stored(observed));
            let ran = late.is_some() || start_is_stored(observed);
            let failure = failure::never_started(stored_waiting(observed), ran);
            let change = Change::of(&observed.wfe, observed.now);
            let change = match late {
                Some(since) => started(change, since),
                None => change,
            };
            Step::Do(store(fail(observed, change, &failure, observed.now)))
        }
    }
}

/// Ends as Failed: another client suspended the execution after its start. Its pod is killed, and a
/// second one would start when it is resumed, so the execution is deleted once this is stored.
fn fail_suspended(observed: &Observed, execution: &Execution, suspended: &Waiting) -> Step {
    let message = format!("suspended after it had started: {}", suspended.message);
    let failure = Failure::new(FailureReason::ResourceExhausted, message, true);
    let change = Change::of(&observed.wfe, observed.now);
    let change = with_start(observed, execution, change, true).with(|status| {
        let (cause, message) = (suspended.cause.as_str(), &failure.message);
        status.execution_status = Some(summary(TriState::False, cause, message, execution.tasks));
    });
    Step::Do(store(fail(observed, change, &failure, observed.now)))
}

/// Ends as Failed: another client deleted the execution.
fn fail_deleted(observed: &Observed) -> Step {
    let execution = observed.wfe.execution_ref().map_or_else(
        || "the execution".to_owned(),
        |it| format!("{} {}/{}", it.kind, it.namespace, it.name),
    );
    let failure = Failure::new(
        FailureReason::ExecutionDeleted,
        format!("{execution} was deleted before it ended"),
        // Whether a container ran is unknown once the pod is gone.
        true,
    );
    let change = with_observed_start(observed, None);
    Step::Do(store(fail(observed, change, &failure, observed.now)))
}

/// Stores how many tasks have ended, when it changes.
fn store_progress(observed: &Observed, execution: &Execution, wait: Step) -> Step {
    let status = observed.wfe.status.as_ref();
    let stored = status.and_then(|status| status.execution_status.as_ref());
    // A cache that lags behind the one of an earlier process must not take tasks back.
    let known = tasks_of(stored);
    let tasks = execution.tasks;
    if tasks.total <= 1 || tasks == known || tasks.completed < known.completed {
        return wait;
    }
    let change = Change::of(&observed.wfe, observed.now).with(|status| {
        if let Some(summary) = &mut status.execution_status {
            summary.completed_tasks = Some(tasks.completed);
            summary.total_tasks = Some(tasks.total);
        }
    });
    store_or(observed, change, wait)
}

fn tasks_of(summary: Option<&ExecutionStatusSummary>) -> Tasks {
    let count = |number: fn(&ExecutionStatusSummary) -> Option<i32>| {
        summary.and_then(number).unwrap_or_default()
    };
    Tasks {
        completed: count(|it| it.completed_tasks),
        total: count(|it| it.total_tasks),
    }
}

fn summary(status: TriState, reason: &str, message: &str, tasks: Tasks) -> ExecutionStatusSummary {
    ExecutionStatusSummary {
        status,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        completed_tasks: Some(tasks.completed),
        total_tasks: Some(tasks.total),
    }
}
