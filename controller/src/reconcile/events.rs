//! Kubernetes Events, as `kubectl describe` shows them. They are published after the status is
//! stored. A failed Event is logged and not retried: the complete record is the audit trail.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use wfe_core::audit;
use wfe_core::clearing;
use wfe_core::condition::ConditionType;
use wfe_core::execution::Cause;
use wfe_core::names::MANAGER;
use wfe_core::status::stored;
use wfe_core::step::Notice;
use wfe_model::text::in_full;
use wfe_model::workflow_execution::{Phase, TriState, WorkflowExecution};

/// Maximum of the API server.
const MAX_NOTE_BYTES: usize = 1024;
/// A name of 253 characters has no room for the time of an Event.
const MAX_NAME_PREFIX: usize = 230;
const DEADLINE: Duration = Duration::from_secs(5);

const NORMAL: &str = "Normal";
const WARNING: &str = "Warning";

pub(super) struct Events {
    client: Client,
    /// The process, as the API server wants it beside the controller's name.
    instance: String,
}

impl Events {
    pub(super) fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            instance: std::env::var("HOSTNAME").unwrap_or_else(|_| MANAGER.to_owned()),
        }
    }

    /// Publishes what has changed between two stored versions of `wfe`.
    pub(super) async fn publish_changes(
        &self,
        before: &WorkflowExecution,
        wfe: &WorkflowExecution,
    ) {
        for (type_, reason, note) in changes(before, wfe) {
            self.publish(wfe, type_, &reason, &note).await;
        }
    }

    /// Publishes the Event of a notice.
    pub(super) async fn notice(&self, wfe: &WorkflowExecution, notice: Notice) {
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
        self.publish(wfe, WARNING, reason, &note).await;
    }

    /// Publishes why the passes of `wfe` fail.
    pub(super) async fn failing(&self, wfe: &WorkflowExecution, error: &str) {
        let note =
            format!("The controller cannot proceed, and retries with growing delays: {error}");
        let reason = Notice::ReconcileFails.as_str();
        self.publish(wfe, WARNING, reason, &note).await;
    }

    async fn publish(&self, wfe: &WorkflowExecution, type_: &str, reason: &str, note: &str) {
        let namespace = wfe.namespace().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let prefix: String = wfe.name_any().chars().take(MAX_NAME_PREFIX).collect();
        let prefix = prefix.trim_end_matches(['.', '-']);
        let now = Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                // As client-go names Events: a list is in the order of time.
                name: Some(format!("{prefix}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(fit(note, MAX_NOTE_BYTES)),
            reason: Some(reason.to_owned()),
            regarding: Some(wfe.object_ref(&())),
            reporting_controller: Some(MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(type_.to_owned()),
            ..Event::default()
        };
        let parameters = PostParams::default();
        let creating = api.create(&parameters, &event);
        match tokio::time::timeout(DEADLINE, creating).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    reason,
                    error = in_full(&error),
                    "publishing an Event failed"
                );
            }
            Err(_) => tracing::warn!(reason, "publishing an Event timed out"),
        }
    }
}

/// Shortens `note` to at most `maximum` bytes. A command at its end stays whole: the text before it
/// is cut.
fn fit(note: &str, maximum: usize) -> String {
    if note.len() <= maximum {
        return note.to_owned();
    }
    let commands = ["kubectl ", "wfe-controller "];
    let command = commands.iter().filter_map(|it| note.rfind(it)).max();
    let command = command.map_or("", |at| &note[at..]);
    let command = if command.len() > maximum / 2 {
        ""
    } else {
        command
    };
    let room = maximum - command.len() - "… ".len();
    let text = &note[..note.floor_char_boundary(room)];
    format!("{text}… {command}").trim_end().to_owned()
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

    #[test]
    fn fit_long_note_keeps_its_command_whole() {
        let command = clearing::command("prod", &"n".repeat(253));
        let note = format!("It failed ({}): {command}", "ü".repeat(2000));
        let fitted = fit(&note, MAX_NOTE_BYTES);
        assert!(fitted.len() <= MAX_NOTE_BYTES, "{} bytes", fitted.len());
        assert!(
            fitted.starts_with("It failed (ü") && fitted.ends_with(&command),
            "{fitted}"
        );
        assert_eq!(fit("short", MAX_NOTE_BYTES), "short");
        assert_eq!(fit(&"x".repeat(2000), 10), "xxxxxx…");
    }

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
