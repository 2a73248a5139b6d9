//! The fake Data Storage accepts and rejects what the real service was observed to.

use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, RequestBuilder};
use rstest::rstest;
use serde_json::{Value, json};
use wfe_model::audit::EventType;
use wfe_peers::audit::AuditSink;

use crate::audit_sinks::{DEADLINE, StorageServer};
use crate::catalogs::document;
use crate::events::{event, failed};

/// A request as it is.
fn request(server: &StorageServer, method: Method, path: &str) -> RequestBuilder {
    let ca = std::fs::read(server.path("ca.pem")).expect("read");
    let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
    let client = reqwest::Client::builder().tls_certs_only([ca]).build();
    let url = format!("{}/api/v1/{path}", server.storage.url());
    client.expect("a client").request(method, url)
}

/// Sends a batch as it is; returns status and body of the response.
async fn send(server: &StorageServer, token: Option<&str>, body: &Value) -> (u16, String) {
    let mut request = request(server, Method::POST, "audit/events/batch").json(body);
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    (status, answer.text().await.expect("text"))
}

const GOOD: Option<&str> = Some("Bearer the token of this hour");

#[rstest]
#[case("/event_type", json!(null), 400)]
#[case("/event_type", json!("x".repeat(101)), 400)]
#[case("/event_category", json!("workflow"), 400)]
#[case("/event_outcome", json!("skipped"), 400)]
#[case("/correlation_id", json!(""), 400)]
#[case("/event_timestamp", json!("2026-11-23T12:00:00"), 400)]
#[case("/event_timestamp", json!((Timestamp::now() - SignedDuration::from_hours(8 * 24)).to_string()), 400)]
#[case("/event_timestamp", json!((Timestamp::now() + SignedDuration::from_mins(61)).to_string()), 400)]
#[case("/event_data/execution_engine", json!(null), 400)]
#[case("/event_data/execution_engine", json!("Job"), 400)]
#[case("/event_data/phase", json!("Succeeded"), 400)]
#[case("/event_data/failure_reason", json!(""), 400)]
#[case("/event_data/failure_reason", json!("Cancelled"), 400)]
#[case("/event_data/started_at", json!(null), 400)]
#[case("/event_data/parameters", json!({ "a": 1 }), 400)]
#[case("/event_data/error_details", json!({ "code": "x" }), 400)]
#[case("/actor_id", json!("x".repeat(256)), 500)]
#[case("/namespace", json!("x".repeat(254)), 500)]
#[case("/resource_type", json!("x".repeat(101)), 500)]
#[case("/event_data/failure_message", json!("a\0b"), 500)]
#[tokio::test]
async fn event_rejected_by_data_storage_is_rejected_by_fake(
    #[case] pointer: &str,
    #[case] value: Value,
    #[case] status: u16,
) {
    let server = StorageServer::start().await;
    let events = [
        event("one", EventType::WorkflowStarted),
        event("two", EventType::WorkflowFailed),
    ];
    let mut batch = json!(events);
    *batch[1].pointer_mut(pointer).expect("an event field") = value;
    let answer = send(&server, GOOD, &batch).await;
    assert_eq!(answer.0, status, "{}", answer.1);
    assert!(
        server.storage.events().expect("read").is_empty(),
        "a batch is stored as a whole"
    );
}

#[tokio::test]
async fn request_is_checked_for_content_then_token_before_storing() {
    let server = StorageServer::start().await;
    assert_eq!(send(&server, None, &json!([])).await.0, 400);
    assert_eq!(send(&server, None, &json!({})).await.0, 400);
    let batch = json!(failed("one"));
    for token in [
        None,
        Some("Bearer x"),
        Some("bearer the token of this hour"),
        Some("Bearer "),
    ] {
        assert_eq!(send(&server, token, &batch).await.0, 401, "{token:?}");
    }
    assert!(server.storage.events().expect("read").is_empty());
    assert_eq!(send(&server, GOOD, &batch).await.0, 201);
    assert_eq!(send(&server, GOOD, &batch).await.0, 201);
    assert_eq!(
        server.storage.events().expect("read").len(),
        8,
        "no idempotency"
    );
}

#[tokio::test]
async fn unknown_event_data_keys_are_dropped_and_engine_by_older_server() {
    let server = StorageServer::start().await;
    let sink = server.sink(DEADLINE);
    sink.record(&[event("one", EventType::WorkflowStarted)])
        .await
        .expect("recorded");
    server.storage.keep_engine();
    sink.record(&[event("two", EventType::WorkflowStarted)])
        .await
        .expect("recorded");
    let mut stored = server.storage.events().expect("read");
    stored.sort_by(|a, b| a.resource_id.cmp(&b.resource_id));
    let data: Vec<_> = stored.iter().map(|it| &it.event_data).collect();
    for data in &data {
        assert!(
            !data.contains_key("event_id") && !data.contains_key("workflow_name"),
            "{data:?}"
        );
        assert_eq!(
            data["parameters"]["KUBERNAUT_EXECUTION_ENGINE"],
            json!("job")
        );
    }
    assert_eq!(data[0].get("execution_engine"), None);
    assert_eq!(data[1].get("execution_engine"), Some(&json!("job")));
}

/// Sends a catalog request with a good token; returns status and body of the response.
async fn ask(server: &StorageServer, method: Method, path: &str, body: Value) -> (u16, Value) {
    let request = request(server, method, path).bearer_auth("the token of this hour");
    let request = if body.is_null() {
        request
    } else {
        request.json(&body)
    };
    let response = request.send().await.expect("a response");
    let status = response.status().as_u16();
    (status, response.json().await.expect("JSON"))
}

/// TR-6: registration, discovery and the change of a status, each as openapi.yaml says.
#[tokio::test]
async fn catalog_registered_workflow_is_offered_until_disabled_or_replaced() {
    let server = StorageServer::start().await;
    let register = async |version: &str| {
        let body = json!({ "content": document("restart", version, "") });
        ask(&server, Method::POST, "workflows", body).await
    };
    let get = async |path: &str| ask(&server, Method::GET, path, json!(null)).await;
    let (status, first) = register("1.0.0").await;
    assert_eq!(
        (status, &first["isLatestVersion"]),
        (201, &json!(true)),
        "{first}"
    );
    assert_eq!(register("1.0.0").await.0, 409, "this version exists");
    let engine = document("restart", "2.0.0", "").replace("engine: job", "engine: ansible");
    let body = json!({ "content": engine });
    let (status, problem) = ask(&server, Method::POST, "workflows", body).await;
    assert_eq!(status, 400, "{problem}");
    assert_eq!(
        ask(&server, Method::POST, "workflows", json!({})).await.0,
        400
    );

    let (status, problem) = get("workflows/actions?severity=critical").await;
    let missing = "missing required parameters: component, environment, priority";
    assert_eq!((status, &problem["detail"]), (400, &json!(missing)));
    let context = "severity=critical&component=pod&environment=production&priority=P1";
    let (_, actions) = get(&format!("workflows/actions?{context}")).await;
    assert_eq!(actions["actionTypes"][0]["actionType"], "Restart");
    let offered = async || {
        let (_, found) = get(&format!("workflows/actions/Restart?{context}")).await;
        let found = found["workflows"].as_array().expect("a list").clone();
        found
            .iter()
            .map(|it| it["version"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(offered().await, [json!("1.0.0")]);
    let (_, none) = get(&format!(
        "workflows/actions/Restart?{}",
        context.replace("pod", "node")
    ))
    .await;
    assert_eq!(none["workflows"], json!([]));

    let (_, second) = register("2.0.0").await;
    assert_eq!(offered().await, [json!("2.0.0")], "the latest");
    let (_, first) = get(&format!(
        "workflows/{}",
        first["workflowId"].as_str().expect("an id")
    ))
    .await;
    assert_eq!(first["status"], "active", "older versions stay active");
    assert_eq!(first["isLatestVersion"], false);
    let second = second["workflowId"].as_str().expect("an id");
    for (verb, status, count) in [
        ("disable", "disabled", 0),
        ("enable", "active", 1),
        ("deprecate", "deprecated", 0),
    ] {
        let path = format!("workflows/{second}/{verb}");
        let (code, entry) = ask(&server, Method::PATCH, &path, json!({ "reason": "a test" })).await;
        assert_eq!((code, &entry["status"]), (200, &json!(status)));
        assert_eq!(offered().await.len(), count, "{status}");
    }
    let (_, all) = get("workflows").await;
    assert_eq!(all["workflows"].as_array().map(Vec::len), Some(2));
}
