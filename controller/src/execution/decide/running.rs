//! From created to ended: the execution is followed, its end is stored.

use wfe_model::workflow_execution::{ExecutionStatusSummary, FailureReason, Phase, TriState};

use super::super::observe::Observed;
use super::super::outcome::{self, Failure};
use super::super::status::{Change, condition, time};
use super::{Question, Step, began_before, elapsed, fail, pending_audit, store, store_or};
use crate::executor::{Execution, Facts, Progress, Waiting};

pub(super) fn decide(observed: &Observed) -> Step {
    let stored = observed.wfe.execution_ref();
    let same =
        |execution: &&Execution| stored.is_some_and(|stored| stored.uid == execution.reference.uid);
    if let Some(execution) = observed.execution.as_ref().filter(same) {
        return follow(observed, execution);
    }
    // Made in this very pass: the cache will show it.
    if observed.answers.created.is_some() {
        return Step::Done;
    }
    // Not in the cache: only the API server itself knows whether it is gone.
    match &observed.answers.execution {
        None => Step::Ask(Question::Execution),
        Some(read) => match read.as_ref().filter(same) {
            Some(execution) => follow(observed, execution),
            None => deleted(observed),
        },
    }
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
                condition::EXECUTION_COMPLETE,
                TriState::True,
                "ExecutionSucceeded",
                message,
            )
            .condition(condition::READY, TriState::True, "Ready", message)
            .with(|status| {
                status.phase = Some(Phase::Succeeded);
                status.completion_time = Some(time(at));
                status.duration = status.start_time.as_ref().map(|start| elapsed(start.0, at));
                status.execution_status = Some(summary(TriState::True, "Complete", message));
            });
            Step::Do(store(pending_audit(change)))
        }
        Progress::Failed { at, facts } => {
            failed(observed, execution, facts, at.unwrap_or(observed.now))
        }
    }
}

fn failed(observed: &Observed, execution: &Execution, facts: &Facts, at: jiff::Timestamp) -> Step {
    let began = execution.began.is_some() || began_before(observed);
    let failure = outcome::judge(facts, began, waited(observed).as_ref());
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

/// The waiting fact that was stored, if the last word was one.
fn waited(observed: &Observed) -> Option<Waiting> {
    let summary = observed.wfe.status.as_ref()?.execution_status.as_ref()?;
    Some(Waiting {
        reason: summary.reason.clone()?,
        message: summary.message.clone().unwrap_or_default(),
    })
}

/// Says that it began, where it did: with the container's own time.
fn ran(observed: &Observed, execution: &Execution, change: Change, ran: bool) -> Change {
    if !ran {
        return change;
    }
    let since = execution
        .began
        .or(execution.created)
        .unwrap_or(observed.now);
    change.condition_since(
        condition::EXECUTION_RUNNING,
        TriState::True,
        "ExecutionStarted",
        "the workflow's container has started",
        since,
    )
}

fn active(observed: &Observed, execution: &Execution, waiting: Option<&Waiting>) -> Step {
    let change = Change::of(&observed.wfe, observed.now);
    let change = if execution.began.is_some() {
        if began_before(observed) {
            return Step::Done;
        }
        ran(observed, execution, change, true).with(|status| {
            status.execution_status = Some(summary(
                TriState::Unknown,
                "Running",
                "the workflow is running",
            ));
        })
    } else if let Some(waiting) = waiting {
        // ErrImagePull and ImagePullBackOff take turns: one of them is enough to know.
        let known =
            waited(observed).is_some_and(|before| class(&before.reason) == class(&waiting.reason));
        if known {
            return Step::Done;
        }
        let message = format!("{}: {}", waiting.reason, waiting.message);
        change
            .condition(
                condition::EXECUTION_RUNNING,
                TriState::False,
                "Waiting",
                &message,
            )
            .with(|status| {
                status.execution_status = Some(summary(
                    TriState::Unknown,
                    &waiting.reason,
                    &waiting.message,
                ));
            })
    } else {
        return Step::Done;
    };
    store_or(observed, change, Step::Done)
}

fn class(reason: &str) -> &str {
    if reason == "ErrImagePull" {
        "ImagePullBackOff"
    } else {
        reason
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
    Step::Do(store(fail(
        observed,
        Change::of(&observed.wfe, observed.now),
        &failure,
        observed.now,
    )))
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
