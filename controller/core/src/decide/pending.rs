//! From accepted to created: nothing is made before everything is known to be right.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use wfe_model::dependencies::{DependencyProblem, not_ready};
use wfe_model::rules::{self, CheckedSpec, ValidatedSpec, Violation};
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::{FailureReason, Phase, TriState};

use super::ending::{fail, resolved, store, store_or, timeout};
use super::obstacle;
use crate::condition::{ConditionType, Reason};
use crate::execution::{Created, Execution, Plan, Refusal};
use crate::failure::Failure;
use crate::lock::Lock;
use crate::names::TargetHash;
use crate::observed::{Answer, Observed};
use crate::status::{Change, after, holds, stored, time};
use crate::step::{Effect, Question, Step};

/// After something could not be asked.
const ASK_AGAIN: Duration = Duration::from_secs(5);

pub(super) fn decide(observed: &Observed) -> Step {
    if let Some(step) = made(observed) {
        return step;
    }
    let checked = match rules::check(&observed.wfe.spec) {
        Ok(checked) => checked,
        Err(violations) => return unresolved(observed, &violations),
    };
    let timeout = timeout(observed);
    let deadline = stale_at(observed, timeout);
    if deadline <= observed.now {
        return obstacle::too_late(observed, timeout);
    }
    match start(observed, &checked) {
        Step::Done => Step::Wait(deadline),
        Step::Wait(until) => Step::Wait(until.min(deadline)),
        step => step,
    }
}

fn start(observed: &Observed, checked: &CheckedSpec) -> Step {
    let valid = match resolve(observed, checked) {
        Ok(valid) => valid,
        Err(step) => return *step,
    };
    let account = checked
        .service_account
        .as_ref()
        .unwrap_or(&observed.settings.default_service_account);
    if let Some(step) = prepare(observed, checked, &valid.workflow, account) {
        return step;
    }
    let plan = plan(observed, valid, account.clone());
    Step::Do(Effect::Create(Box::new(plan)))
}

/// A remediation that was decided longer ago than it may take must not start any more.
fn stale_at(observed: &Observed, timeout: Duration) -> Timestamp {
    let created = observed.wfe.metadata.creation_timestamp.as_ref();
    let created = created.map_or(observed.now, |time| time.0);
    after(created, timeout)
}

/// What has been created in this pass, or runs already. An object that an earlier attempt created and
/// did not live to start is not taken for an execution: everything is decided anew.
pub(super) fn made(observed: &Observed) -> Option<Step> {
    let runs = |it: &&Execution| it.source_uid == observed.wfe.metadata.uid && !it.held;
    if let Some(execution) = observed.execution.as_ref().filter(runs) {
        return Some(Step::Do(store(created(observed, execution))));
    }
    match &observed.answers.created {
        Some(Created::Ours(execution)) => Some(Step::Do(store(created(observed, execution)))),
        Some(Created::NameTaken) => {
            let message = "another object has the name of this execution already: delete it, or use another name";
            Some(not_created(observed, Refusal::Invalid, message))
        }
        Some(Created::Refused { refusal, message }) => {
            Some(not_created(observed, *refusal, message))
        }
        None => None,
    }
}

/// What the catalog says of the request, and the cluster of its target.
fn resolve(observed: &Observed, checked: &CheckedSpec) -> Result<Arc<ValidatedSpec>, Box<Step>> {
    let misfit = match &observed.answers.target {
        None => {
            let question = Question::TargetKind(checked.target.clone());
            return Err(Box::new(Step::Ask(question)));
        }
        Some(Answer::Unavailable(why)) => {
            let message = format!("the target cannot be checked: {why}");
            let change = Change::of(&observed.wfe, observed.now);
            let kind = ConditionType::WorkflowResolved;
            let step = unknown(
                observed,
                change,
                kind,
                Reason::DiscoveryUnavailable,
                &message,
            );
            return Err(Box::new(step));
        }
        Some(Answer::Known(misfit)) => misfit,
    };
    let resolution = match &observed.answers.workflow {
        None => {
            return Err(Box::new(Step::Ask(Question::Workflow(
                checked.workflow_id.clone(),
            ))));
        }
        Some(Answer::Unavailable(why)) => {
            let message = format!("the workflow catalog cannot be asked: {why}");
            return Err(Box::new(unknown(
                observed,
                Change::of(&observed.wfe, observed.now),
                ConditionType::WorkflowResolved,
                Reason::CatalogUnavailable,
                &message,
            )));
        }
        Some(Answer::Known(resolution)) => resolution,
    };
    match (resolution, misfit) {
        (Ok(valid), None) => Ok(valid.clone()),
        (resolution, misfit) => {
            let mut violations = resolution.as_ref().err().cloned().unwrap_or_default();
            violations.extend(misfit.clone());
            Err(Box::new(unresolved(observed, &violations)))
        }
    }
}

/// The steps between a valid request and the create, in their order; none is left at the end.
fn prepare(
    observed: &Observed,
    checked: &CheckedSpec,
    workflow: &Workflow,
    account: &str,
) -> Option<Step> {
    if !observed.engine_installed {
        let engine = workflow.engine;
        let message = Violation::EngineNotInstalled { engine }.to_string();
        let reason = FailureReason::UnsupportedEngine;
        return Some(refused(observed, reason, message, |change, message| {
            resolved(change).condition(
                ConditionType::ExecutionCreated,
                TriState::False,
                Reason::UnsupportedEngine,
                message,
            )
        }));
    }
    // Who waits has been let in already, and is looked at again when it may run.
    let waits = holds(&observed.wfe, ConditionType::Blocked);
    if let Some(step) = (!waits).then(|| check_account(observed, account)).flatten() {
        return Some(step);
    }
    if observed.answers.lock_lost {
        return Some(Step::Ask(Question::Lock));
    }
    // Asked again when the lock is taken: its record is then known to be the last word.
    if let Some(found) = obstacle::find(observed, checked) {
        return Some(obstacle::blocked(observed, checked, &found));
    }
    if let Some(step) = check_account(observed, account) {
        return Some(step);
    }
    if let Some(step) = check_dependencies(observed, workflow) {
        return Some(step);
    }
    // One that an earlier try has taken is taken again: the time of this try counts.
    if observed.lock != Lock::Ours || !observed.answers.lock_taken {
        return Some(Step::Do(Effect::TakeLock));
    }
    // It has run, says the lock: the cache is behind.
    let mut records = observed.target_lock.records();
    if records.any(|record| record.uid == observed.source.uid) {
        return Some(Step::Done);
    }
    // The pod of an execution that was deleted may still be ending: looked at again when it has.
    if observed.others_alive.is_some() {
        return Some(Step::Done);
    }
    None
}

/// Only ServiceAccounts that are meant for workflows run them.
fn check_account(observed: &Observed, account: &str) -> Option<Step> {
    match &observed.answers.service_account {
        None => Some(Step::Ask(Question::ServiceAccount(account.to_owned()))),
        Some(Answer::Unavailable(why)) => Some(unread(observed, why)),
        Some(Answer::Known(answer)) => {
            let message = answer.refusal(account, &observed.settings.execution_namespace)?;
            let reason = FailureReason::ServiceAccountNotAllowed;
            Some(refused(observed, reason, message, |change, _| {
                resolved(change)
            }))
        }
    }
}

/// Nothing runs without what it declares.
fn check_dependencies(observed: &Observed, workflow: &Workflow) -> Option<Step> {
    let problems = match &observed.answers.dependencies {
        None => {
            return Some(Step::Ask(Question::Dependencies(
                workflow.dependencies.clone(),
            )));
        }
        Some(Answer::Unavailable(why)) => return Some(unread(observed, why)),
        Some(Answer::Known(problems)) if problems.is_empty() => return None,
        Some(Answer::Known(problems)) => problems,
    };
    let missing = |it: &DependencyProblem| matches!(it, DependencyProblem::Missing { .. });
    let word = if problems.iter().any(missing) {
        Reason::DependencyMissing
    } else {
        Reason::DependencyEmpty
    };
    let message = not_ready(problems);
    Some(refused(
        observed,
        FailureReason::ConfigurationError,
        message,
        |change, message| {
            resolved(change).condition(
                ConditionType::DependenciesReady,
                TriState::False,
                word,
                message,
            )
        },
    ))
}

fn plan(observed: &Observed, valid: Arc<ValidatedSpec>, service_account: String) -> Plan {
    Plan {
        name: observed.execution_name(),
        namespace: observed.settings.execution_namespace.clone(),
        target_hash: TargetHash::of(&valid.spec.target),
        timeout: timeout(observed),
        service_account,
        source: observed.source.clone(),
        valid,
    }
}

/// The status of one whose execution exists.
fn created(observed: &Observed, execution: &Execution) -> Change {
    let reference = &execution.reference;
    let declared = match &observed.answers.workflow {
        Some(Answer::Known(Ok(valid))) => {
            let dependencies = &valid.workflow.dependencies;
            !(dependencies.secrets.is_empty() && dependencies.config_maps.is_empty())
        }
        _ => true,
    };
    let dependencies = if declared {
        (Reason::Ready, "everything the workflow depends on is there")
    } else {
        (Reason::NoneDeclared, "the workflow depends on nothing")
    };
    let made = format!(
        "{} {}/{} was created",
        reference.kind, reference.namespace, reference.name
    );
    let change = resolved(Change::of(&observed.wfe, observed.now))
        .condition(
            ConditionType::DependenciesReady,
            TriState::True,
            dependencies.0,
            dependencies.1,
        )
        .condition(
            ConditionType::ExecutionCreated,
            TriState::True,
            Reason::ExecutionCreated,
            &made,
        )
        .condition(
            ConditionType::Ready,
            TriState::Unknown,
            Reason::InProgress,
            "the workflow is running",
        )
        .with(|status| {
            status.phase = Some(Phase::Running);
            status.start_time = Some(time(execution.created.unwrap_or(observed.now)));
            status.execution_ref = Some(reference.clone());
        });
    if stored(&observed.wfe, ConditionType::Blocked).is_some() {
        change.condition(
            ConditionType::Blocked,
            TriState::False,
            Reason::Clear,
            "nothing is in the way any more",
        )
    } else {
        change
    }
}

/// The request breaks a rule.
fn unresolved(observed: &Observed, violations: &[Violation]) -> Step {
    let sentences: Vec<_> = violations.iter().map(Violation::sentence).collect();
    let reason = violations
        .first()
        .map_or(Reason::SpecInvalid, condition_reason);
    refused(
        observed,
        FailureReason::ConfigurationError,
        sentences.join("; "),
        |change, message| {
            change.condition(
                ConditionType::WorkflowResolved,
                TriState::False,
                reason,
                message,
            )
        },
    )
}

fn condition_reason(violation: &Violation) -> Reason {
    match violation {
        Violation::WorkflowNotFound { .. } => Reason::WorkflowNotFound,
        Violation::WorkflowNotActive { .. } => Reason::WorkflowNotActive,
        Violation::VersionMismatch { .. } => Reason::VersionMismatch,
        Violation::EngineMismatch { .. } => Reason::EngineMismatch,
        Violation::ImageMismatch { .. } => Reason::ImageMismatch,
        Violation::TargetInvalid { .. }
        | Violation::TargetKindUnknown { .. }
        | Violation::TargetNamespaceMissing { .. }
        | Violation::TargetNamespaceForbidden { .. } => Reason::TargetInvalid,
        Violation::Parameter(_) => Reason::ParametersInvalid,
        _ => Reason::SpecInvalid,
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
fn not_created(observed: &Observed, refusal: Refusal, message: &str) -> Step {
    let word = match refusal {
        Refusal::Quota => Reason::QuotaExceeded,
        Refusal::Rights => Reason::RBACDenied,
        Refusal::Admission | Refusal::Invalid => Reason::ExecutionCreationFailed,
    };
    refused(
        observed,
        refusal.reason(),
        message.to_owned(),
        |change, message| {
            resolved(change).condition(
                ConditionType::ExecutionCreated,
                TriState::False,
                word,
                message,
            )
        },
    )
}

/// The workflow is known, what it needs could not be read.
fn unread(observed: &Observed, why: &str) -> Step {
    let change = resolved(Change::of(&observed.wfe, observed.now));
    unknown(
        observed,
        change,
        ConditionType::DependenciesReady,
        Reason::ReadFailed,
        why,
    )
}

/// Something could not be asked: said once, asked again.
fn unknown(
    observed: &Observed,
    change: Change,
    kind: ConditionType,
    reason: Reason,
    message: &str,
) -> Step {
    let change = change
        .condition(kind, TriState::Unknown, reason, message)
        .with(|status| status.phase = Some(Phase::Pending));
    store_or(observed, change, Step::Wait(observed.now + ASK_AGAIN))
}
