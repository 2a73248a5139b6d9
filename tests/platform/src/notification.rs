//! Stand-in for Kubernaut's Notification: posts what became of a RemediationRequest to a receiver, until the
//! receiver has taken it.
//!
//! A crash between the answer and the note on the request repeats the post: the receiver knows it by its id.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use wfe_model::remediation::RemediationRequest;
use wfe_model::workflow_execution::WorkflowExecution;

use crate::controller::{Handle, reconcile_each};

/// Annotation of a RemediationRequest: when the receiver took its notification.
pub const NOTIFIED: &str = "kubernaut.ai/notified";
const DEADLINE: Duration = Duration::from_secs(5);

/// What a receiver gets.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// Uid of the RemediationRequest: the same for a repeated post.
    pub id: String,
    /// Name of the RemediationRequest.
    pub remediation_request: String,
    /// Its phase.
    pub phase: String,
    /// What happened, in a sentence or two.
    pub text: String,
}

/// Watches the RemediationRequests in `namespace`; posts to the URL `receiver`.
pub async fn run(client: Client, namespace: &str, receiver: String) -> Result<()> {
    let requests: Api<RemediationRequest> = Api::namespaced(client.clone(), namespace);
    let notifier = Notifier {
        executions: Api::namespaced(client, namespace),
        requests: requests.clone(),
        http: reqwest::Client::builder().timeout(DEADLINE).build()?,
        receiver,
    };
    reconcile_each(requests, notifier).await;
    Ok(())
}

struct Notifier {
    requests: Api<RemediationRequest>,
    executions: Api<WorkflowExecution>,
    http: reqwest::Client,
    receiver: String,
}

impl Handle<RemediationRequest> for Notifier {
    async fn handle(&self, request: &RemediationRequest) -> Result<()> {
        if !request.is_ended() || request.annotations().contains_key(NOTIFIED) {
            return Ok(());
        }
        let status = request.status.as_ref();
        let execution = status.and_then(|it| it.workflow_execution_ref.as_ref());
        let execution = match execution {
            Some(reference) => self.executions.get_opt(&reference.name).await?,
            None => None,
        };
        let notification = Notification {
            id: request.uid().context("the request has no uid")?,
            remediation_request: request.name_any(),
            phase: request.phase().to_owned(),
            text: text(request, execution.as_ref()),
        };
        let answer = self
            .http
            .post(&self.receiver)
            .json(&notification)
            .send()
            .await?;
        ensure!(
            answer.status().is_success(),
            "the receiver answers {}",
            answer.status()
        );
        tracing::info!(
            request = request.name_any(),
            text = notification.text,
            "notified"
        );
        let now = Timestamp::now().to_string();
        let noted = json!({ "metadata": { "annotations": { NOTIFIED: now } } });
        let (patch, params) = (Patch::Merge(noted), PatchParams::default());
        self.requests
            .patch(&request.name_any(), &params, &patch)
            .await?;
        Ok(())
    }
}

fn text(request: &RemediationRequest, execution: Option<&WorkflowExecution>) -> String {
    let spec = &request.spec;
    let status = request.status.clone().unwrap_or_default();
    let signal = format!(
        "{} was {} at {}",
        spec.target_resource.target(),
        spec.signal_name,
        spec.firing_time
    );
    let workflow = execution.map(|it| {
        let reference = &it.spec.workflow_ref;
        format!(
            "workflow {} {} (engine {})",
            reference.workflow_id, reference.version, it.spec.execution_engine
        )
    });
    match (request.phase(), workflow) {
        ("Completed", Some(workflow)) => format!("{signal} and repaired by {workflow}."),
        ("Completed", None) => format!("{signal}. {}.", status.outcome),
        (_, workflow) => {
            let ran = workflow.map(|it| format!(" by {it}")).unwrap_or_default();
            let details = execution.and_then(|it| it.status.as_ref()?.failure_details.as_ref());
            let why = details.map_or(&status.failure_reason, |it| &it.message);
            let why = why.trim().trim_end_matches('.');
            format!(
                "{signal} and not repaired{ran}: {why}. {}.",
                review(&status.outcome)
            )
        }
    }
}

fn review(outcome: &str) -> &str {
    match outcome {
        "ManualReviewRequired" => "Please look at it",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn request(status: &Value) -> RemediationRequest {
        serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationRequest", "metadata": { "name": "rr" },
            "spec": {
                "signalName": "OOMKilled", "firingTime": "2026-01-01T12:00:00Z",
                "targetResource": { "kind": "Deployment", "name": "web", "namespace": "prod" },
            },
            "status": status,
        }))
        .expect("a request")
    }

    #[test]
    fn text_says_what_happened_and_what_to_do() {
        let execution: WorkflowExecution = serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution", "metadata": { "name": "we-rr" },
            "spec": {
                "executionEngine": "job", "targetResource": "prod/Deployment/web",
                "workflowRef": { "workflowId": "raise", "version": "1.0.0" },
            },
        }))
        .expect("an execution");
        let repaired = request(&json!({ "overallPhase": "Completed", "outcome": "Remediated" }));
        assert_eq!(
            text(&repaired, Some(&execution)),
            "prod/Deployment/web was OOMKilled at 2026-01-01T12:00:00Z and repaired by workflow raise 1.0.0 (engine job)."
        );
        let refused = request(&json!({
            "overallPhase": "Failed", "outcome": "ManualReviewRequired",
            "failureReason": "the catalog does not have it.",
        }));
        assert_eq!(
            text(&refused, None),
            "prod/Deployment/web was OOMKilled at 2026-01-01T12:00:00Z and not repaired: the catalog does not have it. Please look at it."
        );
        let mut failed = execution;
        failed.status = serde_json::from_value(json!({ "failureDetails": {
            "reason": "TaskFailed", "message": "the container ended with exit code 3: no",
            "failedAt": "2026-01-01T12:00:09Z", "naturalLanguageSummary": "long", "wasExecutionFailure": true,
        } }))
        .expect("a status");
        assert_eq!(
            text(&refused, Some(&failed)),
            "prod/Deployment/web was OOMKilled at 2026-01-01T12:00:00Z and not repaired by workflow raise 1.0.0 (engine job): the container ended with exit code 3: no. Please look at it."
        );
    }
}
