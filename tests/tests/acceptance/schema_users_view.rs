//! The CRD as kubectl shows it: columns, explanations, field selectors.

use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use wfe_model::workflow_execution::WorkflowExecution;

use crate::schema_cases::{job, tekton};
use crate::schema_verdicts::object;
use crate::setup::{cluster, kubectl};

fn columns(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[tokio::test]
async fn kubectl_get_explain_and_field_selectors_work() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("view").await.expect("a namespace");
    let api = namespace.api::<WorkflowExecution>();
    let create = async |name: &str, spec: &Value, status: Value| {
        let mut typed: WorkflowExecution = object(spec).try_parse().expect("typed");
        typed.metadata.name = Some(name.to_owned());
        api.create(&PostParams::default(), &typed)
            .await
            .expect("created");
        api.patch_status(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({ "status": status })),
        )
        .await
        .expect("a status");
    };
    let failed = json!({ "phase": "Failed", "duration": "2m30s", "failureDetails": {
        "reason": "TaskFailed", "message": "exit code 3", "failedAt": "2026-01-01T00:00:00Z",
        "naturalLanguageSummary": "The workflow failed.", "wasExecutionFailure": true } });
    let skipped = json!({ "phase": "Skipped", "skipDetails": {
        "reason": "ResourceBusy", "message": "busy", "skippedAt": "2026-01-01T00:00:00Z" } });
    create(
        "failed",
        &job().with("remediationRequestRef.name", "rr-1").0,
        failed,
    )
    .await;
    create(
        "skipped",
        &tekton().with("targetResource", "Node/worker-1").0,
        skipped,
    )
    .await;

    let list = async |arguments: &[&str]| {
        let (success, text) = kubectl(&[&["-n", namespace.name()], arguments].concat()).await;
        assert!(success, "{arguments:?}: {text}");
        text
    };
    let text = list(&["get", "wfe"]).await;
    let lines: Vec<_> = text.lines().map(columns).collect();
    assert_eq!(
        lines[0],
        [
            "NAME", "PHASE", "ENGINE", "WORKFLOW", "TARGET", "DURATION", "AGE"
        ]
    );
    assert_eq!(
        lines[1][..6],
        [
            "failed",
            "Failed",
            "job",
            "restart-deployment",
            "prod/Deployment/web",
            "2m30s"
        ]
    );
    let text = list(&["get", "wfe", "-o", "wide"]).await;
    assert!(columns(&text).contains(&"REASON"), "{text}");
    assert!(
        text.contains("TaskFailed") && text.contains("ResourceBusy"),
        "{text}"
    );
    let text = list(&["get", "kubernaut", "-o", "name"]).await;
    assert_eq!(text.lines().count(), 2, "the category has both: {text}");

    let text = list(&["explain", "wfe.spec.executionEngine"]).await;
    for words in [
        "FIELD: executionEngine <string>",
        "job\n    tekton",
        "There is no default.",
    ] {
        assert!(text.contains(words), "{words:?} is missing in {text}");
    }

    let text = list(&["explain", "wfe.spec"]).await;
    for field in ["executionEngine", "targetResource", "workflowRef"] {
        let line = text.lines().find(|line| line.contains(field)).expect(field);
        assert!(line.contains("-required-"), "{line}");
    }

    for (selector, name) in [
        ("spec.executionEngine=job", "failed"),
        ("spec.executionEngine=tekton", "skipped"),
        ("spec.targetResource=Node/worker-1", "skipped"),
        ("spec.remediationRequestRef.name=rr-1", "failed"),
        ("status.phase=Skipped", "skipped"),
        ("status.phase!=Skipped,spec.executionEngine=job", "failed"),
    ] {
        let text = list(&[
            "get",
            "workflowexecutions",
            "--field-selector",
            selector,
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ])
        .await;
        assert_eq!(text, name, "{selector}");
    }
}
