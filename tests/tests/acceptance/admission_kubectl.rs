//! Denials and warnings as kubectl prints them.

use serde_json::json;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{Script, System, condition};

use crate::setup::{cluster, kubectl};

/// BR-WE-001
#[tokio::test]
async fn invalid_request_is_denied_with_its_name() {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "denied", "true", "");
    let system = System::start(&cluster, "denied", &[&quick])
        .await
        .expect("started");
    let mut request = quick.request("misspelt", &json!({}));
    request.metadata.namespace = Some(system.namespace.name().to_owned());
    request
        .spec
        .parameters
        .insert("SIZE".to_owned(), "3".to_owned());
    let file = tempfile::NamedTempFile::with_suffix(".json").expect("a file");
    std::fs::write(file.path(), serde_json::to_string(&request).expect("JSON")).expect("written");
    let path = file.path().to_str().expect("a path");
    let (success, text) = kubectl(&["create", "-f", path]).await;
    let says = "The WorkflowExecution \"misspelt\" is invalid: spec.parameters";
    assert!(!success && text.contains(says), "{text}");
}

/// BR-WE-013: deletion and clearance work in either order.
#[tokio::test]
async fn deletion_of_blocking_execution_warns_with_command() {
    let cluster = cluster().await;
    let fails = Script::push(&cluster, "warns", "exit 1", "");
    let system = System::start(&cluster, "warns", &[&fails])
        .await
        .expect("started");
    let namespace = system.namespace.name();
    for name in ["deleted-first", "cleared-first"] {
        system
            .create(&fails, name, &json!({}))
            .await
            .expect("admitted");
        let failed = system.ended(name).await.expect("ended");
        let status = failed.status.as_ref().expect("a status");
        let details = status.failure_details.as_ref().expect("details");
        let command = format!("kubectl -n {namespace} patch workflowexecution {name} ");
        let summary = &details.natural_language_summary;
        assert!(summary.contains(&command), "{summary}");
    }
    let delete = async |name: &str| {
        let arguments = ["-n", namespace, "delete", "wfe", name, "--wait=false"];
        let (success, text) = kubectl(&arguments).await;
        assert!(success, "{text}");
        text
    };
    let text = delete("deleted-first").await;
    let command = format!("Warning: kubectl -n {namespace} patch workflowexecution deleted-first ");
    assert!(
        text.contains("stays until the block of its target is cleared"),
        "{text}"
    );
    assert!(text.contains(&command), "{text}");
    system.clear("deleted-first").await.expect("cleared");
    system.gone("deleted-first").await.expect("gone");

    system.clear("cleared-first").await.expect("cleared");
    let recorded = system.until("cleared-first", "ClearanceRecorded", "True/AuditSucceeded");
    let wfe: WorkflowExecution = recorded.await.expect("recorded");
    assert_eq!(condition(&wfe, "Stalled"), "True/TaskFailed");
    let jobs = system.jobs().await.expect("listed");
    assert!(
        !jobs.is_empty(),
        "the log is kept for some time after the clearance"
    );
    let text = delete("cleared-first").await;
    assert!(!text.contains("Warning"), "{text}");
    system.gone("cleared-first").await.expect("gone");
}
