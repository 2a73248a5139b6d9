//! What a stored event says, compared with what the event to deliver says. Somebody who can write to a
//! sink could store another event with the [identity](wfe_model::audit::Identity) of one that is to
//! come, so that it would be taken for delivered.

use serde_json::{Map, Value, json};
use wfe_model::audit::{AuditEvent, Identity};

use super::chain::Fingerprint;

/// Fields that are compared, to recognise a stored event: those that every sink keeps as they were sent.
const FIELDS: [&str; 2] = ["event_outcome", "actor_id"];
const DETAILS: [&str; 9] = [
    "workflow_id",
    "workflow_version",
    "target_resource",
    "phase",
    "container_image",
    "execution_name",
    "failure_reason",
    "clear_reason",
    "parameters",
];

/// The fields of an event that are compared.
#[derive(Debug)]
pub(super) struct Content(Value);

impl Content {
    /// The content of an event.
    pub(super) fn of(event: &AuditEvent) -> Self {
        Self::read(&serde_json::to_value(event).unwrap_or_default())
    }

    /// The content of an event as JSON.
    pub(super) fn read(event: &Value) -> Self {
        let details = event.get("event_data").unwrap_or(&Value::Null);
        let picked = pick(event, &FIELDS)
            .into_iter()
            .chain(pick(details, &DETAILS));
        Self(Value::Object(picked.collect()))
    }

    /// Whether a stored event has this content, or has it with [hashed parameters](hash_parameters).
    pub(super) fn matches(&self, stored: &Value) -> bool {
        let Self(stored) = Self::read(stored);
        let is_hashed = || {
            let mut hashed = self.0.clone();
            hash_values(hashed.get_mut("parameters"));
            stored == hashed
        };
        stored == self.0 || is_hashed()
    }
}

/// Tells that the sink has another event in the place of one that is to be delivered.
pub(super) fn report_other(event: &Identity) {
    tracing::error!(
        event_type = event.event_type,
        namespace = event.namespace,
        name = event.name,
        at = %event.timestamp,
        "the audit sink has an event of this type, object and time that says something else: sending ours, too"
    );
}

fn pick(object: &Value, keys: &[&str]) -> Map<String, Value> {
    let pair = |key: &&str| Some(((*key).to_owned(), object.get(key)?.clone()));
    keys.iter().filter_map(pair).collect()
}

/// Replaces the values of an event's parameters by their hashes, which a sink may have room for.
pub(super) fn hash_parameters(event: &mut Value) {
    hash_values(event.pointer_mut("/event_data/parameters"));
}

fn hash_values(parameters: Option<&mut Value>) {
    for value in parameters
        .and_then(Value::as_object_mut)
        .into_iter()
        .flatten()
    {
        let text = value.1.as_str().unwrap_or_default();
        let hash = Fingerprint::of(text.as_bytes());
        *value.1 = json!(format!("sha256:{hash}"));
    }
}
