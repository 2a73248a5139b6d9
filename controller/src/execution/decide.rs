//! What to do next. Pure and total: everything it looks at is in [`Observed`].

mod finished;
mod obstacle;
mod pending;
mod running;

use std::time::Duration;

use jiff::Timestamp;
use wfe_model::FINALIZER;
use wfe_model::duration::ExecutionTimeout;
use wfe_model::target::Target;
use wfe_model::workflow::Dependencies;
use wfe_model::workflow_execution::{
    ExecutionRef, FailureDetails, FailureReason, Phase, TriState, WorkflowExecution,
    WorkflowExecutionStatus,
};

use super::history::{self, Entry};
use super::observe::Observed;
use super::outcome::{Failure, summary};
use super::status::{Change, condition, holds, time};
use crate::executor::{Execution, Plan};
use crate::names;

/// In case the watch that should show a change is behind, or does not select the object any more.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The next step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Something must be known first.
    Ask(Question),
    /// One write.
    Do(Effect),
    /// Nothing to do until then, or until something changes.
    Wait(Timestamp),
    /// Nothing to do until something changes.
    Done,
}

/// One read.
#[derive(Clone, Debug)]
pub enum Question {
    /// Whether the target's kind is served.
    TargetKind(Target),
    /// The catalog's entry.
    Workflow(String),
    /// Whether a ServiceAccount may run workflows.
    ServiceAccount(String),
    /// Whether Secrets and ConfigMaps are there.
    Dependencies(Dependencies),
    /// The execution, uncached.
    Execution,
    /// What its Events say of an execution that does not start.
    Complaint(ExecutionRef),
    /// What is left of the execution, uncached.
    Remains,
    /// The target's lock, uncached.
    Lock,
}

/// One write.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Keeps the WorkflowExecution until all is cleaned up.
    AddFinalizer,
    /// Lets it go.
    RemoveFinalizer,
    /// Takes the target's lock.
    TakeLock,
    /// Frees it, leaving a record of what was executed.
    FreeLock(Option<Box<Entry>>),
    /// Leaves a record of one that is about to go.
    Record(Box<Entry>),
    /// Creates the Job or PipelineRun, suspended.
    Create(Box<Plan>),
    /// Starts it, once it is stored that it is the execution.
    Start(ExecutionRef),
    /// Deletes it.
    Delete(ExecutionRef),
    /// Stores a status.
    Store(Box<WorkflowExecutionStatus>),
    /// Has delivered what has happened.
    Audit,
    /// Tells that something takes longer than it should.
    Tell(Notice),
}

/// What an operator should hear of, once.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Notice {
    /// The execution has not ended, long after its timeout.
    Overdue,
    /// Its pod has not ended, long after the end: the target stays locked.
    PodRemains,
    /// It was deleted and blocks its target: it stays until it is cleared.
    DeletionWaits,
    /// It was deleted and somebody has said that its audit events are not to be waited for.
    AuditAbandoned,
}

impl Effect {
    /// For logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "add finalizer",
            Self::RemoveFinalizer => "remove finalizer",
            Self::TakeLock => "take lock",
            Self::FreeLock(_) => "free lock",
            Self::Record(_) => "record the end",
            Self::Create(_) => "create execution",
            Self::Start(_) => "start execution",
            Self::Delete(_) => "delete execution",
            Self::Store(_) => "store status",
            Self::Audit => "deliver audit events",
            Self::Tell(_) => "tell",
        }
    }
}

/// The next step for one WorkflowExecution.
pub fn decide(observed: &Observed) -> Step {
    let metadata = &observed.wfe.metadata;
    let has_finalizer = metadata
        .finalizers
        .iter()
        .flatten()
        .any(|it| it == FINALIZER);
    let deleted = metadata.deletion_timestamp.is_some();
    if observed.answers.let_go {
        return Step::Done;
    }
    if !has_finalizer {
        // Without it a deleted one is not ours to hold.
        return if deleted {
            Step::Done
        } else {
            Step::Do(Effect::AddFinalizer)
        };
    }
    // Delivery goes on by itself: it holds up nothing but the end.
    if !observed.audit.queued && !observed.audit.waiting.is_empty() {
        return Step::Do(Effect::Audit);
    }
    let phase = observed.wfe.phase().unwrap_or(Phase::Pending);
    let cancelled = if deleted {
        Some("the WorkflowExecution was deleted".to_owned())
    } else {
        cancel_reason(&observed.wfe).map(|why| format!("cancelled on request: {why}"))
    };
    match (phase, cancelled) {
        (Phase::Succeeded | Phase::Failed | Phase::Skipped, _) => {
            finished::decide(observed, deleted)
        }
        (Phase::Pending, Some(why)) => {
            pending::made(observed).unwrap_or_else(|| cancel(observed, why, None))
        }
        (Phase::Running, Some(why)) => cancel_running(observed, why),
        (Phase::Pending, None) => pending::decide(observed),
        (Phase::Running, None) => running::decide(observed),
    }
}

/// Why `wfe` is to be cancelled, where it is.
fn cancel_reason(wfe: &WorkflowExecution) -> Option<String> {
    /// Longer reasons would bury the rest of the status.
    const LONGEST: usize = 1024;
    let why = wfe.metadata.annotations.as_ref()?.get(names::CANCEL)?;
    let why: String = why.trim().chars().take(LONGEST).collect();
    Some(if why.is_empty() {
        "no reason was given".to_owned()
    } else {
        why
    })
}

/// What has ended by itself is not called cancelled, and what has begun is not called unbegun,
/// though the caches may not show it yet.
fn cancel_running(observed: &Observed, why: String) -> Step {
    let made = observed.answers.created.is_some() || !observed.engine_installed;
    match &observed.answers.execution {
        None if !made => Step::Ask(Question::Execution),
        Some(Some(it)) if !it.is_active() => running::decide(observed),
        Some(Some(it)) => cancel(observed, why, Some(it)),
        Some(None) | None => cancel(observed, why, observed.execution.as_ref()),
    }
}

/// First it is said that it is cancelled, then it is: the execution is deleted when this is stored.
fn cancel(observed: &Observed, message: String, execution: Option<&Execution>) -> Step {
    let failure = Failure {
        reason: FailureReason::Cancelled,
        message,
        exit_code: None,
        was_execution_failure: began(observed, execution).is_some()
            || began_before(observed)
            || vanished(observed),
    };
    let change = told_of_start(observed, execution);
    Step::Do(store(fail(observed, change, &failure, observed.now)))
}

/// The status as it is, and that a container started, where one did.
fn told_of_start(observed: &Observed, execution: Option<&Execution>) -> Change {
    let change = Change::of(&observed.wfe, observed.now);
    match began(observed, execution) {
        Some(since) if !began_before(observed) => running::started(change, since),
        _ => change,
    }
}

/// Whether it had an execution that is not there any more: what that did cannot be known.
fn vanished(observed: &Observed) -> bool {
    observed.wfe.execution_ref().is_some() && matches!(observed.answers.execution, Some(None))
}

/// Since when a container of the workflow runs or has run, as far as anybody saw.
fn began(observed: &Observed, execution: Option<&Execution>) -> Option<Timestamp> {
    execution.and_then(|it| it.began).or(observed.began)
}

/// Tells once, then `otherwise`.
fn tell_or(observed: &Observed, notice: Notice, otherwise: Step) -> Step {
    if observed.told.contains(&notice) {
        otherwise
    } else {
        Step::Do(Effect::Tell(notice))
    }
}

/// How long it may take.
fn timeout(observed: &Observed) -> Duration {
    let stored = observed.wfe.spec.execution_config.timeout.as_deref();
    let parsed = stored.and_then(ExecutionTimeout::parse);
    parsed.map_or(observed.settings.default_timeout, ExecutionTimeout::get)
}

/// Stores the status unless it is stored already, then waits.
fn store_or(observed: &Observed, change: Change, wait: Step) -> Step {
    match change.unless_stored(&observed.wfe) {
        Some(status) => Step::Do(Effect::Store(Box::new(status))),
        None => wait,
    }
}

/// Whether the stored status says that a container of the workflow runs or has run.
fn began_before(observed: &Observed) -> bool {
    holds(&observed.wfe, condition::EXECUTION_RUNNING)
}

fn store(change: Change) -> Effect {
    Effect::Store(Box::new(change.into_status()))
}

/// The final status of a failure.
fn fail(observed: &Observed, change: Change, failure: &Failure, at: Timestamp) -> Change {
    let wfe = &observed.wfe;
    let started = wfe
        .status
        .as_ref()
        .and_then(|status| status.start_time.clone());
    let reference = wfe.execution_ref();
    let ran = started.as_ref().map(|started| elapsed(started.0, at));
    let log =
        reference.map(|it| format!("-n {} {}/{}", it.namespace, it.kind.to_lowercase(), it.name));
    let details = FailureDetails {
        reason: failure.reason,
        message: failure.message.clone(),
        failed_task_index: None,
        failed_task_name: None,
        failed_step_name: None,
        exit_code: failure.exit_code,
        failed_at: time(at),
        execution_time_before_failure: ran.clone(),
        natural_language_summary: summary(
            failure,
            &wfe.spec.workflow_ref.workflow_id,
            &wfe.spec.target_resource,
            log.as_deref(),
        ),
        was_execution_failure: failure.was_execution_failure,
    };
    let ended = reference.is_some();
    let failures = counts(failure, &change).then(|| obstacle::past(observed, None).failures() + 1);
    let limits = &observed.settings.limits;
    let allowed = failures.filter(|failures| *failures < limits.max_consecutive_failures);
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
        let reason = match failure.reason {
            FailureReason::TaskFailed => "TaskFailed",
            FailureReason::DeadlineExceeded => "DeadlineExceeded",
            FailureReason::OOMKilled => "OOMKilled",
            FailureReason::ExecutionDeleted => "ExecutionDeleted",
            FailureReason::Cancelled => "Cancelled",
            _ => "ExecutionFailed",
        };
        change.condition(
            condition::EXECUTION_COMPLETE,
            TriState::False,
            reason,
            &failure.message,
        )
    } else {
        change
    };
    let change = change.condition(
        condition::READY,
        TriState::False,
        "NotReady",
        &failure.message,
    );
    pending_audit(observed, change)
}

/// Whether a failure says something about the target, not just about this request (BR-WE-012).
fn counts(failure: &Failure, change: &Change) -> bool {
    let own = [
        FailureReason::Cancelled,
        FailureReason::ServiceAccountNotAllowed,
    ];
    let misfit = change
        .stored(condition::WORKFLOW_RESOLVED)
        .is_some_and(|it| it.status == "False");
    !(failure.was_execution_failure || own.contains(&failure.reason) || misfit)
}

/// Events of a final status are delivered next.
fn pending_audit(observed: &Observed, change: Change) -> Change {
    let (reason, message) = finished::undelivered(observed);
    let kind = condition::AUDIT_RECORDED;
    change.condition(kind, TriState::False, reason, &message)
}

fn elapsed(from: Timestamp, to: Timestamp) -> String {
    let elapsed = to.duration_since(from);
    wfe_model::duration::format(std::time::Duration::try_from(elapsed).unwrap_or_default())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
