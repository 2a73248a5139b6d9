//! Removes fields that no code reads: for ten thousand objects they are most of the memory.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};

use wfe_core::audit;
use wfe_core::condition::ConditionType;
use wfe_core::names::PAUSED;

/// Those that the controller reads: a cancellation, and that an audit trail is given up.
const OUR_ANNOTATIONS: &str = "kubernaut.ai/";

/// Keeps of the metadata, which can be a MiB, what is read; and of an ended WorkflowExecution only what is
/// still read of it. Its audit events are made of the rest: it stays until they are delivered, and after
/// a failure until the block is cleared.
pub(super) fn workflow_execution(wfe: &mut WorkflowExecution) {
    let metadata = &mut wfe.metadata;
    metadata.managed_fields = None;
    metadata.labels = None;
    metadata.owner_references = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| name.starts_with(OUR_ANNOTATIONS));
    }
    let settled = |kind| audit::is_settled(wfe, kind);
    let is_over = match wfe.phase() {
        Some(Phase::Succeeded | Phase::Skipped) => settled(ConditionType::AuditRecorded),
        Some(Phase::Failed) => {
            settled(ConditionType::AuditRecorded) && settled(ConditionType::ClearanceRecorded)
        }
        Some(Phase::Pending | Phase::Running) | None => false,
    };
    if is_over {
        wfe.metadata.annotations = None;
        wfe.spec.parameters = BTreeMap::new();
        wfe.spec.rationale = None;
    }
}

/// Keeps the name, the deletion timestamp and the pause annotation.
pub(super) fn namespace(namespace: &mut PartialObjectMeta<Namespace>) {
    let metadata = &mut namespace.metadata;
    metadata.managed_fields = None;
    metadata.labels = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| name == PAUSED);
    }
}

pub(super) fn lease(lease: &mut Lease) {
    lease.metadata.managed_fields = None;
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;
    use serde_json::{Value, json};

    use super::*;

    fn pruned(phase: &str, conditions: &[&str]) -> WorkflowExecution {
        let condition = |kind: &&str| {
            let recorded = json!({ "type": kind, "status": "True", "reason": "AuditSucceeded", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
            recorded
        };
        let conditions: Vec<Value> = conditions.iter().map(condition).collect();
        let mut wfe: WorkflowExecution = serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
            "metadata": { "name": "a", "annotations": { "a": "1", "kubernaut.ai/cancel": "stop" }, "labels": { "b": "2" }, "finalizers": ["f"] },
            "spec": {
                "executionEngine": "job", "targetResource": "prod/Deployment/web", "workflowRef": {},
                "parameters": { "LIMIT": "1" }, "rationale": "because",
            },
            "status": { "phase": phase, "conditions": conditions },
        }))
        .expect("a WorkflowExecution");
        workflow_execution(&mut wfe);
        wfe
    }

    /// BR-AUDIT-005: audit events are made of the whole object.
    #[test]
    fn ended_execution_is_pruned_when_its_trail_is_delivered() {
        let whole = |wfe: &WorkflowExecution| {
            let parts = [
                wfe.metadata.annotations.is_some(),
                !wfe.spec.parameters.is_empty(),
                wfe.spec.rationale.is_some(),
            ];
            assert!(parts.iter().all(|it| *it == parts[0]), "{wfe:?}");
            assert!(wfe.metadata.finalizers.is_some() && wfe.metadata.labels.is_none());
            assert!(!wfe.annotations().contains_key("a"));
            parts[0]
        };
        for (phase, conditions, is_whole) in [
            ("Running", &["AuditRecorded"][..], true),
            ("Succeeded", &[], true),
            ("Succeeded", &["AuditRecorded"], false),
            ("Skipped", &["AuditRecorded"], false),
            ("Failed", &["AuditRecorded"], true),
            ("Failed", &["ClearanceRecorded"], true),
            ("Failed", &["AuditRecorded", "ClearanceRecorded"], false),
        ] {
            assert_eq!(whole(&pruned(phase, conditions)), is_whole, "{phase}");
        }
    }
}
