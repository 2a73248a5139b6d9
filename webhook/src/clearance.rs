//! Clearing a block (BR-WE-013): a person asks by `status.blockClearanceRequest`, and what is stored
//! is `status.blockClearance` with who asked, by the API server's word, when, and why.
//!
//! What the CRD's rules and the policies hold without this handler: nothing is stored unstamped,
//! and what is stored stays.

use jiff::{SignedDuration, Timestamp};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde_json::json;
use wfe_model::rules::JsonObject;
use wfe_model::workflow_execution::{
    BlockClearance, BlockClearanceRequest, CLEAR_REASON_MAX, CLEAR_REASON_MIN, ClearMethod,
};

use crate::refusal::Refusal;
use crate::review::{Request, UserInfo, Verdict};

/// The API server may ask twice about one write, the second time with the stamp in it.
const SAME_REVIEW: SignedDuration = SignedDuration::from_secs(10);

#[derive(Default, Deserialize)]
struct Parts {
    #[serde(default)]
    status: Option<JsonObject<Status>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    block_clearance: Option<BlockClearance>,
    #[serde(default)]
    block_clearance_request: Option<BlockClearanceRequest>,
}

/// Judges an update of the status at `now`.
pub fn clear(request: &Request<'_>, now: Timestamp) -> Verdict {
    let status = |parts: Parts| parts.status.unwrap_or_default().0;
    let stamped = || {
        let (old, new) = (
            request.old_object().map(status)?,
            request.object().map(status)?,
        );
        stamp(&old, &new, request.user(), now)
    };
    match stamped() {
        Ok(None) => Verdict::allow(),
        Ok(Some(clearance)) => Verdict {
            patch: Some(patch(&clearance)),
            ..Verdict::allow()
        },
        Err(refusal) => Verdict::refuse(vec![refusal]),
    }
}

/// The clearance that is asked for, if one is.
fn stamp(
    old: &Status,
    new: &Status,
    user: &UserInfo,
    now: Timestamp,
) -> Result<Option<BlockClearance>, Refusal> {
    let asked = new.block_clearance_request.as_ref();
    if let Some(there) = &old.block_clearance {
        if asked.is_none() && new.block_clearance.as_ref() == Some(there) {
            return Ok(None);
        }
        return Err(Refusal::AlreadyCleared {
            by: there.cleared_by.clone(),
            at: there.cleared_at.0.to_string(),
        });
    }
    if let Some(written) = &new.block_clearance {
        let ours = asked.is_none() && is_stamp(written, user, now);
        return if ours {
            Ok(None)
        } else {
            Err(Refusal::ClearanceForged)
        };
    }
    let Some(asked) = asked else {
        return Ok(None);
    };
    if old.phase.as_deref() != Some("Failed") {
        let phase = old.phase.as_deref().unwrap_or("not begun");
        return Err(Refusal::NothingToClear {
            phase: phase.to_owned(),
        });
    }
    let reason = asked.clear_reason.trim();
    let length = reason.chars().count();
    if !(CLEAR_REASON_MIN..=CLEAR_REASON_MAX).contains(&length) {
        let found = reason.chars().take(CLEAR_REASON_MAX).collect();
        return Err(Refusal::ClearReason { found });
    }
    Ok(Some(BlockClearance {
        cleared_by: user.username.clone(),
        cleared_by_uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
        cleared_at: Time(now),
        clear_reason: reason.to_owned(),
        clear_method: ClearMethod::KubernetesAdmissionWebhook,
    }))
}

/// Whether it is what this handler has just answered to the same user.
fn is_stamp(written: &BlockClearance, user: &UserInfo, now: Timestamp) -> bool {
    let uid = written.cleared_by_uid.as_deref().unwrap_or_default();
    (written.cleared_by.as_str(), uid) == (user.username.as_str(), user.uid.as_str())
        && now.duration_since(written.cleared_at.0).abs() <= SAME_REVIEW
}

fn patch(clearance: &BlockClearance) -> Patch {
    let pointer = |field| PointerBuf::from_tokens(["status", field]);
    Patch(vec![
        PatchOperation::Remove(RemoveOperation {
            path: pointer("blockClearanceRequest"),
        }),
        PatchOperation::Add(AddOperation {
            path: pointer("blockClearance"),
            value: json!(clearance),
        }),
    ])
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::Value;
    use serde_json::value::{RawValue, to_raw_value};

    use super::*;

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().expect("a time")
    }

    fn raw(status: &Value) -> Box<RawValue> {
        to_raw_value(&json!({ "metadata": { "name": "a" }, "status": status })).expect("JSON")
    }

    /// What ann hears when she makes the one status out of the other.
    fn judge(old: &Value, new: &Value) -> Verdict {
        let (old, new) = (raw(old), raw(new));
        let request = json!({ "uid": "u", "userInfo": { "username": "ann", "uid": "uid-ann" } });
        let request = request.to_string();
        let mut request: Request = serde_json::from_str(&request).expect("a request");
        (request.object, request.old_object) = (Some(&*new), Some(&*old));
        clear(&request, now())
    }

    fn asks(reason: &str) -> Value {
        json!({ "phase": "Failed", "blockClearanceRequest": { "clearReason": reason } })
    }

    fn cleared(by: &str, uid: &str, at: &str) -> Value {
        json!({ "phase": "Failed", "blockClearance": {
            "clearedBy": by, "clearedByUid": uid, "clearedAt": at, "clearReason": "looked at it", "clearMethod": "KubernetesAdmissionWebhook",
        } })
    }

    #[test]
    fn br_we_013_a_request_becomes_who_asked_when_and_why() {
        let failed = json!({ "phase": "Failed", "duration": "1s" });
        let mut status = asks("  the disk was full, it is not now ");
        let verdict = judge(&failed, &status);
        assert_eq!(verdict.refusals, []);
        let mut object = json!({ "status": status });
        json_patch::patch(&mut object, &verdict.patch.expect("a patch")).expect("it fits");
        status = object["status"].clone();
        let expected = json!({ "phase": "Failed", "blockClearance": {
            "clearedBy": "ann", "clearedByUid": "uid-ann", "clearedAt": NOW,
            "clearReason": "the disk was full, it is not now", "clearMethod": "KubernetesAdmissionWebhook",
        } });
        assert_eq!(status, expected);
        let again = judge(&failed, &status);
        assert_eq!(
            again,
            Verdict::allow(),
            "the second time there is nothing to do"
        );
    }

    #[rstest]
    #[case::short(json!({ "phase": "Failed" }), asks("ok"), "ClearReason")]
    #[case::blank(json!({ "phase": "Failed" }), asks(&" ".repeat(20)), "ClearReason")]
    #[case::long(json!({ "phase": "Failed" }), asks(&"x".repeat(1_025)), "ClearReason")]
    #[case::without_reason(json!({ "phase": "Failed" }), json!({ "phase": "Failed", "blockClearanceRequest": {} }), "ClearReason")]
    #[case::succeeded(json!({ "phase": "Succeeded" }), json!({ "phase": "Succeeded", "blockClearanceRequest": { "clearReason": "just because I can" } }), "NothingToClear")]
    #[case::phase_written_too(json!({ "phase": "Running" }), asks("just because I can"), "NothingToClear")]
    #[case::not_begun(json!({}), asks("just because I can"), "NothingToClear")]
    #[case::malformed(json!({ "phase": "Failed" }), json!({ "phase": "Failed", "blockClearanceRequest": { "clearReason": 1 } }), "Malformed")]
    #[case::forged(json!({ "phase": "Failed" }), cleared("bob", "uid-bob", NOW), "ClearanceForged")]
    #[case::forged_time(json!({ "phase": "Failed" }), cleared("ann", "uid-ann", "2025-01-01T00:00:00Z"), "ClearanceForged")]
    #[case::forged_uid(json!({ "phase": "Failed" }), cleared("ann", "uid-of-another-ann", NOW), "ClearanceForged")]
    #[case::changed(
        cleared("bob", "", NOW),
        cleared("ann", "uid-ann", NOW),
        "AlreadyCleared"
    )]
    #[case::removed(cleared("bob", "", NOW), json!({ "phase": "Failed" }), "AlreadyCleared")]
    #[case::twice(
        cleared("bob", "", NOW),
        asks("another reason, much better"),
        "AlreadyCleared"
    )]
    fn br_we_013_what_is_refused(#[case] old: Value, #[case] new: Value, #[case] rule: &str) {
        let verdict = judge(&old, &new);
        let rules: Vec<_> = verdict.refusals.iter().map(Refusal::rule).collect();
        assert_eq!(rules, [rule], "{}", verdict.message());
        assert_eq!(verdict.patch, None);
    }

    #[test]
    fn br_we_013_what_leaves_the_clearance_alone_is_not_ours() {
        let mut finished = cleared("bob", "", NOW);
        finished["duration"] = json!("3s");
        assert_eq!(judge(&cleared("bob", "", NOW), &finished), Verdict::allow());
        assert_eq!(
            judge(&json!({}), &json!({ "phase": "Running" })),
            Verdict::allow()
        );
    }
}
