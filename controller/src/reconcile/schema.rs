//! Whether the API server keeps what is stored: a CRD that is older than this program drops the
//! fields that it does not know, silently. Then nothing is written any more, and the process is not
//! ready, until a dry run of what was lost says that it would be kept.

use std::time::{Duration, Instant};

use kube::api::PostParams;
use kube::{Api, ResourceExt};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_process::endpoints::Readiness;

/// Why nothing is written.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// A field that was stored is not there: the CRD does not know it.
    #[error(
        "the API server dropped {field}: its CRD is older than this program, apply the one that comes with it"
    )]
    Outdated {
        /// Path in the object.
        field: String,
    },
    /// Until a newer CRD is there.
    #[error("nothing is written while the CRD is older than this program")]
    Halted,
}

/// How often it is tried whether a newer CRD has come.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// What is known of the served CRD.
pub struct Schema {
    readiness: Readiness,
    outdated: Mutex<Option<Outdated>>,
}

/// What was lost, to try again with.
struct Outdated {
    sent: WorkflowExecution,
    tried: Instant,
}

impl Schema {
    /// The readiness condition that this sets.
    pub const CURRENT: &str = "CustomResourceDefinition is as new as this program";

    /// Current, until something is dropped.
    pub fn new(readiness: Readiness) -> Self {
        readiness.set(Self::CURRENT, true);
        Self {
            readiness,
            outdated: Mutex::new(None),
        }
    }

    fn outdated(&self) -> MutexGuard<'_, Option<Outdated>> {
        self.outdated.lock()
    }

    /// Whether anything may be written now. With an old CRD it is tried now and then whether a newer
    /// one has come; `api` is that of a namespace.
    pub(super) async fn permits(
        &self,
        api: impl FnOnce(&WorkflowExecution) -> Api<WorkflowExecution>,
    ) -> Result<(), SchemaError> {
        let sent = match self.outdated().as_mut() {
            None => return Ok(()),
            Some(outdated) if outdated.tried.elapsed() < TRY_AGAIN => {
                return Err(SchemaError::Halted);
            }
            Some(outdated) => {
                outdated.tried = Instant::now();
                outdated.sent.clone()
            }
        };
        match is_kept(&api(&sent), &sent).await {
            Ok(true) => {
                tracing::info!("the CRD is as new as this program now: it goes on");
                *self.outdated() = None;
                self.readiness.set(Self::CURRENT, true);
                Ok(())
            }
            Ok(false) => Err(SchemaError::Halted),
            Err(error) => {
                tracing::warn!(%error, "it cannot be tried whether the CRD is newer");
                Err(SchemaError::Halted)
            }
        }
    }

    /// Compares what was sent with what was stored.
    pub(super) fn check(
        &self,
        sent: &WorkflowExecution,
        stored: &WorkflowExecution,
    ) -> Result<(), SchemaError> {
        let Some(field) = lost(&json(&sent.status), &json(&stored.status), ".status") else {
            return Ok(());
        };
        tracing::error!(
            field,
            "the API server dropped a field: its CRD is older than this program; nothing is written until a newer one is applied"
        );
        *self.outdated() = Some(Outdated {
            sent: sent.clone(),
            tried: Instant::now(),
        });
        self.readiness.set(Self::CURRENT, false);
        Err(SchemaError::Outdated { field })
    }
}

/// Whether every field of the status that was sent would be kept now; where the object is gone, the
/// next write will tell.
async fn is_kept(api: &Api<WorkflowExecution>, sent: &WorkflowExecution) -> kube::Result<bool> {
    let Some(mut current) = api.get_opt(&sent.name_any()).await? else {
        return Ok(true);
    };
    let stored = current.status.take().unwrap_or_default();
    current.status.clone_from(&sent.status);
    // A final phase and a clearance stay, whatever was sent before them.
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
    Ok(lost(&json(&current.status), &json(&stored.status), "").is_none())
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// The first field of `sent` that `stored` does not have.
fn lost(sent: &Value, stored: &Value, path: &str) -> Option<String> {
    match (sent, stored) {
        (Value::Object(sent), Value::Object(stored)) => sent.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match stored.get(key) {
                None => Some(path),
                Some(stored) => lost(value, stored, &path),
            }
        }),
        (Value::Array(sent), Value::Array(stored)) if sent.len() == stored.len() => sent
            .iter()
            .zip(stored)
            .find_map(|(sent, stored)| lost(sent, stored, path)),
        (Value::Object(_) | Value::Array(_), _) => Some(path.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!({ "a": 1 }), json!({ "a": 2, "b": 3 }), None)]
    #[case(json!({ "a": { "b": 1 } }), json!({ "a": {} }), Some(".status.a.b"))]
    #[case(json!({ "a": { "b": 1 } }), json!({}), Some(".status.a"))]
    #[case(json!([{ "a": 1 }]), json!([{}]), Some(".status.a"))]
    #[case(json!({ "a": [1, 2] }), json!({ "a": [1] }), Some(".status.a"))]
    fn what_the_api_server_dropped_is_named(
        #[case] sent: Value,
        #[case] stored: Value,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(lost(&sent, &stored, ".status").as_deref(), expected);
    }
}
