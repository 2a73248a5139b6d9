//! Phase Pending: validates the request, checks everything it needs, takes the lock, and creates
//! the execution last.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use wfe_model::dependencies::{DependencyProblem, not_ready};
use wfe_model::rules::{self, CheckedSpec, ValidatedSpec, Violation};
use wfe_model::served::{self, ServedTarget};
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::{FailureReason, Phase, TriState};

use super::ending::{RECHECK_DELAY, delete, fail, pending, resolved, store, store_or, unblocked};
use super::obstacle::{self, Obstacle};
use crate::condition::{ConditionType, Reason};
use crate::execution::{Created, Execution, Refusal, Remains};
use crate::failure::Failure;
use crate::line::start_deadline;
use crate::lock::{self, Lock};
use crate::names::TargetHash;
use crate::observed::{Answer, Observed};
use crate::plan::Plan;
use crate::status::{Change, after, holds, stored, time};
use crate::step::{Effect, Question, Step};

/// Requeue delays after reads that fail: as long as they have failed already.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(5);
const MAX_RETRY_DELAY: Duration = Duration::from_mins(2);

pub(super) fn decide(observed: &Observed) -> Step {
    if let Some(step) = handle_create_result(observed) {
        return step;
    }
    let checked = match rules::check_in(&observed.source.namespace, &observed.wfe.spec) {
        Ok(checked) => checked,
        Err(violations) => return fail_invalid(observed, &violations),
    };
    let timeout = observed.settings.timeout_of(&observed.wfe);
    let deadline = start_deadline(&observed.wfe, &observed.settings, observed.now);
    if deadline <= observed.now {
        return let_go(observed).unwrap_or_else(|| obstacle::skip_stale(observed, timeout));
    }
    if observed.stuck
        && let Some(step) = let_go(observed).or_else(|| probe(observed))
    {
        return step;
    }
    start(observed, &checked).at_latest(deadline)
}

fn start(observed: &Observed, checked: &CheckedSpec) -> Step {
    let (valid, target) = match resolve(observed, checked) {
        Ok(resolved) => resolved,
        Err(step) => return *step,
    };
    let account = valid.service_account(&observed.settings.default_service_account);
    if let Some(step) = prepare(observed, checked, &valid.workflow, account) {
        return step;
    }
    let account = account.to_owned();
    let plan = plan(observed, valid, target, account);
    Step::Do(Effect::Create(Box::new(plan)))
}

/// Gives up what an attempt has taken: deletes the held execution, then frees the lock. Before the
/// end is stored, because it may be that no status can be stored, as of an object that is too large.
pub(super) fn let_go(observed: &Observed) -> Option<Step> {
    if observed.answers.lock_lost {
        return Some(Step::Ask(Question::Lock));
    }
    let in_use = observed.pods_alive || observed.others_alive.is_some();
    if observed.lock != Lock::Ours || in_use {
        return None;
    }
    let recheck = Step::Wait(observed.now + RECHECK_DELAY);
    Some(
        match (observed.answers.remains, &observed.answers.execution) {
            (None, _) => Step::Ask(Question::Remains),
            (Some(Remains::Nothing), _) => Step::Do(Effect::FreeLock(None)),
            (Some(_), None) => Step::Ask(Question::Execution),
            (Some(_), Some(Some(it))) if it.held => delete(observed, &it.reference),
            // The watch will show it.
            (Some(_), Some(_)) => recheck,
        },
    )
}

/// Shows that a status can be stored, before the lock is taken again.
fn probe(observed: &Observed) -> Option<Step> {
    if observed.wfe.phase().is_some() {
        return None;
    }
    let message = "reconciling failed several times, trying again";
    let change = Change::of(&observed.wfe, observed.now);
    Some(Step::Do(store(pending(
        change,
        Reason::InProgress,
        message,
    ))))
}

/// Stores the reference of the execution that the create of this pass has answered; fails if the create
/// was refused. What the cache shows is not adopted: nothing is started before its uid is stored.
pub(super) fn handle_create_result(observed: &Observed) -> Option<Step> {
    match &observed.answers.created {
        Some(Created::Ours(execution)) => {
            Some(Step::Do(store(running_status(observed, execution))))
        }
        Some(Created::NameTaken) => {
            let message = "an object with the name of this execution already exists: delete it, then create the WorkflowExecution again";
            Some(fail_create(observed, Refusal::Invalid, message))
        }
        Some(Created::Refused { refusal, message }) => {
            Some(fail_create(observed, *refusal, message))
        }
        None => None,
    }
}

/// Validates the request against its catalog entry, and the target against API discovery.
fn resolve(
    observed: &Observed,
    checked: &CheckedSpec,
) -> Result<(Arc<ValidatedSpec>, ServedTarget), Box<Step>> {
    let kinds = match &observed.answers.kinds {
        None => {
            let question = Question::TargetKind(checked.target.clone());
            return Err(Box::new(Step::Ask(question)));
        }
        Some(Answer::Unavailable(why)) => {
            let message = format!("API discovery is unavailable, retrying: {why}");
            let change = Change::of(&observed.wfe, observed.now);
            let kind = ConditionType::WorkflowResolved;
            let step = retry_later(
                observed,
                change,
                kind,
                Reason::DiscoveryUnavailable,
                &message,
            );
            return Err(Box::new(step));
        }
        Some(Answer::Known(kinds)) => kinds,
    };
    let resolution = match &observed.answers.workflow {
        None => {
            return Err(Box::new(Step::Ask(Question::Workflow(
                checked.workflow_id.clone(),
            ))));
        }
        Some(Answer::Unavailable(why)) => {
            let message = format!("the workflow catalog is unavailable, retrying: {why}");
            return Err(Box::new(retry_later(
                observed,
                Change::of(&observed.wfe, observed.now),
                ConditionType::WorkflowResolved,
                Reason::CatalogUnavailable,
                &message,
            )));
        }
        Some(Answer::Known(resolution)) => resolution,
    };
    let fitting = match resolution {
        Ok(valid) => served::fit(valid, kinds).map(|target| (valid.clone(), target)),
        Err(violations) => Err(violations.clone()),
    };
    fitting.map_err(|violations| Box::new(fail_invalid(observed, &violations)))
}

/// The next step between a valid request and the create; `None` when the create is next.
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
        return Some(fail_before_create(
            observed,
            reason,
            message,
            |change, message| {
                resolved(change).condition(
                    ConditionType::ExecutionCreated,
                    TriState::False,
                    Reason::UnsupportedEngine,
                    message,
                )
            },
        ));
    }
    // A blocked request has passed this check already, and is checked again below before it runs.
    let blocked = holds(&observed.wfe, ConditionType::Blocked);
    if let Some(step) = (!blocked)
        .then(|| check_account(observed, account))
        .flatten()
    {
        return Some(step);
    }
    if observed.answers.lock_lost {
        return Some(Step::Ask(Question::Lock));
    }
    if let Some(Some(lease)) = &observed.answers.lease
        && matches!(observed.lock, Lock::Held(_) | Lock::ByHand(_))
        && !lock::is_watched(lease)
    {
        return Some(Step::Do(Effect::LabelLock));
    }
    // A pause that was not heard of must hold, too.
    if observed.gate_doubtful && observed.answers.gate.is_none() {
        return Some(Step::Ask(Question::Gate));
    }
    // Checked before and after the lock is taken: the record in a taken lock is the newest one.
    if let Some(found) = obstacle::find(observed, checked) {
        return Some(obstacle::blocked(observed, checked, &found));
    }
    if let Some(step) = check_account(observed, account) {
        return Some(step);
    }
    if let Some(step) = check_dependencies(observed, workflow) {
        return Some(step);
    }
    // A lock that an earlier attempt took is taken again, so that its acquireTime is this
    // attempt's.
    if let Some(full) = observed.answers.full {
        return Some(obstacle::blocked(observed, checked, &Obstacle::Full(full)));
    }
    if observed.lock != Lock::Ours || !observed.answers.lock_taken {
        return Some(Step::Do(Effect::TakeLock));
    }
    // The lock's record says that this WorkflowExecution has ended: the cache is stale.
    let mut records = observed.target_lock.records();
    if records.any(|record| record.uid == observed.source.uid) {
        return Some(Step::Done);
    }
    // The pod of a deleted execution may still be terminating; its end triggers the next reconcile.
    if observed.others_alive.is_some() {
        return Some(Step::Done);
    }
    None
}

/// Only a ServiceAccount that is labelled as a workflow runner may run a workflow.
fn check_account(observed: &Observed, account: &str) -> Option<Step> {
    match &observed.answers.service_account {
        None => Some(Step::Ask(Question::ServiceAccount(account.to_owned()))),
        Some(Answer::Unavailable(why)) => Some(retry_read(observed, why)),
        Some(Answer::Known(answer)) => {
            let message = answer.refusal(account, &observed.settings.execution_namespace)?;
            let reason = FailureReason::ServiceAccountNotAllowed;
            Some(fail_before_create(
                observed,
                reason,
                message,
                |change, _| resolved(change),
            ))
        }
    }
}

/// Every declared Secret and ConfigMap must exist and not be empty.
fn check_dependencies(observed: &Observed, workflow: &Workflow) -> Option<Step> {
    let problems = match &observed.answers.dependencies {
        None => {
            return Some(Step::Ask(Question::Dependencies(
                workflow.dependencies.clone(),
            )));
        }
        Some(Answer::Unavailable(why)) => return Some(retry_read(observed, why)),
        Some(Answer::Known(problems)) if problems.is_empty() => return None,
        Some(Answer::Known(problems)) => problems,
    };
    let missing = |it: &DependencyProblem| !matches!(it, DependencyProblem::Empty { .. });
    let reason = if problems.iter().any(missing) {
        Reason::DependencyMissing
    } else {
        Reason::DependencyEmpty
    };
    let message = not_ready(problems);
    Some(fail_before_create(
        observed,
        FailureReason::ConfigurationError,
        message,
        |change, message| {
            resolved(change).condition(
                ConditionType::DependenciesReady,
                TriState::False,
                reason,
                message,
            )
        },
    ))
}

fn plan(
    observed: &Observed,
    valid: Arc<ValidatedSpec>,
    target: ServedTarget,
    service_account: String,
) -> Plan {
    Plan {
        target,
        name: observed.execution_name(),
        namespace: observed.settings.execution_namespace.clone(),
        target_hash: TargetHash::of(&valid.spec.target),
        timeout: valid.timeout(observed.settings.default_timeout),
        default_resources: observed.settings.default_resources.clone(),
        service_account,
        source: observed.source.clone(),
        valid,
    }
}

/// The status Running, with the reference of the existing execution.
fn running_status(observed: &Observed, execution: &Execution) -> Change {
    let reference = &execution.reference;
    let declared = match &observed.answers.workflow {
        Some(Answer::Known(Ok(valid))) => {
            let dependencies = &valid.workflow.dependencies;
            !(dependencies.secrets.is_empty() && dependencies.config_maps.is_empty())
        }
        _ => true,
    };
    let dependencies = if declared {
        (
            Reason::Ready,
            "every declared Secret and ConfigMap exists and is not empty",
        )
    } else {
        (
            Reason::NoneDeclared,
            "the workflow declares no dependencies",
        )
    };
    let message = format!(
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
            &message,
        )
        .condition(
            ConditionType::Ready,
            TriState::Unknown,
            Reason::InProgress,
            "the workflow is running",
        )
        .with(|status| {
            status.phase = Some(Phase::Running);
            // A held execution may be much older than its start, which follows now.
            let created = execution.created.filter(|_| !execution.held);
            status.start_time = Some(time(created.unwrap_or(observed.now)));
            status.execution_ref = Some(reference.clone());
            // The reason why it was Pending.
            status.execution_status = None;
            status.image.clone_from(&execution.image);
        });
    unblocked(change)
}

/// Ends as Failed: the request breaks a rule.
fn fail_invalid(observed: &Observed, violations: &[Violation]) -> Step {
    let sentences: Vec<_> = violations.iter().map(Violation::sentence).collect();
    let reason = violations
        .first()
        .map_or(Reason::SpecInvalid, condition_reason);
    fail_before_create(
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
        Violation::WorkflowInvalid { .. } => Reason::WorkflowInvalid,
        Violation::WorkflowNotActive { .. } => Reason::WorkflowNotActive,
        Violation::VersionMismatch { .. } => Reason::VersionMismatch,
        Violation::EngineMismatch { .. } => Reason::EngineMismatch,
        Violation::ImageMismatch { .. } => Reason::ImageMismatch,
        Violation::TargetInvalid { .. }
        | Violation::TargetKindUnknown { .. }
        | Violation::TargetKindUnreadable { .. }
        | Violation::TargetKindAmbiguous { .. }
        | Violation::TargetKindNotAllowed { .. }
        | Violation::TargetNamespaceMissing { .. }
        | Violation::TargetNamespaceForbidden { .. } => Reason::TargetInvalid,
        Violation::Parameter(_) => Reason::ParametersInvalid,
        _ => Reason::SpecInvalid,
    }
}

/// Ends as Failed; no execution was created.
fn fail_before_create(
    observed: &Observed,
    reason: FailureReason,
    message: String,
    conditions: impl FnOnce(Change, &str) -> Change,
) -> Step {
    let change = conditions(Change::of(&observed.wfe, observed.now), &message);
    let failure = Failure::new(reason, message, false);
    Step::Do(store(fail(observed, change, &failure, observed.now)))
}

/// Ends as Failed: the API server refused to create the execution.
fn fail_create(observed: &Observed, refusal: Refusal, message: &str) -> Step {
    let created = ConditionType::ExecutionCreated;
    let (kind, reason) = match refusal {
        Refusal::Quota => (created, Reason::QuotaExceeded),
        Refusal::Rights => (created, Reason::RBACDenied),
        Refusal::Workspaces => (
            ConditionType::DependenciesReady,
            Reason::WorkspaceNotDeclared,
        ),
        Refusal::Admission | Refusal::Invalid | Refusal::Bundle | Refusal::Parameters => {
            (created, Reason::ExecutionCreationFailed)
        }
    };
    fail_before_create(
        observed,
        refusal.reason(),
        message.to_owned(),
        |change, message| resolved(change).condition(kind, TriState::False, reason, message),
    )
}

/// Retries: the workflow is known, but its dependencies or ServiceAccount could not be read.
fn retry_read(observed: &Observed, why: &str) -> Step {
    let change = resolved(Change::of(&observed.wfe, observed.now));
    retry_later(
        observed,
        change,
        ConditionType::DependenciesReady,
        Reason::ReadFailed,
        why,
    )
}

/// Stores the condition as Unknown once, and retries.
fn retry_later(
    observed: &Observed,
    change: Change,
    kind: ConditionType,
    reason: Reason,
    message: &str,
) -> Step {
    let change = change.condition(kind, TriState::Unknown, reason, message);
    let change = pending(change, reason, message);
    store_or(observed, change, Step::Wait(retry_at(observed, kind)))
}

/// When a read is repeated whose failure is stored in a condition. Spread, so that many requests do
/// not repeat theirs at the same moment.
fn retry_at(observed: &Observed, kind: ConditionType) -> Timestamp {
    let since = stored(&observed.wfe, kind).map_or(observed.now, |it| it.last_transition_time.0);
    let failing = Duration::try_from(observed.now.duration_since(since)).unwrap_or_default();
    let delay = failing.clamp(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
    let sum: u32 = observed.source.uid.bytes().map(u32::from).sum();
    let spread = delay * (sum % 256) / 1024;
    after(observed.now, delay + spread)
}
