//! What must hold for any input from outside. A body takes bytes, and panics if something does not hold.
//! The bodies run on stable with random variations of the corpus (`make unit`), and with a nightly
//! toolchain under libFuzzer (`make fuzz`).

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a body fails by panicking"
)]

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Value, json};
use wfe_core::execution::Source;
use wfe_core::history::{Entry, History, Limits, Outcome};
use wfe_core::lock::{self, TargetLock};
use wfe_model::duration::{self, ExecutionTimeout};
use wfe_model::image::{BundleReference, ImageReference};
use wfe_model::target::Target;
use wfe_model::workflow::Workflow;
use wfe_webhook::review::{Request, Verdict};
use wfe_webhook::{cancellation, clearance, deletion, workflow};

/// What takes bytes and panics if something does not hold.
pub type Body = fn(&[u8]);

/// The bodies by name; the name is that of the directory in the corpus.
pub const BODIES: [(&str, Body); 7] = [
    ("review", review),
    ("image", image),
    ("target", target),
    ("timeout", timeout),
    ("workflow", workflow),
    ("lease", lease),
    ("audit", audit),
];

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

type Handler = fn(&Request<'_>) -> Verdict;

/// A request to the webhook: the answer is JSON, with the uid of the request.
pub fn review(bytes: &[u8]) {
    let handlers: [(&str, Handler); 4] = [
        ("UPDATE workflowexecutions/status", |it| {
            clearance::clear(it, Timestamp::UNIX_EPOCH)
        }),
        ("UPDATE workflowexecutions", cancellation::stamp),
        ("DELETE workflowexecutions", deletion::warn),
        ("CREATE remediationworkflows", workflow::review),
    ];
    for (expected, handle) in handlers {
        let Ok(request) = Request::read(bytes, &[expected]) else {
            continue;
        };
        let answer = handle(&request).response(&request).expect("an answer");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        let uid = answer.pointer("/response/uid").and_then(Value::as_str);
        assert_eq!(uid, Some(request.uid.as_str()));
    }
}

/// A reference that is accepted is written as it was read.
pub fn image(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Some(image) = ImageReference::parse(text) {
        assert_eq!(image.to_string(), text);
    }
    if let Some(bundle) = BundleReference::parse(text) {
        assert_eq!(bundle.to_string(), text);
    }
}

/// A target that is accepted is written as it was read, and its parts have no separator.
pub fn target(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Some(target) = Target::parse(text) {
        assert_eq!(target.to_string(), text);
        let parts = [
            target.namespace().unwrap_or_default(),
            target.kind(),
            target.name(),
        ];
        assert!(parts.iter().all(|it| !it.contains('/')), "{target:?}");
    }
}

/// A timeout that is accepted is within its bounds, and reads the same after it was written.
pub fn timeout(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Some(timeout) = ExecutionTimeout::parse(text) {
        let span = timeout.get();
        let bounds = Duration::from_secs(1)..=Duration::from_hours(24);
        assert!(bounds.contains(&span), "{span:?}");
        let again = ExecutionTimeout::parse(&duration::format(span));
        let seconds = again.map(|it| it.get().as_secs());
        assert_eq!(seconds, Some(span.as_secs()));
    }
}

/// A workflow document that is accepted reads the same again.
pub fn workflow(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let read = Workflow::read("fuzz.yaml", text);
    let again = Workflow::read("fuzz.yaml", text);
    assert_eq!(read.is_ok(), again.is_ok());
}

/// Whatever the records of a Lease say, they lift no block of a WorkflowExecution, and the Lease can be
/// taken, freed and given a record.
pub fn lease(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let source = Source {
        namespace: "prod".to_owned(),
        name: "a".to_owned(),
        uid: "u".to_owned(),
    };
    let annotations =
        json!({ "kubernaut.ai/last-execution": text, "kubernaut.ai/past-executions": text });
    let lease = json!({ "metadata": { "name": "l", "annotations": annotations }, "spec": { "holderIdentity": text } });
    let Ok(lease) = serde_json::from_value::<Lease>(lease) else {
        return;
    };
    let limits = Limits {
        cooldown: Duration::from_mins(5),
        backoff_base: Duration::from_mins(1),
        backoff_max: Duration::from_mins(10),
        max_consecutive_failures: 5,
    };
    let now = Timestamp::UNIX_EPOCH;
    let seen = TargetLock::from(Some(Arc::new(lease.clone())));
    let status = json!({
        "phase": "Failed", "completionTime": now, "executionRef": { "name": "j" },
        "failureDetails": { "reason": "TaskFailed", "message": "", "failedAt": now, "naturalLanguageSummary": "", "wasExecutionFailure": true },
    });
    let blocking = json!({
        "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
        "metadata": { "name": "a", "namespace": "prod", "uid": "u" },
        "spec": { "executionEngine": "job", "targetResource": "prod/Deployment/web", "workflowRef": {} },
        "status": status,
    });
    let blocking = serde_json::from_value(blocking).expect("a WorkflowExecution");
    let history = History::of([&blocking], seen.records().cloned());
    assert!(history.block().is_some());
    let entry = Entry {
        uid: source.uid.clone(),
        namespace: source.namespace.clone(),
        name: source.name.clone(),
        workflow_id: "w".to_owned(),
        outcome: Outcome::Succeeded,
        was_execution_failure: false,
        cleared: false,
        completion_time: now,
        consecutive_failures: 0,
        cleared_at: None,
    };
    let taken = lock::taken(lease, &source, now);
    assert_eq!(lock::holding_execution(&taken), Some(source));
    let recorded = lock::recorded(lock::freed(taken, Some(&entry), now), &entry, &limits, now);
    assert!(TargetLock::from(Some(Arc::new(recorded))).has_record(&entry));
}

/// An audit file is read and verified, or refused with the number of a line.
pub fn audit(bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    std::fs::write(&path, bytes).expect("written");
    let _ = wfe_peers::audit::read_file(&path, "rr-1");
    if let Err(error) = wfe_peers::audit::verify(&path, None) {
        assert!(error.to_string().starts_with("line "), "{error}");
    }
}
