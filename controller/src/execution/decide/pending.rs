//! From accepted to created: nothing is made before everything is known to be right.

use std::sync::Arc;
use std::time::Duration;

use wfe_model::rules::{self, CheckedSpec, ValidatedSpec, Violation, WhenBlocked};
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::{
    ConflictingWorkflow, FailureReason, Phase, SkipDetails, SkipReason,
};
use wfe_peers::dependencies::{RUNNER_LABEL, ServiceAccountAnswer};

use super::super::lock::Lock;
use super::super::observe::{Known, Observed};
use super::super::outcome::Failure;
use super::super::status::{Change, Truth, condition, time};
use super::{Effect, Question, Step, fail, pending_audit, store};
use crate::executor::{Created, Execution, Plan, Source};
use crate::names;

/// After something could not be asked.
const ASK_AGAIN: Duration = Duration::from_secs(5);

pub(super) fn decide(observed: &Observed) -> Step {
    // Made by an earlier try that did not live to say so.
    if let Some(execution) = &observed.execution {
        return Step::Do(store(created(observed, execution)));
    }
    match &observed.answers.created {
        Some(Created::Ours(execution)) => return Step::Do(store(created(observed, execution))),
        Some(Created::NameTaken) => {
            let message = "another object has the name of this execution already: delete it, or use another name".to_owned();
            return not_created(observed, FailureReason::ConfigurationError, message);
        }
        Some(Created::Refused { reason, message }) => {
            return not_created(observed, *reason, message.clone());
        }
        None => {}
    }
    let checked = match rules::check(&observed.wfe.spec) {
        Ok(checked) => checked,
        Err(violations) => return unresolved(observed, &violations),
    };
    let valid = match resolve(observed, &checked) {
        Ok(valid) => valid,
        Err(step) => return *step,
    };
    let account = checked
        .service_account
        .as_ref()
        .unwrap_or(&observed.settings.default_service_account);
    match prepare(observed, &checked, &valid.workflow, account) {
        Some(step) => step,
        None => Step::Do(Effect::Create(Box::new(plan(
            observed,
            valid,
            account.clone(),
        )))),
    }
}

/// What the catalog says of the request.
fn resolve(observed: &Observed, checked: &CheckedSpec) -> Result<ValidatedSpec, Box<Step>> {
    let workflow: &Arc<Workflow> = match &observed.answers.catalog {
        None => {
            return Err(Box::new(Step::Ask(Question::Workflow(
                checked.workflow_id.clone(),
            ))));
        }
        Some(Known::Not(why)) => {
            let message = format!("the workflow catalog cannot be asked: {why}");
            return Err(Box::new(unknown(
                observed,
                condition::WORKFLOW_RESOLVED,
                "CatalogUnavailable",
                &message,
            )));
        }
        Some(Known::Yes(None)) => {
            let workflow_id = checked.workflow_id.clone();
            return Err(Box::new(unresolved(
                observed,
                &[Violation::WorkflowNotFound { workflow_id }],
            )));
        }
        Some(Known::Yes(Some(workflow))) => workflow,
    };
    rules::validate(&observed.wfe.spec, workflow)
        .map_err(|violations| Box::new(unresolved(observed, &violations)))
}

/// The steps between a valid request and the create, in their order; none is left at the end.
fn prepare(
    observed: &Observed,
    checked: &CheckedSpec,
    workflow: &Workflow,
    account: &str,
) -> Option<Step> {
    if !observed.engine_installed {
        let message = format!(
            "executionEngine {} is not installed in this cluster",
            workflow.engine
        );
        return Some(refused(
            observed,
            FailureReason::UnsupportedEngine,
            message,
            |change, message| {
                change.condition(
                    condition::EXECUTION_CREATED,
                    Truth::False,
                    "UnsupportedEngine",
                    message,
                )
            },
        ));
    }
    if let Some(step) = check_account(observed, account) {
        return Some(step);
    }
    if observed.answers.lock_lost {
        return Some(Step::Ask(Question::Lock));
    }
    if let Lock::Held(holder) = &observed.lock {
        return Some(busy(observed, checked, holder));
    }
    if let Some(step) = check_dependencies(observed, workflow) {
        return Some(step);
    }
    if observed.lock == Lock::Free {
        return Some(Step::Do(Effect::TakeLock));
    }
    // The pod of an execution that was deleted may still be ending: looked at again when it has.
    if observed.others_alive {
        return Some(Step::Done);
    }
    match observed.answers.still_wanted {
        None => Some(Step::Ask(Question::StillWanted)),
        // The cache is behind: what has changed will come, and be decided.
        Some(false) => Some(Step::Done),
        Some(true) => None,
    }
}

/// Only ServiceAccounts that are meant for workflows run them.
fn check_account(observed: &Observed, account: &str) -> Option<Step> {
    match &observed.answers.service_account {
        None => return Some(Step::Ask(Question::ServiceAccount(account.to_owned()))),
        Some(Known::Not(why)) => {
            return Some(unknown(
                observed,
                condition::DEPENDENCIES_READY,
                "ReadFailed",
                why,
            ));
        }
        Some(Known::Yes(ServiceAccountAnswer::Allowed)) => {}
        Some(Known::Yes(answer)) => {
            let problem = if *answer == ServiceAccountAnswer::Missing {
                "does not exist"
            } else {
                "is not meant for workflows"
            };
            let namespace = &observed.settings.execution_namespace;
            let message = format!(
                "the ServiceAccount {account:?} in namespace {namespace} {problem}: use one with the label {RUNNER_LABEL}: \"true\""
            );
            return Some(refused(
                observed,
                FailureReason::ServiceAccountNotAllowed,
                message,
                |change, _| change,
            ));
        }
    }
    None
}

/// Nothing runs without what it declares.
fn check_dependencies(observed: &Observed, workflow: &Workflow) -> Option<Step> {
    match &observed.answers.dependencies {
        None => {
            return Some(Step::Ask(Question::Dependencies(
                workflow.dependencies.clone(),
            )));
        }
        Some(Known::Not(why)) => {
            return Some(unknown(
                observed,
                condition::DEPENDENCIES_READY,
                "ReadFailed",
                why,
            ));
        }
        Some(Known::Yes(problems)) if problems.is_empty() => {}
        Some(Known::Yes(problems)) => {
            let missing = problems.iter().any(|it| {
                matches!(
                    it,
                    wfe_peers::dependencies::DependencyProblem::Missing { .. }
                )
            });
            let reason = if missing {
                "DependencyMissing"
            } else {
                "DependencyEmpty"
            };
            let sentences: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let message = format!(
                "the workflow {:?} depends on something that is not ready: {}",
                workflow.workflow_id,
                sentences.join("; ")
            );
            return Some(refused(
                observed,
                FailureReason::ConfigurationError,
                message,
                |change, message| {
                    change.condition(condition::DEPENDENCIES_READY, Truth::False, reason, message)
                },
            ));
        }
    }
    None
}

fn plan(observed: &Observed, valid: ValidatedSpec, service_account: String) -> Plan {
    let source = observed.source();
    Plan {
        name: names::execution_name(&source.name, &source.uid),
        namespace: observed.settings.execution_namespace.clone(),
        target_hash: names::target_hash(&valid.spec.target),
        timeout: valid.spec.timeout.map_or(
            observed.settings.default_timeout,
            wfe_model::duration::ExecutionTimeout::get,
        ),
        service_account,
        source,
        valid,
    }
}

/// The status of one whose execution exists.
fn created(observed: &Observed, execution: &Execution) -> Change {
    let reference = &execution.reference;
    let declared = match &observed.answers.catalog {
        Some(Known::Yes(Some(workflow))) => {
            !(workflow.dependencies.secrets.is_empty()
                && workflow.dependencies.config_maps.is_empty())
        }
        _ => true,
    };
    let dependencies = if declared {
        ("Ready", "everything the workflow depends on is there")
    } else {
        ("NoneDeclared", "the workflow depends on nothing")
    };
    let made = format!(
        "{} {}/{} was created",
        reference.kind, reference.namespace, reference.name
    );
    let change = Change::of(&observed.wfe, observed.now)
        .condition(
            condition::WORKFLOW_RESOLVED,
            Truth::True,
            "Resolved",
            "the workflow is in the catalog and the request fits it",
        )
        .condition(
            condition::DEPENDENCIES_READY,
            Truth::True,
            dependencies.0,
            dependencies.1,
        )
        .condition(
            condition::EXECUTION_CREATED,
            Truth::True,
            "ExecutionCreated",
            &made,
        )
        .condition(
            condition::READY,
            Truth::Unknown,
            "InProgress",
            "the workflow is running",
        )
        .with(|status| {
            status.phase = Some(Phase::Running);
            status.start_time = Some(time(execution.created.unwrap_or(observed.now)));
            status.execution_ref = Some(reference.clone());
        });
    if super::super::status::stored(&observed.wfe, condition::BLOCKED).is_some() {
        change.condition(
            condition::BLOCKED,
            Truth::False,
            "Clear",
            "nothing is in the way any more",
        )
    } else {
        change
    }
}

/// The request breaks a rule.
fn unresolved(observed: &Observed, violations: &[Violation]) -> Step {
    let sentences: Vec<_> = violations.iter().map(Violation::sentence).collect();
    let reason = violations.first().map_or("SpecInvalid", condition_reason);
    refused(
        observed,
        FailureReason::ConfigurationError,
        sentences.join("; "),
        |change, message| {
            change.condition(condition::WORKFLOW_RESOLVED, Truth::False, reason, message)
        },
    )
}

fn condition_reason(violation: &Violation) -> &'static str {
    match violation {
        Violation::WorkflowNotFound { .. } => "WorkflowNotFound",
        Violation::WorkflowNotActive { .. } => "WorkflowNotActive",
        Violation::VersionMismatch { .. } => "VersionMismatch",
        Violation::EngineMismatch { .. } => "EngineMismatch",
        Violation::ImageMismatch { .. } => "ImageMismatch",
        Violation::TargetInvalid { .. } => "TargetInvalid",
        Violation::Parameter(_) => "ParametersInvalid",
        _ => "SpecInvalid",
    }
}

/// Ends as Failed; nothing was made.
fn refused(
    observed: &Observed,
    reason: FailureReason,
    message: String,
    conditions: impl FnOnce(Change, &str) -> Change,
) -> Step {
    let change = conditions(Change::of(&observed.wfe, observed.now), &message);
    let failure = Failure {
        reason,
        message,
        exit_code: None,
        was_execution_failure: false,
    };
    Step::Do(store(fail(observed, change, &failure, observed.now)))
}

/// The create was answered with a no.
fn not_created(observed: &Observed, reason: FailureReason, message: String) -> Step {
    let word = match reason {
        FailureReason::ResourceExhausted => "QuotaExceeded",
        FailureReason::Forbidden => "RBACDenied",
        _ => "ExecutionCreationFailed",
    };
    refused(observed, reason, message, |change, message| {
        change
            .condition(
                condition::WORKFLOW_RESOLVED,
                Truth::True,
                "Resolved",
                "the workflow is in the catalog and the request fits it",
            )
            .condition(condition::EXECUTION_CREATED, Truth::False, word, message)
    })
}

/// Something could not be asked: said once, asked again.
fn unknown(observed: &Observed, kind: &str, reason: &str, message: &str) -> Step {
    let change = Change::of(&observed.wfe, observed.now)
        .condition(kind, Truth::Unknown, reason, message)
        .with(|status| status.phase = Some(Phase::Pending));
    wait_with(observed, change, Step::Wait(observed.now + ASK_AGAIN))
}

/// Stores the status unless it is stored already, then waits.
fn wait_with(observed: &Observed, change: Change, wait: Step) -> Step {
    match change.unless_stored(&observed.wfe) {
        Some(status) => Step::Do(Effect::Store(Box::new(status))),
        None => wait,
    }
}

/// Somebody else works on the target (BR-WE-009).
fn busy(observed: &Observed, checked: &CheckedSpec, holder: &Source) -> Step {
    let message = format!(
        "{} is being worked on by {}/{}",
        checked.target, holder.namespace, holder.name
    );
    let change = Change::of(&observed.wfe, observed.now).condition(
        condition::BLOCKED,
        Truth::True,
        "ResourceBusy",
        &message,
    );
    match checked.when_blocked {
        // The Lease's change is the sign to look again.
        WhenBlocked::Wait => wait_with(
            observed,
            change.with(|status| status.phase = Some(Phase::Pending)),
            Step::Done,
        ),
        WhenBlocked::Skip => {
            let conflicting = ConflictingWorkflow {
                name: holder.name.clone(),
                namespace: holder.namespace.clone(),
                target_resource: checked.target.to_string(),
                ..ConflictingWorkflow::default()
            };
            let change = change
                .condition(condition::READY, Truth::False, "NotReady", &message)
                .with(|status| {
                    status.phase = Some(Phase::Skipped);
                    status.completion_time = Some(time(observed.now));
                    status.skip_details = Some(SkipDetails {
                        reason: SkipReason::ResourceBusy,
                        message,
                        skipped_at: time(observed.now),
                        conflicting_workflow: Some(conflicting),
                        recent_remediation: None,
                        retry_at: None,
                    });
                });
            Step::Do(store(pending_audit(change)))
        }
    }
}
