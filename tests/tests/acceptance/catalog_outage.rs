//! BR-WE-001: Data Storage is the catalog and the audit sink, and does not answer as it should.

use std::time::Duration;

use serde_json::json;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_platform::data_storage::CatalogFault;
use wfe_tests::system::{CatalogSource, Script, System, condition, message};
use wfe_tests::wait;

use crate::setup::{cluster, kubectl};

/// The controller asks again after as long as it has failed, at least 5 s.
const RECOVERED_WITHIN: Duration = Duration::from_mins(1);

/// Nothing runs while the workflow is unknown, the operator is told why, and all of it ends by itself:
/// the workflow runs, and the audit trail is complete.
#[tokio::test]
async fn outage_of_data_storage_delays_and_loses_nothing() {
    let cluster = cluster().await;
    let installed =
        System::install_with_catalog(&cluster, "outage", CatalogSource::DataStorage).await;
    let mut system = installed.expect("installed");
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let namespace = system.namespace.name();
    let cases = [
        (
            "fails",
            Some(CatalogFault::Answer(500)),
            "500 Internal Server Error",
        ),
        (
            "refuses",
            Some(CatalogFault::Answer(401)),
            "401 Unauthorized",
        ),
        (
            "forbids",
            Some(CatalogFault::Answer(403)),
            "grant the verb create on services/data-storage-service",
        ),
        (
            "limits",
            Some(CatalogFault::TooManyRequests(2)),
            "429 Too Many Requests",
        ),
        (
            "babbles",
            Some(CatalogFault::Body("<html>".to_owned())),
            "is not the workflow",
        ),
        (
            "sleeps",
            Some(CatalogFault::Slow(Duration::from_mins(5))),
            "no response within 10 s",
        ),
        (
            "wrong-url",
            Some(CatalogFault::Answer(404)),
            "correct --data-storage-url",
        ),
        ("is-down", None, "Connection refused"),
    ];
    for (name, fault, says) in cases {
        let workflow = Script::push(&cluster, "quick", "true", "");
        // Each case has a workflow of its own: no answer about it is known.
        let mut document = workflow.document("1.0.0");
        document["metadata"]["workflowId"] = json!(name);
        let storage = system.storage().expect("Data Storage");
        let id = storage.register(&document.to_string()).expect("registered");
        match &fault {
            Some(fault) => storage.set_catalog_fault(Some(fault.clone())),
            None => storage.stop().await,
        }
        let mut request = workflow.request(name, &json!({}));
        request.spec.workflow_ref.workflow_id = id;
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = serde_json::to_string(&request).expect("JSON");
        std::fs::write(file.path(), text).expect("written");
        let path = file.path().to_string_lossy();
        let (admitted, text) = kubectl(&["-n", namespace, "create", "-f", &path]).await;
        assert!(admitted, "{name}: {text}");
        let warning = "Warning: the workflow catalog is unavailable";
        assert!(text.contains(warning), "{name}: {text}");

        let unknown = system
            .until(name, "WorkflowResolved", "Unknown/CatalogUnavailable")
            .await;
        let unknown = unknown.expect("unknown");
        let told = message(&unknown, "WorkflowResolved");
        assert!(told.contains(says), "{name}: {told}");
        let described = kubectl(&["-n", namespace, "describe", "wfe", name]).await.1;
        // It is wrapped, but not within words.
        let last = says.split(' ').next_back().unwrap_or(says);
        assert!(described.contains(last), "{name}: {described}");
        assert!(
            system.live_pods().await.expect("listed").is_empty(),
            "{name}"
        );

        let storage = system.storage().expect("Data Storage");
        match fault {
            Some(_) => storage.set_catalog_fault(None),
            None => storage.resume().await.expect("resumed"),
        }
        let delivered =
            |it: &WorkflowExecution| condition(it, "AuditRecorded") == "True/AuditSucceeded";
        let api = system.namespace.api();
        let what = "the audit trail is delivered";
        let ended = wait::until(&api, name, what, RECOVERED_WITHIN, delivered).await;
        let status = ended.expect("ended").status.expect("a status");
        assert_eq!(status.phase, Some(Phase::Succeeded), "{name}");
        let trails = storage.trails().expect("read");
        assert_eq!(trails[name].len(), 4, "{name}: {:?}", trails[name]);
    }
}

/// Whether its events are not held back until the workflow starts, or may not be: times are whole seconds.
fn starts_slowly(wfe: &WorkflowExecution) -> bool {
    let status = wfe.status.as_ref().expect("a status");
    let created = status.start_time.as_ref().expect("a start").0;
    let mut conditions = status.conditions.iter();
    let running = conditions.find(|it| it.type_ == "ExecutionRunning");
    let running = running.expect("it has run").last_transition_time.0;
    running.duration_since(created).as_secs() >= 9
}

/// Each execution takes at most one lookup, none while the answer is fresh, and two batches of audit
/// events, or three if its workflow takes long to start.
#[tokio::test]
async fn execution_asks_data_storage_once_and_reports_its_transitions() {
    const EXECUTIONS: usize = 4;
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "quick", "true", "");
    let installed =
        System::install_with_catalog(&cluster, "requests", CatalogSource::DataStorage).await;
    let mut system = installed.expect("installed");
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let storage = system.storage().expect("Data Storage");
    let document = workflow.document("1.0.0").to_string();
    let id = storage.register(&document).expect("registered");
    let before = storage.lookups();
    let names = (0..EXECUTIONS).map(|number| format!("run-{number}"));
    let names: Vec<_> = names.collect();
    let reference = json!({ "workflowRef": { "workflowId": id, "version": "1.0.0", "containerImage": workflow.image } });
    for name in &names {
        system
            .create(&workflow, name, &reference)
            .await
            .expect("admitted");
    }
    let mut most = 0;
    for name in &names {
        let delivered = system.until(name, "AuditRecorded", "True/AuditSucceeded");
        let delivered = delivered.await.expect("delivered");
        most += if starts_slowly(&delivered) { 3 } else { 2 };
    }
    let lookups = storage.lookups() - before;
    assert!(lookups <= EXECUTIONS, "{lookups} lookups");
    let (batches, queries) = storage.requests();
    assert!(batches <= most, "{batches} batches");
    assert_eq!(queries, 0);
}
