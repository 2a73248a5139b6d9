//! Kubernetes Events of WorkflowExecutions, as `kubectl describe` shows them. They are recorded after
//! the status is stored. The complete record is the audit trail.

use kube::{Resource, ResourceExt};
use wfe_core::audit;
use wfe_core::clearing;
use wfe_core::condition::ConditionType;
use wfe_core::execution::Cause;
use wfe_core::status::stored;
use wfe_core::step::Notice;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecution};

use crate::recorder::{Happening, NORMAL, Recorder, WARNING};

/// Records Events of WorkflowExecutions.
pub(super) struct Events(pub(super) Recorder);

impl Events {
    /// Records what has changed between two stored versions of `wfe`.
    pub(super) fn changes(&self, before: &WorkflowExecution, wfe: &WorkflowExecution) {
        for (type_, reason, note) in changes(before, wfe) {
            self.record(wfe, type_, &reason, note);
        }
    }

    /// Records the Event of a notice.
    pub(super) fn notice(&self, wfe: &WorkflowExecution, notice: Notice) {
        let reference = wfe.execution_ref();
        let execution = reference.map_or_else(String::new, |it| {
            format!("{} {}/{}", it.kind, it.namespace, it.name)
        });
        let (reason, note) = match notice {
            Notice::Overdue => (
                "ExecutionOverdue",
                format!("{execution} has not ended 2 minutes after its timeout: check the Job controller and the node. The target stays locked"),
            ),
            Notice::PodRemains => (
                "PodRemains",
                format!("A pod of {execution} still exists after the execution has ended: check its node. The target stays locked until the pod is gone"),
            ),
            Notice::DeletionStuck => (
                "ExecutionDeletionStuck",
                format!("{execution} was deleted more than 2 minutes ago and still exists: look at its metadata.finalizers, another controller has to remove one"),
            ),
            Notice::DeletionWaits => (
                "DeletionWaitsForClearance",
                format!(
                    "The finalizer stays until the block of the target is cleared: look at the target, then clear the block: {}",
                    clearing::command(&wfe.namespace().unwrap_or_default(), &wfe.name_any())
                ),
            ),
            Notice::ReconcileFails => return,
            Notice::AuditAbandoned => (
                "AuditAbandoned",
                "Deleted before the audit trail was delivered completely, as the annotation kubernaut.ai/abandon-audit demands".to_owned(),
            ),
        };
        self.record(wfe, WARNING, reason, note);
    }

    /// Records why the passes of `wfe` fail.
    pub(super) fn failing(&self, wfe: &WorkflowExecution, error: &str) {
        let note =
            format!("The controller cannot proceed, and retries with growing delays: {error}");
        let reason = Notice::ReconcileFails.as_str();
        self.record(wfe, WARNING, reason, note);
    }

    fn record(&self, wfe: &WorkflowExecution, type_: &'static str, reason: &str, note: String) {
        self.0.record(Happening {
            regarding: wfe.object_ref(&()),
            type_,
            reason: reason.to_owned(),
            note,
        });
    }
}

type Note = (&'static str, String, String);

/// The Events of a change of the status.
fn changes(before: &WorkflowExecution, wfe: &WorkflowExecution) -> Vec<Note> {
    let phase = wfe.phase().filter(|_| before.phase() != wfe.phase());
    let phase = phase.and_then(|phase| describe(phase, wfe));
    let all = [
        phase,
        waits(before, wfe),
        suspended(before, wfe),
        cleared(before, wfe),
    ];
    all.into_iter().flatten().collect()
}

/// What keeps a request that waits, once for each reason.
fn waits(before: &WorkflowExecution, wfe: &WorkflowExecution) -> Option<Note> {
    let blocked = |wfe| {
        let condition = stored(wfe, ConditionType::Blocked);
        condition.filter(|it| it.status == TriState::True.as_str())
    };
    let now = blocked(wfe)?;
    let same = blocked(before).is_some_and(|it| it.reason == now.reason);
    (!same).then(|| (NORMAL, now.reason.clone(), now.message.clone()))
}

/// Another client has suspended the execution before it started.
fn suspended(before: &WorkflowExecution, wfe: &WorkflowExecution) -> Option<Note> {
    let suspended = |wfe: &WorkflowExecution| {
        let summary = wfe.status.as_ref()?.execution_status.clone()?;
        let is_cause = summary.reason.as_deref() == Some(Cause::Suspended.as_str());
        is_cause.then_some(summary.message.unwrap_or_default())
    };
    let now = suspended(wfe).filter(|_| suspended(before).is_none())?;
    Some((WARNING, "ExecutionSuspended".to_owned(), now))
}

/// The clearance is reported when its audit event is delivered, as in the metric.
fn cleared(before: &WorkflowExecution, wfe: &WorkflowExecution) -> Option<Note> {
    let reported = |wfe| audit::is_settled(wfe, ConditionType::ClearanceRecorded);
    let clearance = wfe.status.as_ref()?.block_clearance.as_ref()?;
    let note = format!(
        "Cleared by {}: {}",
        clearance.cleared_by, clearance.clear_reason
    );
    (reported(wfe) && !reported(before)).then(|| (NORMAL, "BlockCleared".to_owned(), note))
}

fn describe(phase: Phase, wfe: &WorkflowExecution) -> Option<Note> {
    let status = wfe.status.as_ref()?;
    Some(match phase {
        Phase::Pending => return None,
        Phase::Running => {
            let reference = status.execution_ref.as_ref()?;
            (
                NORMAL,
                "ExecutionCreated".to_owned(),
                format!(
                    "Created {} {}/{}",
                    reference.kind, reference.namespace, reference.name
                ),
            )
        }
        Phase::Succeeded => {
            let duration = status.duration.as_deref().unwrap_or_default();
            (
                NORMAL,
                "ExecutionSucceeded".to_owned(),
                format!("The workflow succeeded after {duration}"),
            )
        }
        Phase::Failed => {
            let details = status.failure_details.as_ref()?;
            (
                WARNING,
                details.reason.as_str().to_owned(),
                details.natural_language_summary.clone(),
            )
        }
        Phase::Skipped => {
            let details = status.skip_details.as_ref()?;
            (
                WARNING,
                details.reason.as_str().to_owned(),
                details.message.clone(),
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wfe(status: serde_json::Value) -> WorkflowExecution {
        WorkflowExecution {
            status: serde_json::from_value(status).expect("a status"),
            ..WorkflowExecution::default()
        }
    }

    fn condition(kind: &str, status: &str, reason: &str) -> serde_json::Value {
        json!({ "type": kind, "status": status, "reason": reason, "message": "why", "lastTransitionTime": "2026-01-01T00:00:00Z" })
    }

    fn blocked(reason: &str) -> WorkflowExecution {
        wfe(json!({ "phase": "Pending", "conditions": [condition("Blocked", "True", reason)] }))
    }

    fn reasons(before: &WorkflowExecution, after: &WorkflowExecution) -> Vec<String> {
        let changes = changes(before, after).into_iter();
        changes.map(|(_, reason, _)| reason).collect()
    }

    #[test]
    fn change_of_what_a_request_waits_for_is_told_once() {
        let (paused, busy) = (blocked("Paused"), blocked("ResourceBusy"));
        assert_eq!(reasons(&WorkflowExecution::default(), &paused), ["Paused"]);
        assert_eq!(reasons(&paused, &paused), [] as [&str; 0]);
        assert_eq!(reasons(&paused, &busy), ["ResourceBusy"]);
        let running = |reason: &str| {
            wfe(
                json!({ "phase": "Running", "executionStatus": { "status": "Unknown", "reason": reason, "message": "why" } }),
            )
        };
        let suspended = reasons(&running("Running"), &running("Suspended"));
        assert_eq!(suspended, ["ExecutionSuspended"]);
        let cleared = |conditions: serde_json::Value| {
            wfe(json!({
                "phase": "Failed", "conditions": conditions,
                "blockClearance": { "clearedBy": "ann", "clearedAt": "2026-01-01T00:00:00Z", "clearReason": "looked at it", "clearMethod": "KubernetesAdmissionWebhook" },
            }))
        };
        let recorded = condition("ClearanceRecorded", "True", "AuditSucceeded");
        let told = reasons(&cleared(json!([])), &cleared(json!([recorded])));
        assert_eq!(told, ["BlockCleared"]);
    }
}
