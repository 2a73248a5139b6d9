//! Chooses the next step of a WorkflowExecution from [`Observed`] alone; has an answer for every
//! input.

mod ending;
mod finished;
mod obstacle;
mod pending;
mod running;

use wfe_model::FINALIZER;
use wfe_model::workflow_execution::{FailureReason, Phase};

use self::ending::{began, fail, start_is_stored, store, with_observed_start};
use crate::execution::Execution;
use crate::failure::Failure;
use crate::line::{cancel_reason, cancelled_by};
use crate::observed::Observed;
use crate::step::{Effect, Question, Step};

/// The next step for one WorkflowExecution.
pub fn decide(observed: &Observed) -> Step {
    let metadata = &observed.wfe.metadata;
    let has_finalizer = metadata
        .finalizers
        .iter()
        .flatten()
        .any(|it| it == FINALIZER);
    let deleted = metadata.deletion_timestamp.is_some();
    if observed.answers.finalizer_removed {
        return Step::Done;
    }
    if !has_finalizer {
        // The API server rejects new finalizers on an object that is being deleted.
        return if deleted {
            Step::Done
        } else {
            Step::Do(Effect::AddFinalizer)
        };
    }
    // Before its event is sent, and before it counts.
    if let Some(step) = finished::notice_clearance(observed) {
        return step;
    }
    // The outbox delivers in the background: only the removal of the finalizer waits for delivery.
    if !observed.audit.queued && !observed.audit.waiting.is_empty() {
        return Step::Do(Effect::Audit);
    }
    let phase = observed.wfe.phase().unwrap_or(Phase::Pending);
    let cancelled = if deleted {
        Some("the WorkflowExecution was deleted".to_owned())
    } else if observed.namespace_terminating {
        // The deletion of the object itself may come much later.
        Some("the namespace of the WorkflowExecution is being deleted".to_owned())
    } else {
        cancel_reason(&observed.wfe).map(|why| match cancelled_by(&observed.wfe) {
            Some(user) => format!("cancelled on request of {user}: {why}"),
            None => format!("cancelled on request: {why}"),
        })
    };
    match (phase, cancelled) {
        (Phase::Succeeded | Phase::Failed | Phase::Skipped, _) => {
            finished::decide(observed, deleted)
        }
        (Phase::Pending, Some(why)) => pending::handle_create_result(observed)
            .or_else(|| pending::let_go(observed))
            .unwrap_or_else(|| cancel(observed, why, None)),
        (Phase::Running, Some(why)) => cancel_running(observed, why),
        (Phase::Pending, None) => pending::decide(observed),
        (Phase::Running, None) => running::decide(observed),
    }
}

/// Cancels a running WorkflowExecution. Needs an uncached read: caches may lag, and an execution
/// that ended by itself must not be stored as Cancelled, nor a started one as never started.
fn cancel_running(observed: &Observed, why: String) -> Step {
    match &observed.answers.execution {
        None if observed.answers.created.is_none() => Step::Ask(Question::Execution),
        Some(Some(it)) if !it.is_active() => running::decide(observed),
        Some(Some(it)) => cancel(observed, why, Some(it)),
        Some(None) | None => cancel(observed, why, observed.execution.as_ref()),
    }
}

/// Stores Failed/Cancelled. The execution is deleted only afterwards, so that a restart between the
/// two cannot take the deletion for one by another client.
fn cancel(observed: &Observed, message: String, execution: Option<&Execution>) -> Step {
    let failure = Failure::new(
        FailureReason::Cancelled,
        message,
        began(observed, execution).is_some()
            || start_is_stored(observed)
            || is_execution_gone(observed),
    );
    let change = with_observed_start(observed, execution);
    Step::Do(store(fail(observed, change, &failure, observed.now)))
}

/// Whether the stored execution no longer exists: whether its container ran is then unknown.
fn is_execution_gone(observed: &Observed) -> bool {
    observed.wfe.execution_ref().is_some() && matches!(observed.answers.execution, Some(None))
}

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod walk;
