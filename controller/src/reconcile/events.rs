//! Kubernetes Events, as `kubectl describe` shows them. They are published after the status is
//! stored. A failed Event is logged and not retried: the complete record is the audit trail.

use std::time::Duration;

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};

use wfe_core::names::MANAGER;
use wfe_core::step::Notice;

/// The API server accepts a note of 1,024 bytes; a character has up to three bytes in most scripts.
const MAX_NOTE_CHARACTERS: usize = 340;
const DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct Events(Recorder);

impl Events {
    pub(super) fn new(client: &Client) -> Self {
        Self(Recorder::new(client.clone(), Reporter::from(MANAGER)))
    }

    /// Publishes the Event of the current phase of `wfe`.
    pub(super) async fn publish_phase(&self, wfe: &WorkflowExecution) {
        if let Some((type_, reason, note)) = wfe.phase().and_then(|phase| describe(phase, wfe)) {
            self.publish(wfe, type_, reason, &note).await;
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
            Notice::DeletionWaits => (
                "DeletionWaitsForClearance",
                "The finalizer stays until the block of the target is cleared: inspect the target, then clear the block".to_owned(),
            ),
            Notice::ReconcileFails => return,
            Notice::AuditAbandoned => (
                "AuditAbandoned",
                "Deleted before the audit trail was delivered completely, as the annotation kubernaut.ai/abandon-audit demands".to_owned(),
            ),
        };
        self.publish(wfe, EventType::Warning, reason.to_owned(), &note)
            .await;
    }

    /// Publishes why the passes of `wfe` fail.
    pub(super) async fn failing(&self, wfe: &WorkflowExecution, error: &str) {
        let note =
            format!("The controller cannot proceed, and retries with growing delays: {error}");
        let reason = Notice::ReconcileFails.as_str().to_owned();
        self.publish(wfe, EventType::Warning, reason, &note).await;
    }

    async fn publish(&self, wfe: &WorkflowExecution, type_: EventType, reason: String, note: &str) {
        let event = Event {
            type_,
            reason,
            note: Some(note.chars().take(MAX_NOTE_CHARACTERS).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        match tokio::time::timeout(DEADLINE, self.0.publish(&event, &wfe.object_ref(&()))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(reason = event.reason, %error, "publishing an Event failed");
            }
            Err(_) => tracing::warn!(reason = event.reason, "publishing an Event timed out"),
        }
    }
}

fn describe(phase: Phase, wfe: &WorkflowExecution) -> Option<(EventType, String, String)> {
    let status = wfe.status.as_ref()?;
    Some(match phase {
        Phase::Pending => return None,
        Phase::Running => {
            let reference = status.execution_ref.as_ref()?;
            (
                EventType::Normal,
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
                EventType::Normal,
                "ExecutionSucceeded".to_owned(),
                format!("The workflow succeeded after {duration}"),
            )
        }
        Phase::Failed => {
            let details = status.failure_details.as_ref()?;
            (
                EventType::Warning,
                details.reason.as_str().to_owned(),
                details.natural_language_summary.clone(),
            )
        }
        Phase::Skipped => {
            let details = status.skip_details.as_ref()?;
            (
                EventType::Warning,
                details.reason.as_str().to_owned(),
                details.message.clone(),
            )
        }
    })
}
