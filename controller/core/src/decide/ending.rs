//! Shared by the decisions of all phases: reads the stored status, builds the next one, and builds
//! the final status of a failure.

use std::time::Duration;

use jiff::Timestamp;
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::{
    ExecutionRef, ExecutionStatusSummary, FailureDetails, FailureReason, Phase, TriState,
};

use crate::clearing;
use crate::condition::{ConditionType, Reason};
use crate::execution::Execution;
use crate::failure::{Failure, summary};
use crate::history::{self, Entry, History};
use crate::observed::Observed;
use crate::status::{Change, after, holds, time};
use crate::step::{Effect, Notice, Step};

/// Requeue delay for a change that a watch should show: the watch may lag, or may not select the
/// object any more.
pub(super) const RECHECK_DELAY: Duration = Duration::from_secs(5);

/// The Job controller ends a Job at its deadline, Tekton a PipelineRun. An execution that is still
/// active this long afterwards means that its controller or the node does not work.
pub(super) const OVERDUE: Duration = Duration::from_mins(2);

/// The stored status, with `ExecutionRunning=True` added if a container has started since.
pub(super) fn with_observed_start(observed: &Observed, execution: Option<&Execution>) -> Change {
    let change = Change::of(&observed.wfe, observed.now);
    match began(observed, execution) {
        Some(since) if !start_is_stored(observed) => started(change, since),
        _ => change,
    }
}

/// When the workflow's container started, if any watched pod or `execution` has shown a start.
pub(super) fn began(observed: &Observed, execution: Option<&Execution>) -> Option<Timestamp> {
    execution.and_then(|it| it.began).or(observed.began)
}

/// Sends `notice` unless this process has sent it already; then `otherwise`.
pub(super) fn notify_or(observed: &Observed, notice: Notice, otherwise: Step) -> Step {
    if observed.notified.contains(&notice) {
        otherwise
    } else {
        Step::Do(Effect::Notify(notice))
    }
}

/// The timeout of the Job or PipelineRun; while it is not cached, that of the request.
pub(super) fn timeout(observed: &Observed) -> Duration {
    let own = observed.execution.as_ref().and_then(|it| it.timeout);
    own.unwrap_or_else(|| observed.settings.timeout_of(&observed.wfe))
}

/// Stores the status if it differs from the stored one; otherwise `wait`.
pub(super) fn store_or(observed: &Observed, change: Change, wait: Step) -> Step {
    match change.unless_stored(&observed.wfe) {
        Some(status) => Step::Do(Effect::Store(Box::new(status))),
        None => wait,
    }
}

/// Whether the stored status says that a container of the workflow runs or has run.
pub(super) fn start_is_stored(observed: &Observed) -> bool {
    holds(&observed.wfe, ConditionType::ExecutionRunning)
}

pub(super) fn store(change: Change) -> Effect {
    Effect::Store(Box::new(change.into_status()))
}

/// The final status of a WorkflowExecution that failed at `at`.
pub(super) fn fail(
    observed: &Observed,
    change: Change,
    failure: &Failure,
    at: Timestamp,
) -> Change {
    let wfe = &observed.wfe;
    let started = wfe
        .status
        .as_ref()
        .and_then(|status| status.start_time.clone());
    let reference = wfe.execution_ref();
    let ran = started.as_ref().map(|started| elapsed(started.0, at));
    let engine = Engine::parse(&wfe.spec.execution_engine);
    let log = reference.zip(engine);
    let log = log.map(|(it, engine)| format!("-n {} {}", it.namespace, engine.logs_of(&it.name)));
    let failures = counts(failure, &change).then(|| target_history(observed, None).failures() + 1);
    let limits = &observed.settings.limits;
    let allowed = failures.filter(|failures| *failures < limits.max_consecutive_failures);
    let blocks = failure.was_execution_failure || failures.is_some() && allowed.is_none();
    let clear = blocks.then(|| {
        let source = &observed.source;
        clearing::command(&source.namespace, &source.name)
    });
    let details = FailureDetails {
        reason: failure.reason,
        message: failure.message.clone(),
        failed_task_index: failure.task.as_ref().and_then(|it| it.index),
        failed_task_name: failure.task.as_ref().map(|it| it.name.clone()),
        failed_step_name: failure.task.as_ref().and_then(|it| it.step.clone()),
        exit_code: failure.exit_code,
        failed_at: time(at),
        execution_time_before_failure: ran.clone(),
        natural_language_summary: summary(
            failure,
            &wfe.spec.workflow_ref.workflow_id,
            &wfe.spec.target_resource,
            log.as_deref(),
            clear.as_deref(),
        ),
        was_execution_failure: failure.was_execution_failure,
    };
    let ended = reference.is_some();
    let change = change.with(|status| {
        status.phase = Some(Phase::Failed);
        status.completion_time = Some(time(at));
        status.duration = ran;
        status.failure_details = Some(details);
        status.consecutive_failures = failures.and_then(|it| i32::try_from(it).ok());
        status.next_allowed_execution =
            allowed.map(|failures| time(history::next_allowed(time(at).0, failures, limits)));
    });
    let change = if ended {
        change.condition(
            ConditionType::ExecutionComplete,
            TriState::False,
            failure.reason.into(),
            &failure.message,
        )
    } else {
        change
    };
    stalled(
        observed,
        change,
        Reason::stalled(failure.reason),
        &failure.message,
    )
}

/// The final status of a WorkflowExecution that ends without success: for good, and nothing blocks
/// it any more.
pub(super) fn stalled(
    observed: &Observed,
    change: Change,
    reason: Reason,
    message: &str,
) -> Change {
    let change = change.with(|status| {
        let summary = status.execution_status.as_mut();
        if let Some(summary) = summary.filter(|it| it.status == TriState::Unknown) {
            summary.status = TriState::False;
            summary.reason = Some(reason.as_str().to_owned());
            summary.message = Some(message.to_owned());
        }
    });
    let change = change
        .condition(
            ConditionType::Ready,
            TriState::False,
            Reason::NotReady,
            message,
        )
        .condition(ConditionType::Stalled, TriState::True, reason, message);
    pending_audit(observed, unblocked(change))
}

/// Phase Pending, and why.
pub(super) fn pending(change: Change, reason: Reason, message: &str) -> Change {
    change.with(|status| {
        status.phase = Some(Phase::Pending);
        status.execution_status = Some(ExecutionStatusSummary {
            status: TriState::Unknown,
            reason: Some(reason.as_str().to_owned()),
            message: Some(message.to_owned()),
            completed_tasks: None,
            total_tasks: None,
        });
    })
}

/// Sets `Blocked=False` if the condition is there.
pub(super) fn unblocked(change: Change) -> Change {
    if change.stored(ConditionType::Blocked).is_none() {
        return change;
    }
    change.condition(
        ConditionType::Blocked,
        TriState::False,
        Reason::Clear,
        "nothing keeps the execution from starting",
    )
}

/// Whether a failure counts towards the target's backoff. Failures that only the request itself
/// causes do not (BR-WE-012).
pub(super) fn counts(failure: &Failure, change: &Change) -> bool {
    let request_reasons = [
        FailureReason::Cancelled,
        FailureReason::ServiceAccountNotAllowed,
    ];
    let request_invalid = change
        .stored(ConditionType::WorkflowResolved)
        .is_some_and(|it| it.status == TriState::False.as_str());
    !(failure.was_execution_failure || request_reasons.contains(&failure.reason) || request_invalid)
}

/// Marks the audit events of a final status as not delivered yet.
pub(super) fn pending_audit(observed: &Observed, change: Change) -> Change {
    let (reason, message) = undelivered(observed);
    let kind = ConditionType::AuditRecorded;
    change.condition(kind, TriState::False, reason, &message)
}

pub(super) fn elapsed(from: Timestamp, to: Timestamp) -> String {
    let elapsed = to.duration_since(from);
    wfe_model::duration::format(std::time::Duration::try_from(elapsed).unwrap_or_default())
}

/// Reason and message of an audit condition while its events are not delivered.
pub(super) fn undelivered(observed: &Observed) -> (Reason, String) {
    match &observed.audit.outage {
        None => (
            Reason::AuditPending,
            "audit events are being delivered".to_owned(),
        ),
        Some(why) => (
            Reason::AuditSinkUnavailable,
            format!(
                "the audit sink did not accept the events at {}, retrying: {why}",
                time(observed.now).0
            ),
        ),
    }
}

/// Deletes the execution, then waits for the watch to show the deletion.
pub(super) fn delete(observed: &Observed, reference: &ExecutionRef) -> Step {
    once(observed, Effect::Delete(reference.clone()))
}

/// Cancels the execution, then waits for the watch to show its end.
pub(super) fn cancel(observed: &Observed, reference: &ExecutionRef) -> Step {
    once(observed, Effect::Cancel(reference.clone()))
}

/// Cancels or deletes the execution once in a pass.
fn once(observed: &Observed, effect: Effect) -> Step {
    if observed.answers.deleted {
        return Step::Wait(observed.now + RECHECK_DELAY);
    }
    Step::Do(effect)
}

/// The time `span` after the stored start of the execution.
pub(super) fn since_start(observed: &Observed, span: Duration) -> Timestamp {
    let status = observed.wfe.status.as_ref();
    let start = status.and_then(|status| status.start_time.as_ref());
    let start = start.map_or(observed.now, |time| time.0);
    after(start, span)
}

/// When an execution that has not ended is overdue.
pub(super) fn overdue_at(observed: &Observed) -> Timestamp {
    since_start(observed, timeout(observed).saturating_add(OVERDUE))
}

/// History of the target from other WorkflowExecutions and the lock's records, plus the `own` entry
/// of this WorkflowExecution if given.
pub(super) fn target_history(observed: &Observed, own: Option<&Entry>) -> History {
    let records = observed.target_lock.records();
    let others = records.filter(|record| record.uid != observed.source.uid);
    let others = others.cloned();
    let objects = observed.neighbours.iter().map(AsRef::as_ref);
    History::of(objects, others.chain(own.cloned()))
}

/// Sets `WorkflowResolved=True`.
pub(super) fn resolved(change: Change) -> Change {
    let message = "the catalog has the workflow and the request matches it";
    change.condition(
        ConditionType::WorkflowResolved,
        TriState::True,
        Reason::Resolved,
        message,
    )
}

/// Sets `ExecutionRunning=True` since `since`.
pub(super) fn started(change: Change, since: Timestamp) -> Change {
    change.condition_since(
        ConditionType::ExecutionRunning,
        TriState::True,
        Reason::ExecutionStarted,
        "the workflow's container has started",
        since,
    )
}
