//! Request and response of an `AdmissionReview` (admission.k8s.io/v1).
//!
//! This module defines its own types so that the object stays raw JSON until a handler reads the
//! fields that it needs: a malformed object is a denial with the request's uid, not an HTTP error.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;
use wfe_model::rules::{JsonObject, Misshapen, parse};
use wfe_model::text::{cut, shortened};

use crate::refusal::Refusal;

/// The API server may truncate a warning of more than 256 characters.
pub const MAX_WARNING: usize = 256;
/// Bounds the size of a response; further refusals are only counted.
const MAX_CAUSES: usize = 32;
/// Characters of one refusal: a value of at most 600 characters (`shortened`) and its rule.
const MAX_TEXT: usize = 1_200;
/// The API server sends UUIDs of 36 characters.
const MAX_UID: usize = 128;
/// For clients of the API server, when a denial is due to an outage.
const RETRY_AFTER_SECONDS: u32 = 1;
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// API group of the reviewed objects.
const GROUP: &str = "kubernaut.ai";

/// Why a request body is rejected without a response: a client other than the API server, or wrong
/// rules in the webhook configuration.
#[derive(Debug, Error)]
pub enum ReviewError {
    /// The body is not JSON, or lacks a required field.
    #[error("the request body is not an AdmissionReview: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// The body is an object of another kind or version.
    #[error(
        "unsupported kind {kind:?} of apiVersion {api_version:?}: must be kind {KIND:?} of apiVersion {API_VERSION:?}"
    )]
    UnsupportedKind {
        /// The found `apiVersion`.
        api_version: String,
        /// The found `kind`.
        kind: String,
    },
    /// The uid, which a response must repeat, is missing or too long.
    #[error("invalid value for request.uid: must have 1 to {MAX_UID} characters")]
    InvalidUid,
    /// The rules of the webhook configuration send another operation or resource to this path.
    #[error(
        "unsupported request {found:?}: this path supports {expected:?}; correct the rules of the webhook configuration"
    )]
    UnexpectedRequest {
        /// The operations and resources of this path.
        expected: String,
        /// The operation and resource of the request.
        found: String,
    },
}

/// The request body; unknown fields are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: JsonObject<Request<'a>>,
}

/// `AdmissionReview.request`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    /// Repeated in the response.
    pub uid: String,
    /// CREATE, UPDATE, …
    #[serde(default)]
    pub operation: String,
    #[serde(default)]
    resource: JsonObject<Resource>,
    #[serde(default)]
    sub_resource: Option<String>,
    /// Name of the object; empty for a create with `generateName`.
    #[serde(default)]
    pub name: String,
    /// Namespace of the object.
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    user_info: JsonObject<UserInfo>,
    /// The new object; `None` for DELETE.
    #[serde(borrow, default)]
    pub object: Option<&'a RawValue>,
    /// The stored object; `None` for CREATE.
    #[serde(borrow, default)]
    pub old_object: Option<&'a RawValue>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Resource {
    group: String,
    resource: String,
}

/// The authenticated user.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    /// User name.
    pub username: String,
    /// Distinguishes users that had the same name at different times; empty if the authenticator
    /// gives none.
    pub uid: String,
}

impl<'a> Request<'a> {
    /// Reads a request body. `expected` are the only operations and resources that are accepted, as
    /// `CREATE workflowexecutions`.
    pub fn read(body: &'a [u8], expected: &[&str]) -> Result<Self, ReviewError> {
        let JsonObject(review) = serde_json::from_slice::<JsonObject<Review>>(body)?;
        if (review.api_version.as_str(), review.kind.as_str()) != (API_VERSION, KIND) {
            return Err(ReviewError::UnsupportedKind {
                api_version: shortened(&review.api_version),
                kind: shortened(&review.kind),
            });
        }
        let JsonObject(request) = review.request;
        if request.uid.is_empty() || request.uid.len() > MAX_UID {
            return Err(ReviewError::InvalidUid);
        }
        let found = request.operation_and_resource();
        if request.resource.0.group == GROUP && expected.contains(&found.as_str()) {
            return Ok(request);
        }
        let found = shortened(&found);
        let expected = expected.join(" and ");
        Err(ReviewError::UnexpectedRequest { expected, found })
    }

    fn operation_and_resource(&self) -> String {
        let (operation, resource) = (&self.operation, &self.resource.0.resource);
        match self.sub_resource.as_deref().unwrap_or_default() {
            "" => format!("{operation} {resource}"),
            sub_resource => format!("{operation} {resource}/{sub_resource}"),
        }
    }

    /// The user that the API server authenticated.
    pub fn user(&self) -> &UserInfo {
        &self.user_info.0
    }

    /// Reads the fields of `T` from the new object.
    pub fn object<T: Deserialize<'a>>(&self) -> Result<T, Refusal> {
        read(self.object)
    }

    /// Reads the fields of `T` from the stored object.
    pub fn old_object<T: Deserialize<'a>>(&self) -> Result<T, Refusal> {
        read(self.old_object)
    }
}

fn read<'a, T: Deserialize<'a>>(object: Option<&'a RawValue>) -> Result<T, Refusal> {
    let text = object.map_or("null", RawValue::get);
    let read = parse(&mut serde_json::Deserializer::from_str(text));
    read.map(|JsonObject(fields)| fields)
        .map_err(|Misshapen { path, message }| Refusal::Malformed {
            field: path,
            message,
        })
}

/// The outcome of a review.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Changes to the object; ignored if the review is denied.
    pub patch: Option<Patch>,
    /// Reasons for the denial; the review is allowed if there are none.
    pub refusals: Vec<Refusal>,
    /// Warnings that kubectl prints.
    pub warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReviewResponse<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Status<'a> {
    code: u16,
    reason: &'static str,
    message: String,
    details: Details<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details<'a> {
    /// kubectl names the object in its error by these three.
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    group: &'static str,
    kind: &'static str,
    causes: Vec<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u32>,
}

#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
    field: String,
}

impl Verdict {
    /// Allows the request without changes or warnings.
    pub fn allow() -> Self {
        Self::default()
    }

    /// Denies the request.
    pub fn refuse(refusals: Vec<Refusal>) -> Self {
        Self {
            refusals,
            ..Self::default()
        }
    }

    /// Adds a warning, cut to the supported length.
    #[must_use]
    pub fn warn(mut self, warning: &str) -> Self {
        self.warnings.push(cut(warning, MAX_WARNING));
        self
    }

    /// All refusals in one line: kubectl shows only `status.message`, not `status.details`.
    pub fn message(&self) -> String {
        let listed = self.refusals.iter().take(MAX_CAUSES);
        let listed = listed.map(|refusal| format!("{}: {}", refusal.field(), text(refusal)));
        let more = self.refusals.len().saturating_sub(MAX_CAUSES);
        let more = (more > 0).then(|| format!("and {more} more"));
        listed.chain(more).collect::<Vec<_>>().join("; ")
    }

    /// The broken rules and their fields, for the log: values may be secret and are left out.
    pub fn rules(&self) -> String {
        let listed = self.refusals.iter().take(MAX_CAUSES);
        let listed = listed.map(|refusal| format!("{} {}", refusal.rule(), refusal.field()));
        listed.collect::<Vec<_>>().join(", ")
    }

    /// The `AdmissionReview` response to `request`, as JSON.
    pub fn response(&self, request: &Request<'_>) -> serde_json::Result<Vec<u8>> {
        let allowed = self.refusals.is_empty();
        // The API server rejects an empty patch, and ignores the patch of a denial.
        let patch = self.patch.as_ref().filter(|it| allowed && !it.is_empty());
        let patch = patch.map(serde_json::to_vec).transpose()?;
        serde_json::to_vec(&ReviewResponse {
            api_version: API_VERSION,
            kind: KIND,
            response: Response {
                uid: &request.uid,
                allowed,
                status: self.status(request),
                patch_type: patch.as_ref().map(|_| "JSONPatch"),
                patch: patch.map(|patch| STANDARD.encode(patch)),
                warnings: &self.warnings,
            },
        })
    }

    fn status<'a>(&self, request: &'a Request<'_>) -> Option<Status<'a>> {
        // One code for all refusals: an invalid object before policy before a failed review.
        let code = self.refusals.iter().map(Refusal::code);
        let code = code.min_by_key(|code| match *code {
            StatusCode::UNPROCESSABLE_ENTITY => 0,
            StatusCode::FORBIDDEN => 1,
            _ => 2,
        })?;
        let reason = match code {
            StatusCode::UNPROCESSABLE_ENTITY => "Invalid",
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            StatusCode::GATEWAY_TIMEOUT => "Timeout",
            _ => "InternalError",
        };
        let causes = self.refusals.iter().take(MAX_CAUSES).map(|refusal| Cause {
            reason: match refusal.code() {
                StatusCode::UNPROCESSABLE_ENTITY => "FieldValueInvalid",
                StatusCode::FORBIDDEN => "FieldValueForbidden",
                _ => "UnexpectedServerResponse",
            },
            message: text(refusal),
            field: refusal.field(),
        });
        let is_outage = code != StatusCode::INTERNAL_SERVER_ERROR && code.is_server_error();
        Some(Status {
            code: code.as_u16(),
            reason,
            message: self.message(),
            details: Details {
                name: &request.name,
                group: GROUP,
                kind: match request.resource.0.resource.as_str() {
                    "remediationworkflows" => "RemediationWorkflow",
                    _ => "WorkflowExecution",
                },
                causes: causes.collect(),
                retry_after_seconds: is_outage.then_some(RETRY_AFTER_SECONDS),
            },
        })
    }
}

/// The text of a refusal, bounded.
fn text(refusal: &Refusal) -> String {
    cut(&refusal.to_string(), MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wfe_model::rules::Violation;

    use super::*;

    fn response(verdict: &Verdict) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u1", "operation": "CREATE", "name": "restart-1",
                "resource": { "group": GROUP, "resource": "workflowexecutions" },
            },
        });
        let review = review.to_string();
        let request = Request::read(review.as_bytes(), &["CREATE workflowexecutions"]);
        let answer = verdict
            .response(&request.expect("a request"))
            .expect("JSON");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "u1");
        answer["response"].clone()
    }

    #[test]
    fn response_allowed_without_changes_has_only_the_uid() {
        let response = response(&Verdict::allow());
        assert_eq!(response, json!({ "uid": "u1", "allowed": true }));
    }

    #[test]
    fn response_denied_message_lists_every_cause() {
        let refusals = [
            Violation::EngineMissing,
            Violation::ReferenceMissing {
                engine: wfe_model::engine::Engine::Job,
            },
        ]
        .map(Refusal::Spec);
        let response = response(&Verdict::refuse(refusals.to_vec()));
        let status = &response["status"];
        assert_eq!(
            (&status["code"], &status["reason"]),
            (&json!(422), &json!("Invalid"))
        );
        let message = status["message"].as_str().expect("a message");
        for refusal in &refusals {
            assert!(
                message.contains(&format!("{}: {refusal}", refusal.field())),
                "{message}"
            );
        }
        // kubectl prints: The WorkflowExecution "restart-1" is invalid.
        let details = &status["details"];
        assert_eq!(
            (&details["name"], &details["kind"], &details["group"]),
            (
                &json!("restart-1"),
                &json!("WorkflowExecution"),
                &json!(GROUP)
            )
        );
        let causes = status["details"]["causes"].as_array().expect("causes");
        assert_eq!(causes.len(), 2);
        assert_eq!(causes[0]["field"], "spec.executionEngine");
    }

    #[test]
    fn response_mixed_refusals_code_prefers_invalid_then_policy_then_outage() {
        let policy = Refusal::ServiceAccountNotAllowed("no".to_owned());
        let outage = Refusal::Unavailable {
            field: "spec.workflowRef".to_owned(),
            why: "no answer".to_owned(),
        };
        let code = |refusals: &[&Refusal]| {
            let refusals = refusals.iter().map(|&it| it.clone()).collect();
            response(&Verdict::refuse(refusals))["status"]["code"].clone()
        };
        assert_eq!(
            code(&[&policy, &Refusal::Spec(Violation::EngineMissing)]),
            422
        );
        assert_eq!(code(&[&outage, &policy]), 403);
        assert_eq!(code(&[&outage]), 503);
        let details = &response(&Verdict::refuse(vec![outage]))["status"]["details"];
        assert_eq!(details["retryAfterSeconds"], 1);
    }

    #[test]
    fn message_many_refusals_lists_some_and_counts_the_rest() {
        let malformed = |number: usize| Refusal::Malformed {
            field: format!("spec.f{number}"),
            message: "x".repeat(10_000),
        };
        let verdict = Verdict::refuse((0..1_000).map(malformed).collect());
        let message = verdict.message();
        assert!(message.len() < 32 * 1_300 && message.ends_with("; and 968 more"));
        let causes = response(&verdict)["status"]["details"]["causes"].clone();
        assert_eq!(causes.as_array().map(Vec::len), Some(32));
    }

    #[test]
    fn response_patch_is_base64_and_an_empty_or_denied_patch_is_omitted() {
        let patch: Patch =
            serde_json::from_value(json!([{ "op": "add", "path": "/a", "value": 1 }]))
                .expect("a patch");
        let with = |patch: &Patch, refusals| {
            response(&Verdict {
                patch: Some(patch.clone()),
                refusals,
                warnings: Vec::new(),
            })
        };
        let answer = with(&patch, Vec::new());
        let sent = STANDARD
            .decode(answer["patch"].as_str().expect("text"))
            .expect("base64");
        assert_eq!(
            serde_json::from_slice::<Patch>(&sent).expect("a patch"),
            patch
        );
        assert_eq!(answer["patchType"], "JSONPatch");
        let empty = with(&Patch(Vec::new()), Vec::new());
        assert_eq!(empty, json!({ "uid": "u1", "allowed": true }));
        let refused = with(&patch, vec![Refusal::ClearanceForged]);
        assert!(refused.get("patch").is_none() && refused.get("patchType").is_none());
    }

    #[test]
    fn warn_long_text_is_cut_to_256_characters() {
        let warned = Verdict::allow()
            .warn(&"ü".repeat(400))
            .warn(&"a".repeat(256));
        let lengths: Vec<_> = warned
            .warnings
            .iter()
            .map(|it| it.chars().count())
            .collect();
        assert_eq!(lengths, [256, 256]);
        assert!(warned.warnings[0].ends_with('…') && warned.warnings[1].ends_with('a'));
    }

    #[test]
    fn read_invalid_review_error_says_what_is_expected() {
        let review = |api_version: &str, request: Value| json!({ "apiVersion": api_version, "kind": "AdmissionReview", "request": request });
        let request = json!({ "uid": "u1", "operation": "CREATE", "resource": { "group": "kubernaut.ai", "version": "v1alpha1", "resource": "workflowexecutions" }, "strange": [1] });
        let changed = |key: &str, value: Value| {
            let mut request = request.clone();
            request[key] = value;
            review("admission.k8s.io/v1", request)
        };
        let read = |body: &Value| {
            let body = body.to_string();
            let request = Request::read(body.as_bytes(), &["CREATE workflowexecutions"]);
            request.map(|it| it.uid).map_err(|error| error.to_string())
        };
        assert_eq!(read(&changed("dryRun", json!(true))), Ok("u1".to_owned()));
        for (body, words) in [
            (
                json!("text"),
                "the request body is not an AdmissionReview: invalid type",
            ),
            (
                review("admission.k8s.io/v1", Value::Null),
                "the request body is not an AdmissionReview",
            ),
            (
                review("admission.k8s.io/v1beta1", request.clone()),
                "of apiVersion \"admission.k8s.io/v1beta1\": must be kind \"AdmissionReview\"",
            ),
            (
                changed("uid", json!("")),
                "request.uid: must have 1 to 128 characters",
            ),
            (
                changed("uid", json!("u".repeat(129))),
                "request.uid: must have 1 to 128 characters",
            ),
            (
                changed("operation", json!("UPDATE")),
                "\"UPDATE workflowexecutions\": this path supports \"CREATE workflowexecutions\"",
            ),
            (
                changed("subResource", json!("status")),
                "request \"CREATE workflowexecutions/status\"",
            ),
            (
                changed("resource", json!({ "group": "", "resource": "pods" })),
                "request \"CREATE pods\": this path supports",
            ),
        ] {
            let error = read(&body).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
    }
}
