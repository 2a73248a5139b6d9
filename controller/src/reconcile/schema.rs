//! Detects a CRD that is older than the controller. The API server silently drops the fields that
//! such a CRD does not have. The controller then stops all writes and becomes unready, until a dry
//! run of the incomplete write shows that every field is kept.

use std::time::{Duration, Instant};

use kube::api::PostParams;
use kube::{Api, ResourceExt};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_process::endpoints::Readiness;

/// Why the controller does not write.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// The response to a write does not have a field that was sent.
    #[error(
        "the API server dropped {field}: the CRD is older than this controller, apply the CRD of this version"
    )]
    Outdated {
        /// Path in the object.
        field: String,
    },
    /// Writes are stopped until the CRD is updated.
    #[error("writes are stopped because the CRD is older than this controller")]
    Halted,
}

/// Interval of the dry runs that check for a newer CRD.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// State of the served CRD.
pub struct Schema {
    readiness: Readiness,
    outdated: Mutex<Option<Outdated>>,
}

/// A write that lost a field, kept for the dry runs.
struct Outdated {
    sent: WorkflowExecution,
    probed_at: Instant,
}

impl Schema {
    /// Readiness condition, named in the response of `/readyz` while it does not hold.
    pub const CRD_UP_TO_DATE: &str = "crd-up-to-date";

    /// The CRD counts as up to date until a write loses a field.
    pub fn new(readiness: Readiness) -> Self {
        readiness.set(Self::CRD_UP_TO_DATE, true);
        Self {
            readiness,
            outdated: Mutex::new(None),
        }
    }

    fn outdated(&self) -> MutexGuard<'_, Option<Outdated>> {
        self.outdated.lock()
    }

    /// Fails while writes are stopped. Probes for a newer CRD every [`PROBE_INTERVAL`]; `api`
    /// returns the API of an object's namespace.
    pub(super) async fn check_write_allowed(
        &self,
        api: impl FnOnce(&WorkflowExecution) -> Api<WorkflowExecution>,
    ) -> Result<(), SchemaError> {
        let sent = match self.outdated().as_mut() {
            None => return Ok(()),
            Some(outdated) if outdated.probed_at.elapsed() < PROBE_INTERVAL => {
                return Err(SchemaError::Halted);
            }
            Some(outdated) => {
                outdated.probed_at = Instant::now();
                outdated.sent.clone()
            }
        };
        match is_kept(&api(&sent), &sent).await {
            Ok(true) => {
                tracing::info!("CRD is up to date, resuming writes");
                *self.outdated() = None;
                self.readiness.set(Self::CRD_UP_TO_DATE, true);
                Ok(())
            }
            Ok(false) => Err(SchemaError::Halted),
            Err(error) => {
                tracing::warn!(%error, "probing the CRD failed, retrying");
                Err(SchemaError::Halted)
            }
        }
    }

    /// Compares the sent object with the stored one; stops all writes if a field was lost.
    pub(super) fn check_stored(
        &self,
        sent: &WorkflowExecution,
        stored: &WorkflowExecution,
    ) -> Result<(), SchemaError> {
        let Some(field) = lost_field(&json(&sent.status), &json(&stored.status), ".status") else {
            return Ok(());
        };
        tracing::error!(
            field,
            "the API server dropped a field, stopping all writes: the CRD is older than this controller"
        );
        *self.outdated() = Some(Outdated {
            sent: sent.clone(),
            probed_at: Instant::now(),
        });
        self.readiness.set(Self::CRD_UP_TO_DATE, false);
        Err(SchemaError::Outdated { field })
    }
}

/// Returns whether a dry run keeps every field of the sent status. If the object is gone, the
/// answer is yes: the next write detects an old CRD again.
async fn is_kept(api: &Api<WorkflowExecution>, sent: &WorkflowExecution) -> kube::Result<bool> {
    let Some(mut current) = api.get_opt(&sent.name_any()).await? else {
        return Ok(true);
    };
    let stored = current.status.take().unwrap_or_default();
    current.status.clone_from(&sent.status);
    // CEL rules forbid changes of a final phase and of a clearance, so the dry run sends the stored
    // ones.
    if let Some(status) = &mut current.status {
        status.phase = stored.phase.or(status.phase);
        status.block_clearance = stored.block_clearance;
    }
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let stored = api
        .replace_status(&sent.name_any(), &dry_run, &current)
        .await?;
    Ok(lost_field(&json(&current.status), &json(&stored.status), "").is_none())
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// The path of the first field of `sent` that `stored` does not have.
fn lost_field(sent: &Value, stored: &Value, path: &str) -> Option<String> {
    match (sent, stored) {
        (Value::Object(sent), Value::Object(stored)) => sent.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match stored.get(key) {
                None => Some(path),
                Some(stored) => lost_field(value, stored, &path),
            }
        }),
        (Value::Array(sent), Value::Array(stored)) if sent.len() == stored.len() => sent
            .iter()
            .zip(stored)
            .find_map(|(sent, stored)| lost_field(sent, stored, path)),
        (Value::Object(_) | Value::Array(_), _) => Some(path.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    /// BR-WE-014
    #[rstest]
    #[case(json!({ "a": 1 }), json!({ "a": 2, "b": 3 }), None)]
    #[case(json!({ "a": { "b": 1 } }), json!({ "a": {} }), Some(".status.a.b"))]
    #[case(json!({ "a": { "b": 1 } }), json!({}), Some(".status.a"))]
    #[case(json!([{ "a": 1 }]), json!([{}]), Some(".status.a"))]
    #[case(json!({ "a": [1, 2] }), json!({ "a": [1] }), Some(".status.a"))]
    fn lost_field_of_incomplete_response_is_named(
        #[case] sent: Value,
        #[case] stored: Value,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(lost_field(&sent, &stored, ".status").as_deref(), expected);
    }
}
