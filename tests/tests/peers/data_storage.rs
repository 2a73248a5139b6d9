//! The fake Data Storage accepts and rejects what the real service was observed to.

use jiff::{SignedDuration, Timestamp};
use rstest::rstest;
use serde_json::{Value, json};
use wfe_model::audit::EventType;
use wfe_peers::audit::AuditSink;

use crate::audit_sinks::{DEADLINE, StorageServer};
use crate::events::{event, failed};

/// Sends a batch as it is; returns status and body of the response.
async fn send(server: &StorageServer, token: Option<&str>, body: &Value) -> (u16, String) {
    let ca = std::fs::read(server.path("ca.pem")).expect("read");
    let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
    let client = reqwest::Client::builder().tls_certs_only([ca]).build();
    let url = format!("{}/api/v1/audit/events/batch", server.storage.url());
    let mut request = client.expect("a client").post(url).json(body);
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
