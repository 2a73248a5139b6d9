//! The envelope: `AdmissionReview` in and out (admission.k8s.io/v1).
//!
//! Own types: the object stays text until a handler reads what it needs of it, so a strange one is
//! a denial with the right uid, and costs nothing; the patch goes out in base64, as the API says.

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

/// Longest warning the API server passes on whole.
const MAX_WARNING: usize = 256;
/// Most refusals that are told.
const MAX_CAUSES: usize = 32;
/// Most characters of one: a value that is shown in part, and its rule.
const MAX_TEXT: usize = 1_200;
/// The API server's own have 36 characters.
const MAX_UID: usize = 128;
/// When an outage is worth another try.
const RETRY_AFTER_SECONDS: u32 = 1;
const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Why a body cannot be answered: the API server has been told to send something else.
#[derive(Debug, Error)]
pub enum NoReview {
    /// No JSON, or nothing to answer in it.
    #[error("the body is no AdmissionReview: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Another API.
    #[error(
        "the body is a {kind:?} of {api_version:?}: this webhook reads an {KIND} of {API_VERSION}"
    )]
    Other {
        /// As found.
        api_version: String,
        /// As found.
        kind: String,
    },
    /// Without a uid there is no answer.
    #[error("the review has no request.uid of at most {MAX_UID} characters")]
    NoUid,
    /// Rules of the webhook configuration that do not fit the path.
    #[error(
        "this path judges {expected}, and was asked about {found}: mend the rules of the webhook configuration"
    )]
    NotOurs {
        /// What the path is for.
        expected: &'static str,
        /// What came.
        found: String,
    },
}

/// What comes in; fields that are not known are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: JsonObject<Request<'a>>,
}

/// The question.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request<'a> {
    /// To be repeated in the answer.
    pub uid: String,
    /// CREATE, UPDATE, …
    #[serde(default)]
    pub operation: String,
    #[serde(default)]
    resource: JsonObject<Resource>,
    #[serde(default)]
    sub_resource: Option<String>,
    /// Name of the object; empty where the API server will make one.
    #[serde(default)]
    pub name: String,
    /// Namespace of the object.
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    user_info: JsonObject<UserInfo>,
    /// The object as it would be stored.
    #[serde(borrow, default)]
    pub object: Option<&'a RawValue>,
    /// The object as it is stored.
    #[serde(borrow, default)]
    pub old_object: Option<&'a RawValue>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Resource {
    group: String,
    resource: String,
}

/// A user of the cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    /// The name.
    pub username: String,
    /// Tells one from a later one of the same name; empty where the API server knows none.
    pub uid: String,
}

impl<'a> Request<'a> {
    /// Reads a review that is about `expected`: operation and resource, as `CREATE workflowexecutions`.
    pub fn read(body: &'a [u8], expected: &'static str) -> Result<Self, NoReview> {
        let JsonObject(review) = serde_json::from_slice::<JsonObject<Review>>(body)?;
        if (review.api_version.as_str(), review.kind.as_str()) != (API_VERSION, KIND) {
            return Err(NoReview::Other {
                api_version: shortened(&review.api_version),
                kind: shortened(&review.kind),
            });
        }
        let JsonObject(request) = review.request;
        if request.uid.is_empty() || request.uid.len() > MAX_UID {
            return Err(NoReview::NoUid);
        }
        let found = request.subject();
        if request.resource.0.group == "kubernaut.ai" && found == expected {
            return Ok(request);
        }
        let found = shortened(&found);
        Err(NoReview::NotOurs { expected, found })
    }

    fn subject(&self) -> String {
        let (operation, resource) = (&self.operation, &self.resource.0.resource);
        match self.sub_resource.as_deref().unwrap_or_default() {
            "" => format!("{operation} {resource}"),
            sub_resource => format!("{operation} {resource}/{sub_resource}"),
        }
    }

    /// Who asks, by the API server's word.
    pub fn user(&self) -> &UserInfo {
        &self.user_info.0
    }

    /// Parts of the object as it would be stored.
    pub fn object<T: Deserialize<'a>>(&self) -> Result<T, Refusal> {
        read(self.object)
    }

    /// Parts of the object as it is stored.
    pub fn old_object<T: Deserialize<'a>>(&self) -> Result<T, Refusal> {
        read(self.old_object)
    }
}

fn read<'a, T: Deserialize<'a>>(object: Option<&'a RawValue>) -> Result<T, Refusal> {
    let text = object.map_or("null", RawValue::get);
    let read = parse(&mut serde_json::Deserializer::from_str(text));
    read.map(|JsonObject(parts)| parts)
        .map_err(|Misshapen { path, message }| Refusal::Malformed {
            field: path,
            message,
        })
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What to change.
    pub patch: Option<Patch>,
    /// Why it is refused; it is let in where there is no reason.
    pub refusals: Vec<Refusal>,
    /// For the person who asked.
    pub warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
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
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
    details: Details,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
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
    /// Let in, unchanged.
    pub fn allow() -> Self {
        Self::default()
    }

    /// Refused.
    pub fn refuse(refusals: Vec<Refusal>) -> Self {
        Self {
            refusals,
            ..Self::default()
        }
    }

    /// Adds a warning.
    #[must_use]
    pub fn warn(mut self, warning: &str) -> Self {
        self.warnings.push(cut(warning, MAX_WARNING));
        self
    }

    /// Every refusal in one line: kubectl shows only this.
    pub fn message(&self) -> String {
        let told = self.refusals.iter().take(MAX_CAUSES);
        let told = told.map(|refusal| format!("{}: {}", refusal.field(), text(refusal)));
        let more = self.refusals.len().saturating_sub(MAX_CAUSES);
        let more = (more > 0).then(|| format!("and {more} more"));
        told.chain(more).collect::<Vec<_>>().join("; ")
    }

    /// The rules that are broken, with their fields: no values.
    pub fn rules(&self) -> String {
        let told = self.refusals.iter().take(MAX_CAUSES);
        let told = told.map(|refusal| format!("{} {}", refusal.rule(), refusal.field()));
        told.collect::<Vec<_>>().join(", ")
    }

    /// The `AdmissionReview` that answers the request `uid`, as JSON.
    pub fn answer(&self, uid: &str) -> serde_json::Result<Vec<u8>> {
        let allowed = self.refusals.is_empty();
        // An empty patch is refused by the API server, and one beside a refusal has no use.
        let patch = self.patch.as_ref().filter(|it| allowed && !it.is_empty());
        let patch = patch.map(serde_json::to_vec).transpose()?;
        serde_json::to_vec(&Answer {
            api_version: API_VERSION,
            kind: KIND,
            response: Response {
                uid,
                allowed,
                status: self.status(),
                patch_type: patch.as_ref().map(|_| "JSONPatch"),
                patch: patch.map(|patch| STANDARD.encode(patch)),
                warnings: &self.warnings,
            },
        })
    }

    fn status(&self) -> Option<Status> {
        // The first kind of trouble speaks for all: an invalid object before policy before ours.
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
        let passes = code != StatusCode::INTERNAL_SERVER_ERROR && code.is_server_error();
        Some(Status {
            code: code.as_u16(),
            reason,
            message: self.message(),
            details: Details {
                causes: causes.collect(),
                retry_after_seconds: passes.then_some(RETRY_AFTER_SECONDS),
            },
        })
    }
}

/// What is said of one: a value and the rule, of which neither is endless.
fn text(refusal: &Refusal) -> String {
    cut(&refusal.to_string(), MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wfe_model::rules::Violation;

    use super::*;

    fn response(verdict: &Verdict) -> Value {
        let answer = verdict.answer("u1").expect("JSON");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "u1");
        answer["response"].clone()
    }

    #[test]
    fn an_allowed_review_repeats_the_uid_and_nothing_else() {
        let response = response(&Verdict::allow());
        assert_eq!(response, json!({ "uid": "u1", "allowed": true }));
    }

    #[test]
    fn a_denial_has_code_reason_and_every_cause_in_its_message() {
        let refusals = [Violation::EngineMissing, Violation::ImageMissing].map(Refusal::Spec);
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
        let causes = status["details"]["causes"].as_array().expect("causes");
        assert_eq!(causes.len(), 2);
        assert_eq!(causes[0]["field"], "spec.executionEngine");
    }

    #[test]
    fn an_invalid_object_says_so_before_policy_and_our_own_trouble() {
        let policy = Refusal::ServiceAccountNotAllowed("no".to_owned());
        let trouble = Refusal::Unavailable {
            field: "spec.workflowRef",
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
        assert_eq!(code(&[&trouble, &policy]), 403);
        assert_eq!(code(&[&trouble]), 503);
        let again = &response(&Verdict::refuse(vec![trouble]))["status"]["details"];
        assert_eq!(again["retryAfterSeconds"], 1);
    }

    #[test]
    fn much_that_is_wrong_is_told_in_part_and_counted() {
        let missing = |number: usize| Refusal::Malformed {
            field: format!("spec.f{number}"),
            message: "x".repeat(10_000),
        };
        let verdict = Verdict::refuse((0..1_000).map(missing).collect());
        let message = verdict.message();
        assert!(message.len() < 32 * 1_300 && message.ends_with("; and 968 more"));
        let causes = response(&verdict)["status"]["details"]["causes"].clone();
        assert_eq!(causes.as_array().map(Vec::len), Some(32));
    }

    #[test]
    fn a_patch_goes_out_in_base64_with_its_type_and_an_empty_one_not_at_all() {
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
    fn a_warning_is_cut_to_what_the_api_server_passes_on() {
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
    fn what_is_no_review_of_ours_is_told_in_a_sentence() {
        let review = |api_version: &str, request: Value| json!({ "apiVersion": api_version, "kind": "AdmissionReview", "request": request });
        let request = json!({ "uid": "u1", "operation": "CREATE", "resource": { "group": "kubernaut.ai", "version": "v1alpha1", "resource": "workflowexecutions" }, "strange": [1] });
        let changed = |key: &str, value: Value| {
            let mut request = request.clone();
            request[key] = value;
            review("admission.k8s.io/v1", request)
        };
        let said = |body: &Value| {
            let body = body.to_string();
            let read = Request::read(body.as_bytes(), "CREATE workflowexecutions");
            read.map(|it| it.uid).map_err(|error| error.to_string())
        };
        assert_eq!(said(&changed("dryRun", json!(true))), Ok("u1".to_owned()));
        for (body, words) in [
            (
                json!("text"),
                "the body is no AdmissionReview: invalid type",
            ),
            (
                review("admission.k8s.io/v1", Value::Null),
                "the body is no AdmissionReview",
            ),
            (
                review("admission.k8s.io/v1beta1", request.clone()),
                "of \"admission.k8s.io/v1beta1\": this webhook reads",
            ),
            (changed("uid", json!("")), "no request.uid"),
            (changed("uid", json!("u".repeat(129))), "no request.uid"),
            (
                changed("operation", json!("UPDATE")),
                "judges CREATE workflowexecutions, and was asked about UPDATE workflowexecutions",
            ),
            (
                changed("subResource", json!("status")),
                "about CREATE workflowexecutions/status",
            ),
            (
                changed("resource", json!({ "group": "", "resource": "pods" })),
                "about CREATE pods: mend the rules",
            ),
        ] {
            let said = said(&body).expect_err(words);
            assert!(said.contains(words), "{said}");
        }
    }
}
