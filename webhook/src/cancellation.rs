//! Stamps a cancellation: whoever sets `kubernaut.ai/cancel` is recorded in `kubernaut.ai/cancelled-by`.
//! Without this handler the `ValidatingAdmissionPolicy` objects still deny another user's name.

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation};
use serde::Deserialize;
use serde_json::json;
use wfe_model::rules::JsonObject;
use wfe_model::{CANCEL, CANCELLED_BY};

use crate::refusal::Refusal;
use crate::review::{Request, Verdict};

#[derive(Default, Deserialize)]
struct ObjectFields {
    #[serde(default)]
    metadata: JsonObject<Metadata>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Reviews an update.
pub fn stamp(request: &Request<'_>) -> Verdict {
    let annotations = |object: ObjectFields| object.metadata.0.annotations.unwrap_or_default();
    let read = || {
        let (old, new) = (request.old_object()?, request.object()?);
        Ok((annotations(old), annotations(new)))
    };
    let (old, new) = match read() {
        Ok(read) => read,
        Err(refusal) => return Verdict::refuse(vec![refusal]),
    };
    if new.get(CANCEL) == old.get(CANCEL) {
        return Verdict::allow();
    }
    let path = PointerBuf::from_tokens(["metadata", "annotations", CANCELLED_BY]);
    let operation = match new.get(CANCEL) {
        Some(reason) if reason.trim().is_empty() => {
            return Verdict::refuse(vec![Refusal::CancelReason]);
        }
        Some(_) => Some(PatchOperation::Add(AddOperation {
            path,
            value: json!(request.user().username),
        })),
        // Nobody has cancelled it any more.
        None => new
            .contains_key(CANCELLED_BY)
            .then_some(PatchOperation::Remove(RemoveOperation { path })),
    };
    Verdict {
        patch: operation.map(|it| Patch(vec![it])),
        ..Verdict::allow()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::Value;

    use super::*;

    #[rstest]
    #[case(json!({}), json!({ "kubernaut.ai/cancel": "wrong node" }), json!([{ "op": "add", "path": "/metadata/annotations/kubernaut.ai~1cancelled-by", "value": "alice" }]))]
    #[case(json!({}), json!({ "kubernaut.ai/cancel": "x", "kubernaut.ai/cancelled-by": "bob" }), json!([{ "op": "add", "path": "/metadata/annotations/kubernaut.ai~1cancelled-by", "value": "alice" }]))]
    #[case(json!({ "kubernaut.ai/cancel": "x", "kubernaut.ai/cancelled-by": "bob" }), json!({ "kubernaut.ai/cancelled-by": "bob" }), json!([{ "op": "remove", "path": "/metadata/annotations/kubernaut.ai~1cancelled-by" }]))]
    #[case(json!({ "kubernaut.ai/cancel": "x" }), json!({ "kubernaut.ai/cancel": "x", "a": "b" }), Value::Null)]
    #[case(json!({ "kubernaut.ai/cancel": "x" }), Value::Null, Value::Null)]
    #[case(json!({}), json!({ "kubernaut.ai/cancel": " " }), json!("must not be empty"))]
    fn cancellation_gets_the_name_of_its_user(
        #[case] old: Value,
        #[case] new: Value,
        #[case] expected: Value,
    ) {
        let object =
            |annotations| json!({ "metadata": { "name": "a", "annotations": annotations } });
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u1", "operation": "UPDATE", "name": "a", "userInfo": { "username": "alice" },
                "resource": { "group": "kubernaut.ai", "resource": "workflowexecutions" },
                "object": object(new), "oldObject": object(old),
            },
        });
        let review = review.to_string();
        let request = Request::read(review.as_bytes(), &["UPDATE workflowexecutions"]);
        let verdict = stamp(&request.expect("a request"));
        match expected.as_str() {
            Some(says) => assert!(verdict.message().contains(says), "{}", verdict.message()),
            None => assert_eq!(json!(verdict.patch), expected),
        }
    }
}
