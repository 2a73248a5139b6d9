//! Warns about a DELETE after which the WorkflowExecution stays: its finalizer waits for the
//! clearance of its block, or for the delivery of its audit trail. Never denies.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Deserialize;
use serde_json::value::RawValue;
use wfe_model::rules::JsonObject;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecutionStatus, clear_command};

use crate::review::{MAX_WARNING, Request, Verdict};

#[derive(Deserialize)]
struct ObjectFields<'a> {
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
}

/// Reviews a DELETE request.
pub fn warn(request: &Request<'_>) -> Verdict {
    let object = request.old_object::<ObjectFields>();
    let status = object.ok().and_then(|it| it.status);
    let status = status.and_then(|it| serde_json::from_str(it.get()).ok());
    let Some(JsonObject(status)) = status.map(JsonObject::<WorkflowExecutionStatus>) else {
        return Verdict::allow();
    };
    let (namespace, name) = (&request.namespace, &request.name);
    let mut verdict = Verdict::allow();
    if blocks(&status) {
        let stays = "it stays until the block of its target is cleared: look at the target, then clear the block, before or after the deletion";
        verdict = verdict.warn(stays);
        // A command that is cut would be of no use; the Events have it, too.
        let command = clear_command(namespace, name);
        if command.len() <= MAX_WARNING {
            verdict = verdict.warn(&command);
        }
    }
    if status.phase.is_some_and(Phase::is_final) && !is_delivered(&status) {
        let stays = "it stays until its audit trail is delivered: see its condition AuditRecorded";
        verdict = verdict.warn(stays);
    }
    verdict
}

/// Whether only a clearance lets the next execution run on the target.
fn blocks(status: &WorkflowExecutionStatus) -> bool {
    let details = status.failure_details.as_ref();
    let ran = details.is_some_and(|it| it.was_execution_failure);
    let clears = ran || status.exhausts_retries();
    status.phase == Some(Phase::Failed) && clears && status.block_clearance.is_none()
}

/// Whether no audit event is left to deliver.
fn is_delivered(status: &WorkflowExecutionStatus) -> bool {
    let settled =
        |it: &Condition| it.status == TriState::True.as_str() || it.reason == "AuditEventRejected";
    let mut conditions = status.conditions.iter();
    conditions.any(|it| it.type_ == "AuditRecorded" && settled(it))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn warnings(status: &Value) -> Vec<String> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u1", "operation": "DELETE", "namespace": "prod", "name": "resize-1",
                "resource": { "group": "kubernaut.ai", "resource": "workflowexecutions" },
                "oldObject": { "metadata": { "name": "resize-1" }, "status": status },
            },
        });
        let review = review.to_string();
        let request = Request::read(review.as_bytes(), &["DELETE workflowexecutions"]);
        let verdict = warn(&request.expect("a request"));
        assert_eq!(verdict.refusals, []);
        verdict.warnings
    }

    const AT: &str = "2026-01-01T00:00:00Z";

    fn failed(ran: bool, more: &Value) -> Value {
        let mut status = json!({
            "phase": "Failed",
            "failureDetails": { "reason": "TaskFailed", "message": "", "failedAt": AT, "naturalLanguageSummary": "", "wasExecutionFailure": ran },
            "conditions": [{ "type": "AuditRecorded", "status": "True", "reason": "AuditSucceeded", "message": "", "lastTransitionTime": AT }],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            status[key] = value.clone();
        }
        status
    }

    /// BR-WE-013
    #[rstest]
    #[case::blocks(failed(true, &json!({})), 2)]
    #[case::exhausts(failed(false, &json!({ "consecutiveFailures": 5 })), 2)]
    #[case::backs_off(failed(false, &json!({ "consecutiveFailures": 1, "nextAllowedExecution": AT })), 0)]
    #[case::cleared(failed(true, &json!({ "blockClearance": { "clearedBy": "ann", "clearedAt": AT, "clearReason": "looked at it", "clearMethod": "KubernetesAdmissionWebhook" } })), 0)]
    #[case::undelivered(failed(false, &json!({ "conditions": [] })), 1)]
    #[case::running(json!({ "phase": "Running" }), 0)]
    #[case::never_seen(Value::Null, 0)]
    #[case::unreadable(json!({ "phase": "Exploded" }), 0)]
    fn deletion_that_waits_is_warned_about(#[case] status: Value, #[case] count: usize) {
        let warnings = warnings(&status);
        assert_eq!(warnings.len(), count, "{warnings:?}");
        if count == 2 {
            assert_eq!(warnings[1], clear_command("prod", "resize-1"));
        }
    }
}
