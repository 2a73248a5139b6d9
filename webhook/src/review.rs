//! The envelope: `AdmissionReview` in and out (admission.k8s.io/v1).
//!
//! Own types: what is asked is read loosely, so that a strange object is a denial with the right
//! uid; the patch goes out in base64, as the API says.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wfe_model::rules::Violation;

/// Longest warning the API server passes on whole.
const MAX_WARNING: usize = 256;

/// What comes in.
#[derive(Debug, Deserialize)]
pub struct Review {
    /// The question.
    pub request: Request,
}

/// The question.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// To be repeated in the answer.
    pub uid: String,
    /// CREATE, UPDATE, …
    #[serde(default)]
    pub operation: String,
    /// Namespace of the object.
    #[serde(default)]
    pub namespace: String,
    /// The object as it would be stored.
    #[serde(default)]
    pub object: Value,
}

impl Request {
    /// A part of the object; null where it is not there.
    pub fn part(&self, pointer: &str) -> &Value {
        self.object.pointer(pointer).unwrap_or(&Value::Null)
    }
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What to change.
    pub patch: Option<Patch>,
    /// Why it is refused, if it is.
    pub denial: Option<Denial>,
    /// For the person who asked.
    pub warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Denial {
    /// 403 for policy, 422 for an invalid object.
    pub code: StatusCode,
    /// A word for metrics and machines.
    pub reason: &'static str,
    /// Everything that is wrong.
    pub causes: Vec<Cause>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cause {
    /// The class, as the API names it.
    pub reason: &'static str,
    /// What was found and what is allowed.
    pub message: String,
    /// Where.
    pub field: String,
}

impl From<&Violation> for Cause {
    fn from(violation: &Violation) -> Self {
        Self {
            reason: "FieldValueInvalid",
            message: violation.to_string(),
            field: violation.field(),
        }
    }
}

impl Verdict {
    /// Let in, unchanged.
    pub fn allow() -> Self {
        Self::default()
    }

    /// Refused because the object is invalid.
    pub fn invalid(causes: Vec<Cause>) -> Self {
        let denial = Denial {
            code: StatusCode::UNPROCESSABLE_ENTITY,
            reason: "Invalid",
            causes,
        };
        Self {
            denial: Some(denial),
            ..Self::default()
        }
    }

    /// Refused for one reason.
    pub fn denied(code: StatusCode, reason: &'static str, field: &str, message: String) -> Self {
        let cause = Cause {
            reason,
            message,
            field: field.to_owned(),
        };
        let denial = Denial {
            code,
            reason,
            causes: vec![cause],
        };
        Self {
            denial: Some(denial),
            ..Self::default()
        }
    }

    /// Refused for `violations`.
    pub fn violates(violations: &[Violation]) -> Self {
        Self::invalid(violations.iter().map(Cause::from).collect())
    }

    /// Adds a warning.
    #[must_use]
    pub fn warn(mut self, warning: &str) -> Self {
        self.warnings
            .push(warning.chars().take(MAX_WARNING).collect());
        self
    }

    /// The `AdmissionReview` that answers the request `uid`.
    pub fn answer(&self, uid: &str) -> Value {
        // An empty patch is refused by the API server.
        let patch = self.patch.as_ref().filter(|patch| !patch.is_empty());
        let response = Response {
            uid,
            allowed: self.denial.is_none(),
            status: self.denial.as_ref().map(|denial| {
                json!({
                    "code": denial.code.as_u16(),
                    "reason": denial.reason,
                    "message": denial.message(),
                    "details": { "causes": denial.causes },
                })
            }),
            patch_type: patch.map(|_| "JSONPatch"),
            patch: patch.map(|patch| STANDARD.encode(json!(patch).to_string())),
            warnings: &self.warnings,
        };
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
    }
}

impl Denial {
    /// Everything in one line: kubectl shows only this.
    pub fn message(&self) -> String {
        let causes: Vec<_> = self
            .causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        causes.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_review_repeats_the_uid_and_nothing_else() {
        assert_eq!(
            Verdict::allow().answer("u1")["response"],
            json!({ "uid": "u1", "allowed": true })
        );
    }

    #[test]
    fn a_denial_has_code_reason_and_every_cause_in_its_message() {
        let violations = [Violation::EngineMissing, Violation::ImageMissing];
        let answer = Verdict::violates(&violations).answer("u2");
        let status = &answer["response"]["status"];
        assert_eq!(
            (&status["code"], &status["reason"]),
            (&json!(422), &json!("Invalid"))
        );
        let message = status["message"].as_str().expect("a message");
        for violation in &violations {
            assert!(message.contains(&violation.sentence()), "{message}");
        }
        assert_eq!(
            status["details"]["causes"][0]["field"],
            "spec.executionEngine"
        );
        assert_eq!(
            status["details"]["causes"].as_array().map(Vec::len),
            Some(2)
        );
    }

    #[test]
    fn a_patch_goes_out_in_base64_with_its_type_and_an_empty_one_not_at_all() {
        let patch: Patch =
            serde_json::from_value(json!([{ "op": "add", "path": "/a", "value": 1 }]))
                .expect("a patch");
        let answer = Verdict {
            patch: Some(patch.clone()),
            ..Verdict::default()
        }
        .answer("u3");
        let sent = STANDARD
            .decode(answer["response"]["patch"].as_str().expect("text"))
            .expect("base64");
        assert_eq!(
            serde_json::from_slice::<Patch>(&sent).expect("a patch"),
            patch
        );
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        let empty = Verdict {
            patch: Some(Patch(Vec::new())),
            ..Verdict::default()
        }
        .answer("u4");
        assert_eq!(empty["response"], json!({ "uid": "u4", "allowed": true }));
    }

    #[test]
    fn a_warning_is_cut_to_what_the_api_server_passes_on() {
        assert_eq!(
            Verdict::allow().warn(&"ü".repeat(400)).warnings[0]
                .chars()
                .count(),
            256
        );
    }
}
