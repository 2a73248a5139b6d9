//! Admission reviews as the API server sends them, without `managedFields`.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wfe_model::workflow_execution::WorkflowExecution;

const UID: &str = "00000000-0000-0000-0000-000000000000";

/// A request of fixed size that is sent repeatedly, each time with a new uid.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
    uid_at: usize,
    counter: u64,
}

impl Request {
    /// A POST of a review of `size` bytes. `grow` returns a WorkflowExecution that contains the
    /// given filling.
    pub fn new(path: &str, size: usize, grow: impl Fn(&str) -> WorkflowExecution) -> Result<Self> {
        let empty = review(&grow("")).to_string().len();
        let filling = "x".repeat(
            size.checked_sub(empty)
                .context("the review is larger without filling")?,
        );
        let body = review(&grow(&filling)).to_string();
        let head = format!(
            "POST {path}?timeout=3s HTTP/1.1\r\nhost: webhook\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let bytes = [head, body].concat();
        let uid_at = bytes.find(UID).context("the review has no uid")?;
        Ok(Self {
            bytes: bytes.into_bytes(),
            uid_at,
            counter: 0,
        })
    }

    /// The next request, and its uid.
    pub fn next(&mut self, connection: usize) -> (&[u8], String) {
        self.counter += 1;
        let uid = format!("{connection:08x}-0000-4000-8000-{:012x}", self.counter);
        let place = self.bytes.iter_mut().skip(self.uid_at);
        place
            .zip(uid.bytes())
            .for_each(|(place, byte)| *place = byte);
        (&self.bytes, uid)
    }
}

fn review(object: &WorkflowExecution) -> Value {
    let (name, namespace) = (&object.metadata.name, &object.metadata.namespace);
    let kind =
        json!({ "group": "kubernaut.ai", "version": "v1alpha1", "kind": "WorkflowExecution" });
    let resource =
        json!({ "group": "kubernaut.ai", "version": "v1alpha1", "resource": "workflowexecutions" });
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": UID, "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
            "name": name, "namespace": namespace, "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kubernaut-system:remediation-orchestrator", "uid": UID.replace('0', "1"),
                "groups": ["system:serviceaccounts", "system:serviceaccounts:kubernaut-system", "system:authenticated"] },
            "object": object, "oldObject": null, "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "remediation-orchestrator" },
        },
    })
}
