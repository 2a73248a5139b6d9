//! The catalog of Data Storage: what it makes of each answer, and how often it asks.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rstest::rstest;
use serde_json::{Value, json};
use wfe_model::engine::Engine;
use wfe_model::rules::Violation;
use wfe_model::workflow::WorkflowStatus;
use wfe_peers::catalog::{Catalog, DataStorageCatalog, LookupError};
use wfe_platform::data_storage::CatalogFault;

use crate::audit_sinks::StorageServer;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Deadline of a lookup, that only a deliberate delay exceeds.
const LOOKUP: Duration = Duration::from_secs(5);

/// A workflow document; `more` is appended.
pub fn document(name: &str, version: &str, more: &str) -> String {
    format!(
        "metadata: {{workflowId: {name}, version: {version}}}\nactionType: Restart\nlabels: {{severity: [critical], environment: ['*'], component: pod, priority: '*'}}\nexecution: {{engine: job, bundle: 'r.io/w@sha256:{HEX}'}}\n{more}"
    )
}

fn catalog(server: &StorageServer, deadline: Duration) -> DataStorageCatalog {
    DataStorageCatalog::new(server.client(), deadline, |_| ())
}

/// Why the catalog cannot be asked.
async fn unavailable(catalog: &DataStorageCatalog, id: &str) -> String {
    match catalog.lookup(id).await {
        Err(LookupError::Unavailable(why)) => why,
        other => panic!("available: {other:?}"),
    }
}

async fn violation(catalog: &DataStorageCatalog, id: &str) -> Violation {
    match catalog.lookup(id).await {
        Err(LookupError::Unusable(violation)) => violation,
        other => panic!("usable: {other:?}"),
    }
}

/// BR-WE-001: what the service says decides, and the rest is read from the document.
#[tokio::test]
async fn lookup_of_registered_workflow_returns_document_and_status_of_service() {
    let server = StorageServer::start().await;
    let parameters = "parameters: [{name: FACTOR, type: float, minimum: 1.5}]\ndependencies: {secrets: [{name: token}]}\n";
    let id = server
        .storage
        .register(&document("restart", "1.0.0", parameters));
    let id = id.expect("registered");
    server
        .storage
        .change_entry(&id, |entry| entry["status"] = json!("deprecated"))
        .expect("changed");
    let workflow = catalog(&server, LOOKUP).lookup(&id).await.expect("found");
    assert_eq!(workflow.workflow_id, id, "its key, not its name");
    assert_eq!(workflow.version, "1.0.0");
    assert_eq!(workflow.engine, Engine::Job);
    assert_eq!(workflow.status, WorkflowStatus::Deprecated);
    assert_eq!(workflow.dependencies.secrets, ["token"]);
    let minimum = &workflow.parameters.schema()["properties"]["FACTOR"]["minimum"];
    assert_eq!(*minimum, json!(1.5));
    let bundle = workflow.bundle.digest().to_string();
    assert_eq!(bundle, format!("sha256:{HEX}"));
}

/// BR-WE-014: an entry that says something else than its document, or cannot be run, is named.
#[rstest]
#[case("executionEngine", json!("ansible"), "execution.engine: unsupported value \"ansible\": supported values are \"job\", \"tekton\"")]
#[case("executionEngine", json!("Job"), "execution.engine: unsupported value \"Job\"")]
#[case("executionEngine", json!("tekton"), "execution.engine: \"job\" in the document, \"tekton\" in the catalog")]
#[case("version", json!("2.0.0"), "version: \"1.0.0\" in the document, \"2.0.0\" in the catalog")]
#[case("executionBundle", json!("r.io/other:v1"), "execution.bundle: ")]
#[case("executionBundleDigest", json!("ff"), "execution.bundleDigest: invalid value \"sha256:ff\"")]
#[case("status", json!("sleeping"), "status: unsupported value \"sleeping\": supported values are \"active\"")]
#[tokio::test]
async fn lookup_of_contradictory_entry_names_the_contradiction(
    #[case] key: &str,
    #[case] value: Value,
    #[case] says: &str,
) {
    let server = StorageServer::start().await;
    let id = server.storage.register(&document("restart", "1.0.0", ""));
    let id = id.expect("registered");
    let change = |entry: &mut Value| entry[key] = value;
    server.storage.change_entry(&id, change).expect("changed");
    let rejected = Arc::new(Mutex::new(Vec::new()));
    let noted = rejected.clone();
    let catalog = DataStorageCatalog::new(server.client(), LOOKUP, move |errors| {
        *noted.lock() = errors.to_vec();
    });
    let text = violation(&catalog, &id).await.to_string();
    assert!(text.contains(says), "{text}");
    assert!(rejected.lock()[0].contains(says), "{rejected:?}");
}

/// BR-WE-014: only Data Storage's own word counts as "not found".
#[tokio::test]
async fn lookup_of_unknown_id_is_not_found_and_of_no_uuid_is_not_asked_for() {
    let server = StorageServer::start().await;
    let catalog = catalog(&server, LOOKUP);
    for id in [
        "restart",
        "",
        "0b6b1b0a-6a3c-4c3a-9d55-6a3c4c3a9d5X",
        "{0b6b1b0a-6a3c-4c3a-9d55-6a3c4c3a9d55}",
    ] {
        let violation = violation(&catalog, id).await;
        assert!(
            matches!(violation, Violation::WorkflowNotFound { .. }),
            "{violation}"
        );
    }
    assert_eq!(server.storage.lookups(), 0);
    let unknown = "0b6b1b0a-6a3c-4c3a-9d55-6a3c4c3a9d55";
    let violation = violation(&catalog, unknown).await;
    assert!(
        matches!(violation, Violation::WorkflowNotFound { .. }),
        "{violation}"
    );
    assert_eq!(server.storage.lookups(), 1);
}

/// BR-WE-014: an answer that is not the workflow leaves it unknown, and says what to do.
#[rstest]
#[case(CatalogFault::Answer(500), "500 Internal Server Error")]
#[case(CatalogFault::Answer(404), "correct --data-storage-url")]
#[case(CatalogFault::Answer(401), "401 Unauthorized")]
#[case(
    CatalogFault::Answer(403),
    "grant the verb create on services/data-storage-service"
)]
#[case(CatalogFault::Body("<html>".to_owned()), "is not the workflow")]
#[case(CatalogFault::Body("{}".to_owned()), "missing field `workflowId`")]
#[case(CatalogFault::Slow(Duration::from_mins(1)), "no response within 1 s")]
#[tokio::test]
async fn lookup_with_useless_answer_is_unavailable(
    #[case] fault: CatalogFault,
    #[case] says: &str,
) {
    let server = StorageServer::start().await;
    let id = server.storage.register(&document("restart", "1.0.0", ""));
    let id = id.expect("registered");
    let twice = fault == CatalogFault::Answer(401);
    server.storage.set_catalog_fault(Some(fault));
    let catalog = catalog(&server, Duration::from_secs(1));
    let why = unavailable(&catalog, &id).await;
    assert!(why.contains(says), "{why}");
    assert_eq!(server.storage.lookups(), if twice { 2 } else { 1 });
    server.storage.set_catalog_fault(None);
    catalog.lookup(&id).await.expect("available again");
}

/// BR-WE-014: content that was changed on the way, or at rest, is not run.
#[rstest]
#[case("content", "contentHash is not that of content")]
#[case("workflowId", "workflowId is another one")]
#[tokio::test]
async fn lookup_of_changed_content_is_unavailable(#[case] key: &str, #[case] says: &str) {
    let server = StorageServer::start().await;
    let text = document("restart", "1.0.0", "");
    let id = server.storage.register(&text).expect("registered");
    let mut entry = server.storage.entry(&id).expect("an entry");
    entry[key] = json!(text + "# changed");
    let fault = CatalogFault::Body(entry.to_string());
    server.storage.set_catalog_fault(Some(fault));
    let why = unavailable(&catalog(&server, LOOKUP), &id).await;
    assert!(why.contains(says), "{why}");
}

/// The newest servers limit each address to 50 requests per second.
#[tokio::test]
async fn lookup_after_429_waits_as_long_as_asked() {
    let server = StorageServer::start().await;
    let id = server.storage.register(&document("restart", "1.0.0", ""));
    let id = id.expect("registered");
    let fault = CatalogFault::TooManyRequests(600);
    server.storage.set_catalog_fault(Some(fault));
    let catalog = catalog(&server, LOOKUP);
    unavailable(&catalog, &id).await;
    server.storage.set_catalog_fault(None);
    let why = unavailable(&catalog, &id).await;
    let says = "429 Too Many Requests and is asked again in 30 s";
    assert!(why.contains(says), "{why}");
    assert_eq!(server.storage.lookups(), 1);
}

/// One request for any number of concurrent lookups, and none while the answer is fresh.
#[tokio::test]
async fn concurrent_lookups_share_one_request() {
    let server = StorageServer::start().await;
    let id = server.storage.register(&document("restart", "1.0.0", ""));
    let id = id.expect("registered");
    let catalog = catalog(&server, LOOKUP);
    let lookups = (0..50).map(|_| catalog.lookup(&id));
    let found = futures::future::join_all(lookups).await;
    assert!(found.iter().all(Result::is_ok));
    catalog.lookup(&id).await.expect("found");
    assert_eq!(server.storage.lookups(), 1);
}

/// A server that is down is not asked for each execution, and its return is noticed within seconds.
#[tokio::test]
async fn server_that_is_down_is_asked_once_a_second_until_it_returns() {
    let server = StorageServer::start().await;
    let id = server.storage.register(&document("restart", "1.0.0", ""));
    let id = id.expect("registered");
    server
        .storage
        .set_catalog_fault(Some(CatalogFault::Answer(503)));
    let catalog = catalog(&server, LOOKUP);
    let began = tokio::time::Instant::now();
    for _ in 0..100 {
        unavailable(&catalog, &id).await;
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).expect("a moment");
    assert!(
        server.storage.lookups() <= 3 + seconds,
        "{}",
        server.storage.lookups()
    );
    let why = unavailable(&catalog, &id).await;
    assert!(
        why.contains("503") && why.contains("asked again within a second"),
        "{why}"
    );
    server.storage.set_catalog_fault(None);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    catalog.lookup(&id).await.expect("found");
}
