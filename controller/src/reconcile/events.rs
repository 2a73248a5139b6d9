//! Kubernetes Events: what `kubectl describe` shows. Told after the status is stored; one that
//! does not get through is logged, the audit trail is what must be complete.

use std::time::Duration;

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};

use wfe_core::names::MANAGER;
use wfe_core::step::Notice;

/// The API takes 1,024 bytes; our sentences are mostly ASCII, values in them may not be.
const MAX_NOTE: usize = 340;
const DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct Events(Recorder);

impl Events {
    pub(super) fn new(client: &Client) -> Self {
        Self(Recorder::new(client.clone(), Reporter::from(MANAGER)))
    }

    /// Tells that `wfe` has come to its phase.
    pub(super) async fn tell(&self, wfe: &WorkflowExecution) {
        if let Some((type_, reason, note)) = wfe.phase().and_then(|phase| describe(phase, wfe)) {
            self.publish(wfe, type_, reason, &note).await;
        }
    }

    /// Tells that something takes longer than it should.
    pub(super) async fn notice(&self, wfe: &WorkflowExecution, notice: Notice) {
        let reference = wfe.execution_ref();
        let execution = reference.map_or_else(String::new, |it| {
            format!("{} {}/{}", it.kind, it.namespace, it.name)
        });
        let (reason, note) = match notice {
            Notice::Overdue => (
                "ExecutionOverdue",
                format!("{execution} has not ended, though its timeout is over: its backend may not work. The target stays locked"),
            ),
            Notice::PodRemains => (
                "PodRemains",
                format!("A pod of {execution} is still alive, long after the end: its node may be lost. The target stays locked until the pod is gone"),
            ),
            Notice::DeletionWaits => (
                "DeletionWaitsForClearance",
                "Its failure keeps the target blocked: it stays until somebody has looked at the target and cleared it".to_owned(),
            ),
            Notice::AuditAbandoned => (
                "AuditAbandoned",
                "Deleted without its whole audit trail: the annotation kubernaut.ai/abandon-audit says not to wait for the sink".to_owned(),
            ),
        };
        self.publish(wfe, EventType::Warning, reason.to_owned(), &note)
            .await;
    }

    async fn publish(&self, wfe: &WorkflowExecution, type_: EventType, reason: String, note: &str) {
        let event = Event {
            type_,
            reason,
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        match tokio::time::timeout(DEADLINE, self.0.publish(&event, &wfe.object_ref(&()))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "an Event was not told"),
            Err(_) => tracing::warn!("an Event was not told in time"),
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
                format!("{:?}", details.reason),
                details.natural_language_summary.clone(),
            )
        }
        Phase::Skipped => {
            let details = status.skip_details.as_ref()?;
            (
                EventType::Warning,
                format!("{:?}", details.reason),
                details.message.clone(),
            )
        }
    })
}
