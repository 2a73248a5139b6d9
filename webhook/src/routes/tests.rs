//! Reviews through the HTTP routes, with an in-process API server and catalog.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::to_bytes;
use axum::http;
use axum::http::Method;
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use json_patch::Patch;
use kube::Client;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use wfe_model::rules::{self, Violation};
use wfe_model::workflow::Workflow;
use wfe_peers::catalog::{Catalog, Lookup, LookupError};
use wfe_peers::discovery::ServedKinds;

use super::*;
use crate::args::{ImageDigest, OnOutage};
use crate::lookups::Lookups;
use crate::scope::Scope;
use crate::targets::Targets;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A catalog with the workflow `restart`; other ids make the lookup fail, panic or never return.
struct FakeCatalog;

impl Catalog for FakeCatalog {
    fn lookup_now<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup> {
        self.lookup(workflow_id)
    }

    fn lookup<'a>(&'a self, workflow_id: &'a str) -> BoxFuture<'a, Lookup> {
        Box::pin(async move {
            match workflow_id {
                "restart" => Ok(restart()),
                "unavailable" => Err(LookupError::Unavailable("connection refused".to_owned())),
                "panics" => panic!("lookup panicked"),
                "never returns" => std::future::pending().await,
                _ => {
                    let workflow_id = workflow_id.to_owned();
                    let violation = Violation::WorkflowNotFound { workflow_id };
                    Err(LookupError::Unusable(violation))
                }
            }
        })
    }
}

fn restart() -> Arc<Workflow> {
    let yaml = format!(
        "metadata: {{workflowId: restart, version: 1.0.0}}
execution: {{engine: job, bundle: 'r.io/w/restart:v1@sha256:{HEX}'}}
dependencies: {{secrets: [{{name: token}}], configMaps: [{{name: settings}}]}}
parameters: [{{name: REPLICAS, type: integer}}]
"
    );
    let read = Workflow::read("restart.yaml", &yaml).expect("a valid entry");
    Arc::new(read.workflow)
}

/// An API server with objects in the execution namespace; counts the reads of Secrets.
#[derive(Clone, Default)]
struct FakeApiServer {
    /// Names of Secrets that do not exist.
    missing_secrets: Arc<parking_lot::Mutex<Vec<&'static str>>>,
    secrets_read: Arc<AtomicUsize>,
}

impl FakeApiServer {
    fn answer(&self, path: &str) -> (u16, Value) {
        let kind = |group: &str, kind: &str, scope: &str| {
            json!({ "metadata": { "name": group }, "versions": [{ "version": "v1", "freshness": "Current", "resources": [{
                "resource": format!("{}s", kind.to_lowercase()), "singularResource": kind.to_lowercase(), "scope": scope, "verbs": ["get"],
                "responseKind": { "kind": kind },
            }] }] })
        };
        let found = json!({ "metadata": { "name": "x", "labels": { "kubernaut.ai/workflow-runner": "true" } }, "data": { "a": "YQ==" } });
        let missing = (
            404,
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound" }),
        );
        let (folder, name) = path.rsplit_once('/').expect("a path");
        match (folder, name) {
            ("", "api") => (200, json!({ "items": [kind("", "Node", "Cluster")] })),
            ("", "apis") => (
                200,
                json!({ "items": [kind("apps", "Deployment", "Namespaced"), kind("batch", "Job", "Namespaced")] }),
            ),
            (_, "serviceaccounts") => {
                let account = json!({ "metadata": { "name": "watched", "namespace": "run", "resourceVersion": "1" } });
                let list = json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": "1" }, "items": [account] });
                (200, list)
            }
            // Delivered by the watch: a review that reads it anyway fails.
            (folder, "watched") if folder.ends_with("/serviceaccounts") => (500, json!({})),
            (folder, name) if folder.ends_with("/secrets") => {
                self.secrets_read.fetch_add(1, Ordering::Relaxed);
                let is_missing = self.missing_secrets.lock().contains(&name);
                if is_missing { missing } else { (200, found) }
            }
            (folder, "stranger") if folder.ends_with("/serviceaccounts") => missing,
            (folder, "absent") if folder.ends_with("/deployments") => missing,
            // Without the permission nothing is said.
            (folder, "hidden") if folder.ends_with("/deployments") => (
                403,
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden" }),
            ),
            _ => (200, found),
        }
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let watches = request
                .uri()
                .query()
                .is_some_and(|it| it.contains("watch=true"));
            let (code, body) = server.answer(request.uri().path());
            async move {
                if watches {
                    std::future::pending::<()>().await;
                }
                // Lets concurrent reviews join this read.
                tokio::task::yield_now().await;
                let body = kube::client::Body::from(body.to_string().into_bytes());
                Ok::<_, Infallible>(
                    http::Response::builder()
                        .status(code)
                        .body(body)
                        .expect("a response"),
                )
            }
        });
        Client::new(service, "run")
    }

    /// Routes with these values of the flags.
    fn routes(&self, image_digest: ImageDigest, on_outage: OnOutage) -> Router {
        let client = self.client();
        let scope = Scope::of(vec!["prod".to_owned()]);
        let mutator = Mutator {
            catalog: Arc::new(FakeCatalog),
            image_digest,
            scope: scope.clone(),
        };
        let kinds = ServedKinds::new(&client);
        let validator = Validator {
            catalog: Arc::new(FakeCatalog),
            targets: Targets::new(kinds.clone()),
            kinds,
            lookups: Lookups::start(&client, "run", CancellationToken::new()),
            default_service_account: "runner".to_owned(),
            on_outage,
            scope,
        };
        ReviewService::new(mutator, validator, Metrics::new(&mut Registry::default())).routes()
    }
}

fn default_routes() -> Router {
    FakeApiServer::default().routes(ImageDigest::Require, OnOutage::Allow)
}

fn valid_execution() -> Value {
    json!({ "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution", "metadata": { "name": "a", "namespace": "prod" }, "spec": {
        "executionEngine": "job",
        "workflowRef": { "workflowId": "restart", "version": "1.0.0", "containerImage": format!("r.io/w/restart:v1@sha256:{HEX}") },
        "targetResource": "prod/Deployment/web",
        "parameters": { "REPLICAS": "3" },
    } })
}

fn review(object: &Value) -> Value {
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u1", "operation": "CREATE", "namespace": "prod", "name": "a", "dryRun": true,
        "resource": { "group": "kubernaut.ai", "version": "v1alpha1", "resource": "workflowexecutions" },
        "userInfo": { "username": "ann" }, "object": object, "oldObject": null,
    } })
}

fn with_field(pointer: &str, value: Value) -> Value {
    let mut object = valid_execution();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect("a parent");
    parent[key] = value;
    object
}

async fn post(routes: &Router, path: &str, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
    let request = http::Request::builder().method(Method::POST).uri(path);
    let request = request.body(body.into()).expect("a request");
    let answer = routes.clone().oneshot(request).await.expect("an answer");
    let status = answer.status();
    let body = to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
    (status, body.to_vec())
}

async fn send_review(routes: &Router, path: &str, object: &Value) -> Value {
    let (status, body) = post(routes, path, review(object).to_string()).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(answer["response"]["uid"], "u1");
    answer["response"].clone()
}

const MUTATE: &str = "/mutate-workflowexecution";
const VALIDATE: &str = "/validate-workflowexecution";

fn patched(object: &Value, response: &Value) -> Value {
    use base64::Engine as _;
    let patch = response["patch"].as_str().expect("a patch");
    let patch = base64::engine::general_purpose::STANDARD
        .decode(patch)
        .expect("base64");
    let patch: Patch = serde_json::from_slice(&patch).expect("a patch");
    let mut object = object.clone();
    json_patch::patch(&mut object, &patch).expect("the patch applies");
    object
}

/// The spec of an object with its requester.
fn stamped(object: &Value) -> Value {
    let mut spec = object["spec"].clone();
    spec["requestedBy"] = json!({ "username": "ann" });
    spec
}

fn message(response: &Value) -> &str {
    response["status"]["message"].as_str().unwrap_or_default()
}

/// BR-WE-001
#[rstest]
#[case::absent(Value::Null)]
#[case::empty(json!([]))]
#[case::others(json!(["other"]))]
#[tokio::test]
async fn mutate_valid_object_gets_finalizer_and_requester_only_once(#[case] present: Value) {
    let routes = default_routes();
    let mut object = valid_execution();
    if !present.is_null() {
        object["metadata"]["finalizers"] = present;
    }
    let patched = patched(&object, &send_review(&routes, MUTATE, &object).await);
    let finalizers = patched["metadata"]["finalizers"]
        .as_array()
        .expect("a list");
    assert_eq!(
        finalizers
            .iter()
            .filter(|it| *it == wfe_model::FINALIZER)
            .count(),
        1
    );
    assert_eq!(patched["spec"], stamped(&object));
    let allowed = json!({ "uid": "u1", "allowed": true });
    assert_eq!(
        send_review(&routes, MUTATE, &patched).await,
        allowed,
        "the reinvocation changes nothing"
    );
    assert_eq!(send_review(&routes, VALIDATE, &patched).await, allowed);
}

/// BR-WE-001
#[rstest]
#[case("/spec/executionEngine", json!("ansible"), "spec.executionEngine: unsupported value \"ansible\": supported values are \"job\", \"tekton\"")]
#[case("/spec/executionEngine", json!([]), "spec.executionEngine: invalid type: sequence, expected a string")]
#[case("/spec", Value::Null, "spec: invalid type: null, expected an object")]
#[case("/metadata/finalizers", json!(1), "metadata.finalizers: invalid type: integer `1`, expected a sequence")]
#[case("/spec/workflowRef/containerImage", json!("r.io/w/restart:v1"), "must be registry/repository[:tag]@sha256:<64 lower-case hex digits>")]
#[tokio::test]
async fn static_violation_is_denied_alike_by_mutate_and_validate(
    #[case] pointer: &str,
    #[case] value: Value,
    #[case] expected: &str,
) {
    let routes = default_routes();
    for path in [MUTATE, VALIDATE] {
        let response = send_review(&routes, path, &with_field(pointer, value.clone())).await;
        assert_eq!(response["allowed"], false);
        assert_eq!(response["status"]["code"], 422);
        assert!(message(&response).contains(expected), "{path}: {response}");
    }
}

/// BR-WE-001
#[tokio::test]
async fn mutate_static_violation_lists_catalog_violations_too() {
    let mut object = with_field("/spec/targetResource", json!("web"));
    object["spec"]["workflowRef"]["version"] = json!("2.0.0");
    object["spec"]["parameters"]["REPLICAS"] = json!("many");
    let response = send_review(&default_routes(), MUTATE, &object).await;
    for expected in [
        "spec.targetResource: invalid value \"web\"",
        "must be \"1.0.0\"",
        "\"many\": must be of type integer",
    ] {
        assert!(message(&response).contains(expected), "{response}");
    }
}

/// BR-WE-001
#[tokio::test]
async fn validate_several_failed_lookups_are_denied_together() {
    let server = FakeApiServer::default();
    server.missing_secrets.lock().push("token");
    let routes = server.routes(ImageDigest::Require, OnOutage::Allow);
    let mut object = with_field("/spec/targetResource", json!("prod/Gadget/web"));
    object["spec"]["executionConfig"] = json!({ "serviceAccountName": "stranger" });
    object["spec"]["parameters"]["REPLICAS"] = json!("many");
    let response = send_review(&routes, VALIDATE, &object).await;
    for expected in [
        "spec.parameters[REPLICAS]: invalid value \"many\": must be of type integer",
        "spec.targetResource: invalid value \"prod/Gadget/web\": kind \"Gadget\" not found in this cluster",
        "spec.executionConfig.serviceAccountName: ServiceAccount \"stranger\" not found in namespace run",
        "spec.workflowRef.workflowId: required Secret \"token\" not found in namespace run: create it",
    ] {
        assert!(message(&response).contains(expected), "{response}");
    }
    let causes = response["status"]["details"]["causes"]
        .as_array()
        .expect("causes");
    assert_eq!(causes.len(), 4);
}

/// BR-WE-001
#[rstest]
#[case("/spec/workflowRef/workflowId", json!("nowhere"), 422, "workflow \"nowhere\" not found in the catalog")]
#[case("/spec/executionConfig", json!({ "serviceAccountName": "stranger" }), 403, "create it with the label")]
#[tokio::test]
async fn validate_policy_is_403_and_invalid_object_is_422(
    #[case] pointer: &str,
    #[case] value: Value,
    #[case] code: u16,
    #[case] expected: &str,
) {
    let response = send_review(&default_routes(), VALIDATE, &with_field(pointer, value)).await;
    assert_eq!(response["status"]["code"], code);
    assert!(message(&response).contains(expected), "{response}");
}

/// BR-WE-001
#[tokio::test]
async fn unwatched_namespace_is_denied_and_gets_no_finalizer() {
    let mut review = review(&valid_execution());
    review["request"]["namespace"] = json!("dev");
    for path in [MUTATE, VALIDATE] {
        let (_, body) = post(&default_routes(), path, review.to_string()).await;
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        let response = &answer["response"];
        assert_eq!(response["status"]["code"], 403);
        let expected = "unsupported value \"dev\": no controller watches this namespace; supported values are \"prod\"";
        assert!(message(response).contains(expected), "{response}");
        assert!(response.get("patch").is_none());
    }
}

/// BR-WE-001
#[tokio::test]
async fn validate_watched_service_account_is_not_read() {
    let routes = default_routes();
    let mut object = valid_execution();
    object["spec"]["executionConfig"] = json!({ "serviceAccountName": "watched" });
    let until_watched = async {
        loop {
            let response = send_review(&routes, VALIDATE, &object).await;
            assert_eq!(response["allowed"], true);
            if response.get("warnings").is_none() {
                break;
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), until_watched).await;
    waited.expect("the watch delivers its list");
}

/// BR-WE-002
#[tokio::test]
async fn validate_engine_not_installed_is_denied() {
    let mut object = with_field("/spec/executionEngine", json!("tekton"));
    object["spec"]["workflowRef"] =
        json!({ "workflowId": "restart", "version": "1.0.0", "bundleRef": "oci://r.io/w/restart" });
    let response = send_review(&default_routes(), VALIDATE, &object).await;
    let expected = "spec.executionEngine: executionEngine tekton is not installed: the cluster does not serve PipelineRun of tekton.dev/v1";
    assert!(message(&response).contains(expected), "{response}");
}

/// BR-WE-009: a target that does not exist yet is no reason for a denial.
#[tokio::test]
async fn target_that_does_not_exist_is_warned_about() {
    let warns = "spec.targetResource: prod/Deployment/absent does not exist now";
    for (target, warnings) in [
        ("prod/Deployment/absent", json!([warns])),
        ("prod/Deployment/hidden", json!(null)),
        ("prod/Deployment/web", json!(null)),
    ] {
        let object = with_field("/spec/targetResource", json!(target));
        let response = send_review(&default_routes(), VALIDATE, &object).await;
        assert_eq!(response["allowed"], true, "{response}");
        assert_eq!(response["warnings"], warnings, "{target}");
    }
}

/// BR-WE-014
#[tokio::test]
async fn fill_image_without_digest_gets_the_catalog_digest() {
    let routes = FakeApiServer::default().routes(ImageDigest::Fill, OnOutage::Allow);
    let object = with_field(
        "/spec/workflowRef/containerImage",
        json!("r.io/w/restart:v1"),
    );
    let response = send_review(&routes, MUTATE, &object).await;
    let pinned = format!("r.io/w/restart:v1@sha256:{HEX}");
    let warning = response["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains(&format!(
        "sha256:{HEX} was filled in from the workflow catalog"
    )));
    let patched = patched(&object, &response);
    assert_eq!(patched["spec"]["workflowRef"]["containerImage"], pinned);
    assert_eq!(
        send_review(&routes, MUTATE, &patched).await,
        json!({ "uid": "u1", "allowed": true })
    );
    assert_eq!(
        send_review(&routes, VALIDATE, &patched).await["allowed"],
        true
    );
}

/// BR-WE-014
#[tokio::test]
async fn fill_bundle_during_catalog_outage_is_unchanged() {
    let routes = FakeApiServer::default().routes(ImageDigest::Fill, OnOutage::Allow);
    let mut object = with_field("/spec/executionEngine", json!("tekton"));
    object["spec"]["workflowRef"] =
        json!({ "workflowId": "unavailable", "version": "1", "bundleRef": "oci://r.io/b:v1" });
    let patched = patched(&object, &send_review(&routes, MUTATE, &object).await);
    assert_eq!(patched["spec"], stamped(&object));
}

/// BR-WE-014
#[rstest]
#[case::another_repository(
    "restart",
    "r.io/w/other:v1",
    422,
    "invalid value \"r.io/w/other:v1\": repository and digest must be those in the catalog: use \"r.io/w/restart:v1@sha256:"
)]
#[case::another_digest(
    "restart",
    "r.io/w/restart@sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    422,
    "use \"r.io/w/restart:v1@sha256:"
)]
#[case::no_reference(
    "restart",
    "restart v1",
    422,
    "must be registry/repository[:tag]@sha256:"
)]
#[case::unknown(
    "nowhere",
    "r.io/w/restart:v1",
    422,
    "workflow \"nowhere\" not found in the catalog"
)]
#[case::outage(
    "unavailable",
    "r.io/w/restart:v1",
    503,
    "the image digest cannot be filled in because the workflow catalog is unavailable (connection refused): specify the digest, or try again later"
)]
#[tokio::test]
async fn fill_unresolvable_image_is_denied_with_one_cause(
    #[case] workflow: &str,
    #[case] image: &str,
    #[case] code: u16,
    #[case] expected: &str,
) {
    let routes = FakeApiServer::default().routes(ImageDigest::Fill, OnOutage::Allow);
    let mut object = with_field("/spec/workflowRef/containerImage", json!(image));
    object["spec"]["workflowRef"]["workflowId"] = json!(workflow);
    let mut response = send_review(&routes, MUTATE, &object).await;
    if response["allowed"] == true {
        response = send_review(&routes, VALIDATE, &object).await;
    }
    assert_eq!(response["status"]["code"], code, "{response}");
    assert!(message(&response).contains(expected), "{response}");
    let causes = response["status"]["details"]["causes"]
        .as_array()
        .expect("causes");
    assert_eq!(causes.len(), 1, "one cause: {response}");
}

/// BR-WE-001
#[tokio::test]
async fn catalog_outage_is_a_warning_or_a_denial_by_flag() {
    let object = with_field("/spec/workflowRef/workflowId", json!("unavailable"));
    let server = FakeApiServer::default();
    let allowed = send_review(
        &server.routes(ImageDigest::Require, OnOutage::Allow),
        VALIDATE,
        &object,
    )
    .await;
    assert_eq!(allowed["allowed"], true);
    assert_eq!(
        allowed["warnings"],
        json!([
            "the workflow catalog is unavailable (connection refused): not checked yet; the controller checks it before it runs the workflow"
        ])
    );
    let denied = send_review(
        &server.routes(ImageDigest::Require, OnOutage::Deny),
        VALIDATE,
        &object,
    )
    .await;
    assert_eq!(denied["status"]["code"], 503);
    assert_eq!(denied["status"]["details"]["retryAfterSeconds"], 1);
}

/// BR-WE-001
#[tokio::test(start_paused = true)]
async fn catalog_without_response_is_an_outage_within_the_deadline() {
    let object = with_field("/spec/workflowRef/workflowId", json!("never returns"));
    let response = send_review(&default_routes(), VALIDATE, &object).await;
    let warning = response["warnings"][0].as_str().expect("a warning");
    assert!(
        warning.contains("(no response before the deadline)"),
        "{warning}"
    );
    let fill = FakeApiServer::default().routes(ImageDigest::Fill, OnOutage::Allow);
    let mut object = object;
    object["spec"]["workflowRef"]["containerImage"] = json!("r.io/w/restart:v1");
    let response = send_review(&fill, MUTATE, &object).await;
    assert_eq!(response["status"]["reason"], "ServiceUnavailable");
}

#[tokio::test]
async fn handler_panic_is_a_denial_with_the_uid() {
    let object = with_field("/spec/workflowRef/workflowId", json!("panics"));
    let routes = default_routes();
    let response = send_review(&routes, VALIDATE, &object).await;
    assert_eq!(response["status"]["code"], 500);
    assert!(message(&response).contains("lookup panicked"), "{response}");
    assert_eq!(
        send_review(&routes, VALIDATE, &valid_execution()).await["allowed"],
        true
    );
}

/// BR-WE-014
#[tokio::test]
async fn secret_lookup_is_shared_and_a_positive_answer_is_cached_longer() {
    let server = FakeApiServer::default();
    let routes = server.routes(ImageDigest::Require, OnOutage::Allow);
    let reads = || server.secrets_read.load(Ordering::Relaxed);
    server.missing_secrets.lock().push("token");
    let object = valid_execution();
    let answers = join_all((0..50).map(|_| send_review(&routes, VALIDATE, &object))).await;
    assert!(answers.iter().all(|it| it["allowed"] == false));
    assert_eq!(reads(), 1, "50 reviews share one read");
    let again = send_review(&routes, VALIDATE, &object).await;
    assert_eq!(
        (&again["allowed"], reads()),
        (&json!(false), 1),
        "for a second"
    );
    server.missing_secrets.lock().clear();
    let created = async {
        while send_review(&routes, VALIDATE, &object).await["allowed"] == false {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(10), created).await;
    heard.expect("the missing Secret was created");
    for _ in 0..3 {
        assert_eq!(
            send_review(&routes, VALIDATE, &object).await["allowed"],
            true
        );
    }
    assert_eq!(reads(), 2, "a positive answer is cached");
}

#[tokio::test]
async fn body_not_a_review_is_400_and_too_large_is_413() {
    let routes = default_routes();
    for body in [
        "",
        "text",
        "{}",
        "[1]",
        "{\"apiVersion\":\"admission.k8s.io/v1\"}",
    ] {
        let (status, text) = post(&routes, MUTATE, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(
            String::from_utf8_lossy(&text)
                .starts_with("the request body is not an AdmissionReview: ")
        );
    }
    let (status, text) = post(&routes, MUTATE, vec![b' '; MAX_BODY + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(text, b"the request body must be at most 3 MiB");
    let chunks = futures::stream::iter((0..4).map(|_| Ok::<_, Infallible>(vec![b' '; 1 << 20])));
    let (status, _) = post(&routes, MUTATE, Body::from_stream(chunks)).await;
    assert_eq!(
        status,
        StatusCode::PAYLOAD_TOO_LARGE,
        "without a content-length"
    );
}

/// A body of which only the first `size` bytes arrive.
fn unfinished(size: usize) -> Body {
    let received = futures::stream::iter([Ok::<_, Infallible>(vec![b' '; size])]);
    Body::from_stream(received.chain(futures::stream::pending()))
}

#[tokio::test(start_paused = true)]
async fn slow_bodies_time_out_and_do_not_block_other_reviews() {
    let routes = default_routes();
    let silent = join_all((0..1_000).map(|_| post(&routes, MUTATE, unfinished(10))));
    let object = valid_execution();
    let (silent, allowed) = tokio::join!(silent, send_review(&routes, MUTATE, &object));
    assert_eq!(allowed["allowed"], true);
    assert!(
        silent
            .iter()
            .all(|(status, _)| *status == StatusCode::REQUEST_TIMEOUT)
    );
}

/// Clients that send large bodies and stall take none of the room for small reviews.
#[tokio::test(start_paused = true)]
async fn small_review_beside_stalling_large_ones_is_answered() {
    let routes = default_routes();
    let stalling = [MAX_BODY; 3].map(|size| post(&routes, MUTATE, unfinished(size)));
    let object = valid_execution();
    let small = send_review(&routes, MUTATE, &object);
    let (stalled, small) = tokio::join!(join_all(stalling), small);
    assert_eq!(small["allowed"], true);
    let statuses: Vec<_> = stalled.iter().map(|(status, _)| status.as_u16()).collect();
    assert_eq!(statuses, [408, 429, 429], "one of the largest at a time");
}

#[tokio::test(start_paused = true)]
async fn review_beyond_memory_budget_is_429_with_retry_after() {
    let routes = default_routes();
    // Each takes the whole reservation of a small review, and nothing of that of large ones.
    let size = SMALL_KIB / BODY_OVERHEAD_FACTOR * 1_024;
    let all = vec![size; MEMORY_BUDGET_KIB / SMALL_KIB];
    let stalling = join_all(
        all.iter()
            .map(|&size| post(&routes, MUTATE, unfinished(size))),
    );
    let request =
        http::Request::post(MUTATE).body(Body::from(review(&valid_execution()).to_string()));
    let answer = routes.clone().oneshot(request.expect("a request"));
    let (stalled, answer) = tokio::join!(stalling, answer);
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers()[header::RETRY_AFTER], "1");
    let timed_out = |(status, _): &(StatusCode, _)| *status == StatusCode::REQUEST_TIMEOUT;
    assert!(stalled.iter().all(timed_out));
    assert_eq!(
        send_review(&routes, MUTATE, &valid_execution()).await["allowed"],
        true,
        "the memory is free again"
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "[a-z]{1,5}(/[A-Za-z]{1,5}){0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-zA-Z_]{1,8}", inner, 0..4)
                .prop_map(|it| it.into_iter().collect()),
        ]
    })
}

fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    for (key, value) in value.as_object().into_iter().flatten() {
        pointers(value, &format!("{at}/{key}"), all);
    }
}

/// A valid review in which one value is replaced by arbitrary JSON.
fn any_review() -> impl Strategy<Value = Value> {
    let mut object = valid_execution();
    object["status"] = json!({ "phase": "Failed", "blockClearanceRequest": { "clearReason": "looked at it well" } });
    object["spec"]["executionConfig"] =
        json!({ "timeout": "5m", "serviceAccountName": "runner", "whenBlocked": "Wait" });
    let create = review(&object);
    let mut update = create.clone();
    let request = &mut update["request"];
    request["operation"] = json!("UPDATE");
    request["subResource"] = json!("status");
    request["oldObject"] = json!({ "status": { "phase": "Failed" } });
    let all = [create, update].map(|review| {
        let mut all = Vec::new();
        pointers(&review, "", &mut all);
        (review, all)
    });
    (0..2usize, any::<prop::sample::Index>(), any_json()).prop_map(move |(which, index, value)| {
        let (review, all) = &all[which];
        let mut review = review.clone();
        *review
            .pointer_mut(index.get::<String>(all))
            .expect("an existing pointer") = value;
        review
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    /// BR-WE-001
    #[test]
    fn any_json_in_any_field_is_rejected_or_valid(review in any_review()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let routes = FakeApiServer::default().routes(ImageDigest::Fill, OnOutage::Deny);
            for operation in Operation::ALL {
                let (status, body) = post(&routes, operation.path(), review.to_string()).await;
                prop_assert!([StatusCode::OK, StatusCode::BAD_REQUEST].contains(&status), "{status}");
                if status != StatusCode::OK {
                    continue;
                }
                let answer: Value = serde_json::from_slice(&body).expect("JSON");
                let response = &answer["response"];
                prop_assert_eq!(&response["uid"], &review["request"]["uid"]);
                if response["allowed"] != true {
                    prop_assert!(!message(response).is_empty());
                    let code = response["status"]["code"].as_u64();
                    prop_assert!([Some(422), Some(403)].contains(&code), "{}", response);
                    continue;
                }
                let object = &review["request"]["object"];
                match operation {
                    Operation::Mutate => {
                        let object = if response.get("patch").is_some() { patched(object, response) } else { object.clone() };
                        let spec = rules::read(&object["spec"]).expect("a readable spec");
                        prop_assert!(rules::check(&spec).is_ok());
                    }
                    Operation::Validate => {
                        let spec = rules::read(&object["spec"]).expect("a readable spec");
                        prop_assert!(rules::validate(&spec, rules::check(&spec), &restart()).is_ok());
                        prop_assert_eq!(&spec.target_resource.to_lowercase(), "prod/deployment/web");
                        prop_assert_eq!(&review["request"]["namespace"], "prod");
                    }
                    Operation::ClearBlock => {
                        let stored = if response.get("patch").is_some() { patched(object, response) } else { object.clone() };
                        prop_assert!(stored["status"]["blockClearanceRequest"].is_null(), "{}", stored);
                        let by = &stored["status"]["blockClearance"]["clearedBy"];
                        let user = &review["request"]["userInfo"]["username"];
                        prop_assert!(by.is_null() || by == user || (user.is_null() && by == ""), "{}", stored);
                    }
                    Operation::StampCancel | Operation::WarnDelete | Operation::ValidateWorkflow => {}
                }
            }
            Ok(())
        })?;
    }
}
