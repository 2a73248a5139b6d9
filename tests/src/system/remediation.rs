//! RemediationRequests and AIAnalyses, and the reconcilers for them.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use wfe_model::remediation::{AIAnalysis, RemediationRequest};

use super::install;
use super::script::Script;
use super::state::System;
use crate::cluster::wait;

/// A remediation takes seconds.
const REPORTED_WITHIN: Duration = Duration::from_mins(1);

impl System {
    /// Switches the orchestration on, from the controller's next start on.
    pub async fn enable_orchestration(&mut self) -> Result<()> {
        install::platform(self).await?;
        self.controller_flags
            .push("--enable-orchestration".to_owned());
        Ok(())
    }

    /// Creates a RemediationRequest in the phase Analyzing, for a target in its namespace.
    pub async fn request_remediation(
        &self,
        name: &str,
        target: &str,
    ) -> Result<RemediationRequest> {
        self.request_remediation_in(name, target, "").await
    }

    /// As [`request_remediation`](Self::request_remediation), for a target in this cluster.
    pub async fn request_remediation_in(
        &self,
        name: &str,
        target: &str,
        cluster: &str,
    ) -> Result<RemediationRequest> {
        let namespace = self.namespace.name();
        let request = serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationRequest",
            "metadata": { "name": name },
            "spec": {
                "signalFingerprint": "0".repeat(64), "signalName": "OOMKilled", "severity": "critical",
                "signalType": "alert", "targetType": "kubernetes", "clusterID": cluster,
                "targetResource": { "kind": "Deployment", "name": target, "namespace": namespace },
                "firingTime": "2026-11-28T12:00:00Z", "receivedTime": "2026-11-28T12:00:00Z",
            },
        }))?;
        let api = self.namespace.api::<RemediationRequest>();
        api.create(&PostParams::default(), &request).await?;
        let analyzing = json!({ "overallPhase": "Analyzing" });
        self.set_request_status(name, analyzing).await
    }

    /// Merges fields into the status of a RemediationRequest.
    pub async fn set_request_status(
        &self,
        name: &str,
        status: Value,
    ) -> Result<RemediationRequest> {
        let api = self.namespace.api::<RemediationRequest>();
        let patch = Patch::Merge(json!({ "status": status }));
        Ok(api
            .patch_status(name, &PatchParams::default(), &patch)
            .await?)
    }

    /// Creates the AIAnalysis of a RemediationRequest, without a status.
    pub async fn analyse(&self, request: &str, signal: &str, target: &str) -> Result<AIAnalysis> {
        let namespace = self.namespace.name();
        let analysis = serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "AIAnalysis",
            "metadata": { "name": format!("ai-{request}") },
            "spec": {
                "remediationRequestRef": { "name": request }, "remediationId": request,
                "analysisRequest": { "signalContext": {
                    "fingerprint": "0".repeat(64), "severity": "critical", "signalName": signal,
                    "environment": "production", "businessPriority": "P1",
                    "targetResource": { "kind": "Deployment", "name": target, "namespace": namespace },
                } },
            },
        }))?;
        let api = self.namespace.api::<AIAnalysis>();
        Ok(api.create(&PostParams::default(), &analysis).await?)
    }

    /// Completes the analysis of a RemediationRequest with this status, beside the phase.
    pub async fn complete_analysis(&self, request: &str, mut status: Value) -> Result<()> {
        let fields = status.as_object_mut().context("no status")?;
        fields.insert("phase".to_owned(), json!("Completed"));
        fields.insert("approvalRequired".to_owned(), json!(false));
        fields.insert("needsHumanReview".to_owned(), json!(false));
        let analysis = self.analyse(request, "OOMKilled", "web").await?;
        let api = self.namespace.api::<AIAnalysis>();
        let patch = Patch::Merge(json!({ "status": status }));
        api.patch_status(&analysis.name_any(), &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Waits until a RemediationRequest has this phase, and the condition this reason.
    pub async fn reported(
        &self,
        name: &str,
        phase: &str,
        reason: &str,
    ) -> Result<RemediationRequest> {
        let is = |request: &RemediationRequest| {
            let status = request.status.as_ref();
            let condition = status.and_then(|it| {
                it.conditions
                    .iter()
                    .find(|it| it.type_ == "WorkflowExecutionReady")
            });
            let has_reason = condition.is_some_and(|it| it.reason == reason);
            status.is_some_and(|it| it.overall_phase == phase) && has_reason
        };
        let what = format!("the phase is {phase}, the reason {reason}");
        wait::until(&self.namespace.api(), name, &what, REPORTED_WITHIN, is).await
    }
}

impl Script {
    /// The workflow as an analysis selects it.
    pub fn selection(&self) -> Value {
        json!({
            "workflowId": self.id, "version": "1.0.0", "executionEngine": self.engine.as_str(),
            "confidence": 0.9, "rationale": "it fits", "executionBundle": self.image,
        })
    }
}
