//! Clears a block (BR-WE-013): replaces `status.blockClearanceRequest` by `status.blockClearance`,
//! which records the user from the API server's `userInfo`, the time, and the reason.
//!
//! Without this handler the CRD's CEL rules and the `ValidatingAdmissionPolicy` objects still deny
//! a stored `blockClearanceRequest`, a `blockClearance` in another user's name, and any change to a
//! stored `blockClearance`.

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

/// Reinvocation: the API server may send the same write again, with the `blockClearance` that this
/// handler added. A `blockClearance` of the same user is accepted if its `clearedAt` is this close
/// to the present time.
const REINVOCATION_WINDOW: SignedDuration = SignedDuration::from_secs(10);

#[derive(Default, Deserialize)]
struct ObjectFields {
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

/// Reviews an update of the status subresource; `now` becomes `clearedAt`.
pub fn clear(request: &Request<'_>, now: Timestamp) -> Verdict {
    let status = |object: ObjectFields| object.status.unwrap_or_default().0;
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

/// The clearance to store, if `new` requests one. Denies every other change of the clearance.
fn stamp(
    old: &Status,
    new: &Status,
    user: &UserInfo,
    now: Timestamp,
) -> Result<Option<BlockClearance>, Refusal> {
    let requested = new.block_clearance_request.as_ref();
    if let Some(stored) = &old.block_clearance {
        if requested.is_none() && new.block_clearance.as_ref() == Some(stored) {
            return Ok(None);
        }
        return Err(Refusal::AlreadyCleared {
            by: stored.cleared_by.clone(),
            at: stored.cleared_at.0.to_string(),
        });
    }
    if let Some(written) = &new.block_clearance {
        let is_reinvocation = requested.is_none() && is_stamp(written, user, now);
        return if is_reinvocation {
            Ok(None)
        } else {
            Err(Refusal::ClearanceForged)
        };
    }
    let Some(requested) = requested else {
        return Ok(None);
    };
    if old.phase.as_deref() != Some("Failed") {
        let phase = old.phase.as_deref().unwrap_or("unset");
        return Err(Refusal::NothingToClear {
            phase: phase.to_owned(),
        });
    }
    let reason = requested.clear_reason.trim();
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

/// Whether `written` is the clearance that this handler has just added for the same user.
fn is_stamp(written: &BlockClearance, user: &UserInfo, now: Timestamp) -> bool {
    let uid = written.cleared_by_uid.as_deref().unwrap_or_default();
    (written.cleared_by.as_str(), uid) == (user.username.as_str(), user.uid.as_str())
        && now.duration_since(written.cleared_at.0).abs() <= REINVOCATION_WINDOW
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

    /// The verdict on an update from status `old` to status `new` by user `ann`.
    fn review_update(old: &Value, new: &Value) -> Verdict {
        let (old, new) = (raw(old), raw(new));
        let request = json!({ "uid": "u", "userInfo": { "username": "ann", "uid": "uid-ann" } });
        let request = request.to_string();
        let mut request: Request = serde_json::from_str(&request).expect("a request");
        (request.object, request.old_object) = (Some(&*new), Some(&*old));
        clear(&request, now())
    }

    fn requesting(reason: &str) -> Value {
        json!({ "phase": "Failed", "blockClearanceRequest": { "clearReason": reason } })
    }

    fn cleared(by: &str, uid: &str, at: &str) -> Value {
        json!({ "phase": "Failed", "blockClearance": {
            "clearedBy": by, "clearedByUid": uid, "clearedAt": at, "clearReason": "looked at it", "clearMethod": "KubernetesAdmissionWebhook",
        } })
    }

    /// BR-WE-013
    #[test]
    fn clear_request_on_failed_execution_is_stamped_with_user_time_and_reason() {
        let failed = json!({ "phase": "Failed", "duration": "1s" });
        let mut status = requesting("  the disk was full, it is not now ");
        let verdict = review_update(&failed, &status);
        assert_eq!(verdict.refusals, []);
        let mut object = json!({ "status": status });
        json_patch::patch(&mut object, &verdict.patch.expect("a patch"))
            .expect("the patch applies");
        status = object["status"].clone();
        let expected = json!({ "phase": "Failed", "blockClearance": {
            "clearedBy": "ann", "clearedByUid": "uid-ann", "clearedAt": NOW,
            "clearReason": "the disk was full, it is not now", "clearMethod": "KubernetesAdmissionWebhook",
        } });
        assert_eq!(status, expected);
        let again = review_update(&failed, &status);
        assert_eq!(again, Verdict::allow(), "the reinvocation changes nothing");
    }

    /// BR-WE-013
    #[rstest]
    #[case::short(json!({ "phase": "Failed" }), requesting("ok"), "ClearReason")]
    #[case::blank(json!({ "phase": "Failed" }), requesting(&" ".repeat(20)), "ClearReason")]
    #[case::long(json!({ "phase": "Failed" }), requesting(&"x".repeat(1_025)), "ClearReason")]
    #[case::without_reason(json!({ "phase": "Failed" }), json!({ "phase": "Failed", "blockClearanceRequest": {} }), "ClearReason")]
    #[case::succeeded(json!({ "phase": "Succeeded" }), json!({ "phase": "Succeeded", "blockClearanceRequest": { "clearReason": "just because I can" } }), "NothingToClear")]
    #[case::phase_written_too(json!({ "phase": "Running" }), requesting("just because I can"), "NothingToClear")]
    #[case::phase_unset(json!({}), requesting("just because I can"), "NothingToClear")]
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
        requesting("another reason, much better"),
        "AlreadyCleared"
    )]
    fn clear_invalid_update_is_denied(#[case] old: Value, #[case] new: Value, #[case] rule: &str) {
        let verdict = review_update(&old, &new);
        let rules: Vec<_> = verdict.refusals.iter().map(Refusal::rule).collect();
        assert_eq!(rules, [rule], "{}", verdict.message());
        assert_eq!(verdict.patch, None);
    }

    /// BR-WE-013: the controller's own status writes pass.
    #[test]
    fn clear_update_without_clearance_change_is_allowed() {
        let mut finished = cleared("bob", "", NOW);
        finished["duration"] = json!("3s");
        assert_eq!(
            review_update(&cleared("bob", "", NOW), &finished),
            Verdict::allow()
        );
        assert_eq!(
            review_update(&json!({}), &json!({ "phase": "Running" })),
            Verdict::allow()
        );
    }
}
