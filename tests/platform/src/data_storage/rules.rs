//! What Data Storage accepts beyond its `OpenAPI` document: age of events, lengths of columns.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

const OLDEST: SignedDuration = SignedDuration::from_hours(7 * 24);
const NEWEST: SignedDuration = SignedDuration::from_mins(60);

/// Columns that are shorter than the schema allows: the database fails on longer values.
const COLUMNS: [(&str, usize); 7] = [
    ("actor_id", 255),
    ("resource_id", 255),
    ("namespace", 253),
    ("actor_type", 50),
    ("resource_type", 100),
    ("severity", 20),
    ("version", 10),
];

/// Keys of `event_data` that the server decodes and stores. A newer server also stores
/// `execution_engine`.
const EXECUTION_KEYS: [&str; 16] = [
    "event_type",
    "workflow_id",
    "workflow_version",
    "target_resource",
    "phase",
    "container_image",
    "execution_name",
    "started_at",
    "completed_at",
    "duration",
    "failure_reason",
    "failure_message",
    "failed_task_name",
    "error_details",
    "pipelinerun_name",
    "parameters",
];
const CLEARANCE_KEYS: [&str; 6] = [
    "event_type",
    "workflow_name",
    "clear_reason",
    "cleared_at",
    "previous_state",
    "new_state",
];

/// Why a batch that the `OpenAPI` document accepts is rejected as a whole, in the words of the real
/// service.
pub(super) fn refusal(events: &[Value], now: Timestamp) -> Option<String> {
    let outside = |event: &&Value| {
        instant(event).is_none_or(|at| {
            let age = now.duration_since(at);
            age > OLDEST || -age > NEWEST
        })
    };
    let index = events.iter().position(|event| outside(&event))?;
    Some(format!(
        "event at index {index}: invalid timestamp: server time is {now}"
    ))
}

pub(super) fn instant(event: &Value) -> Option<Timestamp> {
    event.get("event_timestamp")?.as_str()?.parse().ok()
}

/// Whether the real database would fail on the event.
pub(super) fn exceeds_columns(event: &Value) -> bool {
    let too_long = |(column, most): &(&str, usize)| {
        let text = event.get(*column).and_then(Value::as_str);
        text.is_some_and(|text| text.chars().count() > *most)
    };
    COLUMNS.iter().any(too_long) || has_nul(event)
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(values) => values
            .iter()
            .any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}

/// `event_data` as stored and returned by queries.
pub(super) fn stored_data(data: &Map<String, Value>, keeps_engine: bool) -> Map<String, Value> {
    let cleared =
        data.get("event_type").and_then(Value::as_str) == Some("workflowexecution.block.cleared");
    let keys: &[&str] = if cleared {
        &CLEARANCE_KEYS
    } else {
        &EXECUTION_KEYS
    };
    let stored = data.iter().filter(|(key, _)| {
        keys.contains(&key.as_str()) || keeps_engine && *key == "execution_engine"
    });
    let mut stored: Map<_, _> = stored
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for key in ["started_at", "completed_at", "cleared_at"] {
        if let Some(Value::String(text)) = stored.get_mut(key)
            && let Ok(at) = text.parse::<Timestamp>()
        {
            *text = Timestamp::from_second(at.as_second())
                .unwrap_or(at)
                .to_string();
        }
    }
    stored
}
