//! Whether the API server keeps what is stored: a CRD that is older than this program drops the
//! fields that it does not know, silently. Then nothing is written, and the process is not ready.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_process::endpoints::Readiness;

use super::ActError;
use crate::execution::decide::Effect;

/// How often it is tried whether a newer CRD has come.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// What is known of the served CRD.
pub struct Schema {
    readiness: Readiness,
    outdated: Mutex<Option<Instant>>,
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

    /// Whether a write makes sense now: always, but with an old CRD only a status now and then, to
    /// see whether a newer one has come.
    pub(super) fn permits(&self, effect: &Effect) -> Result<(), ActError> {
        let mut outdated = self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        match (outdated.as_mut(), effect) {
            (None, _) => Ok(()),
            (Some(tried), Effect::Store(_)) if tried.elapsed() >= TRY_AGAIN => {
                *tried = Instant::now();
                Ok(())
            }
            (Some(_), _) => Err(ActError::Halted),
        }
    }

    /// Compares what was sent with what was stored.
    pub(super) fn check(
        &self,
        sent: &WorkflowExecution,
        stored: &WorkflowExecution,
    ) -> Result<(), ActError> {
        let lost = lost(&json(&sent.status), &json(&stored.status), ".status");
        let mut outdated = self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        *outdated = lost.as_ref().map(|_| Instant::now());
        self.readiness.set(Self::CURRENT, lost.is_none());
        match lost {
            None => Ok(()),
            Some(field) => {
                tracing::error!(
                    field,
                    "the API server dropped a field: its CRD is older than this program; nothing is written until a newer one is applied"
                );
                Err(ActError::SchemaOutdated { field })
            }
        }
    }
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
        (Value::Object(_), _) => Some(path.to_owned()),
        (Value::Array(sent), Value::Array(stored)) => sent
            .iter()
            .zip(stored)
            .find_map(|(sent, stored)| lost(sent, stored, path)),
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
    fn what_the_api_server_dropped_is_named(
        #[case] sent: Value,
        #[case] stored: Value,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(lost(&sent, &stored, ".status").as_deref(), expected);
    }
}
