//! What to do next. Pure and total: everything it looks at is in [`Observed`].

mod finished;
mod pending;
mod running;

use std::time::Duration;

use jiff::Timestamp;
use wfe_model::FINALIZER;
use wfe_model::audit::AuditEvent;
use wfe_model::workflow::Dependencies;
use wfe_model::workflow_execution::{
    ExecutionRef, FailureDetails, FailureReason, Phase, TriState, WorkflowExecutionStatus,
};

use super::observe::Observed;
use super::outcome::{Failure, summary};
use super::status::{Change, condition, time};
use crate::executor::Plan;

/// After the audit sink did not answer.
const AUDIT_AGAIN: Duration = Duration::from_secs(5);

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
    /// The catalog's entry.
    Workflow(String),
    /// Whether a ServiceAccount may run workflows.
    ServiceAccount(String),
    /// Whether Secrets and ConfigMaps are there.
    Dependencies(Dependencies),
    /// Whether the WorkflowExecution is still wanted, uncached.
    StillWanted,
    /// The execution, uncached.
    Execution,
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
    /// Frees it.
    FreeLock,
    /// Makes the Job or PipelineRun.
    Create(Box<Plan>),
    /// Deletes it.
    Delete(ExecutionRef),
    /// Stores a status.
    Store(Box<WorkflowExecutionStatus>),
    /// Delivers audit events.
    Audit(Vec<AuditEvent>),
}

impl Effect {
    /// For logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "add finalizer",
            Self::RemoveFinalizer => "remove finalizer",
            Self::TakeLock => "take lock",
            Self::FreeLock => "free lock",
            Self::Create(_) => "create execution",
            Self::Delete(_) => "delete execution",
            Self::Store(_) => "store status",
            Self::Audit(_) => "deliver audit events",
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
    // What has happened is reported before more is made to happen; a sink that is down holds up
    // nothing else.
    let unaudited = !observed.unaudited.is_empty();
    if unaudited && observed.answers.audit_unavailable.is_none() {
        return Step::Do(Effect::Audit(observed.unaudited.clone()));
    }
    match by_phase(observed, deleted) {
        Step::Done if unaudited => Step::Wait(observed.now + AUDIT_AGAIN),
        Step::Wait(until) if unaudited => Step::Wait(until.min(observed.now + AUDIT_AGAIN)),
        step => step,
    }
}

fn by_phase(observed: &Observed, deleted: bool) -> Step {
    let phase = observed.wfe.phase().unwrap_or(Phase::Pending);
    match phase {
        Phase::Succeeded | Phase::Failed | Phase::Skipped => finished::decide(observed, deleted),
        Phase::Pending | Phase::Running if deleted => cancel(observed, phase),
        Phase::Pending => pending::decide(observed),
        Phase::Running => running::decide(observed),
    }
}

/// A deleted one that has not ended: first it is said that it is cancelled, then it is. What has
/// been made is known by then, and what has ended by itself is not called cancelled.
fn cancel(observed: &Observed, phase: Phase) -> Step {
    if phase == Phase::Pending
        && let Some(step) = pending::made(observed)
    {
        return step;
    }
    let execution = observed.execution.as_ref();
    if execution.is_some_and(|it| !it.is_active()) {
        return running::decide(observed);
    }
    let failure = Failure {
        reason: FailureReason::Cancelled,
        message: "the WorkflowExecution was deleted".to_owned(),
        exit_code: None,
        was_execution_failure: execution.is_some_and(|it| it.began.is_some())
            || began_before(observed),
    };
    let change = Change::of(&observed.wfe, observed.now);
    Step::Do(store(fail(observed, change, &failure, observed.now)))
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
    super::status::holds(&observed.wfe, condition::EXECUTION_RUNNING)
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
    let change = change.with(|status| {
        status.phase = Some(Phase::Failed);
        status.completion_time = Some(time(at));
        status.duration = ran;
        status.failure_details = Some(details);
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
    pending_audit(change)
}

/// Events of a final status are delivered next.
fn pending_audit(change: Change) -> Change {
    change.condition(
        condition::AUDIT_RECORDED,
        TriState::False,
        "AuditPending",
        "audit events are being delivered",
    )
}

fn elapsed(from: Timestamp, to: Timestamp) -> String {
    let elapsed = to.duration_since(from);
    wfe_model::duration::format(std::time::Duration::try_from(elapsed).unwrap_or_default())
}

#[cfg(test)]
mod tests;
