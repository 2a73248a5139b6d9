//! What to do next. Pure and total: everything it looks at is in [`Observed`].

mod ending;
mod finished;
mod obstacle;
mod pending;
mod running;

use wfe_model::FINALIZER;
use wfe_model::workflow_execution::{FailureReason, Phase};

use self::ending::{began, began_before, cancel_reason, fail, store, told_of_start};
use crate::execution::Execution;
use crate::failure::Failure;
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

/// Whether it had an execution that is not there any more: what that did cannot be known.
fn vanished(observed: &Observed) -> bool {
    observed.wfe.execution_ref().is_some() && matches!(observed.answers.execution, Some(None))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
