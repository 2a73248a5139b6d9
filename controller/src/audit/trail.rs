//! `wfe-controller audit`: a trail as a table that reads as a story.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use url::Url;
use wfe_model::audit::EventType;
use wfe_model::text::cut;
use wfe_peers::audit::{HttpSink, HttpSinkOptions, TrailEvent, read_file};

/// A line is read at a glance: the events have the whole sentences.
const LONGEST: usize = 160;

/// Where a trail is.
pub enum Source {
    /// An audit file, with those that were renamed.
    File(PathBuf),
    /// Data Storage.
    DataStorage(Box<HttpSinkOptions>),
}

impl Source {
    /// What is no URL is a file.
    pub fn of(text: &str, ca: Option<PathBuf>, token_file: Option<PathBuf>) -> Self {
        match Url::parse(text) {
            Ok(url) if url.has_host() => Self::DataStorage(Box::new(HttpSinkOptions {
                url,
                ca,
                token_file,
                deadline: None,
            })),
            _ => Self::File(PathBuf::from(text)),
        }
    }
}

/// Prints what happened, the oldest first.
pub async fn print(source: Source, correlation_id: &str, out: &mut impl Write) -> Result<()> {
    let mut events = match source {
        Source::File(path) => {
            let read = read_file(&path, correlation_id);
            read.with_context(|| format!("read {}", path.display()))?
        }
        Source::DataStorage(options) => HttpSink::new(*options)?.trail(correlation_id).await?,
    };
    if events.is_empty() {
        bail!("nothing is known of {correlation_id}");
    }
    in_order(&mut events);
    writeln!(out, "{}", table(&events).trim_fmt())?;
    Ok(())
}

/// By the second. What came of an earlier request in a second is told before what a later one made
/// of it.
fn in_order(events: &mut [TrailEvent]) {
    let object = |event: &TrailEvent| (event.namespace.clone(), event.resource_id.clone());
    let mut began = HashMap::new();
    for event in events.iter() {
        let second = event.event_timestamp.as_second();
        let first = began.entry(object(event)).or_insert(second);
        *first = second.min(*first);
    }
    events.sort_by_key(|event| {
        let (at, began) = (event.event_timestamp, began.get(&object(event)).copied());
        (at.as_second(), began, at)
    });
}

fn table(events: &[TrailEvent]) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["TIME", "WORKFLOWEXECUTION", "WHAT", "DETAILS"]);
    for event in events {
        let (what, details) = story(event);
        let name = format!("{}/{}", event.namespace, event.resource_id);
        table.add_row([time(event.event_timestamp), name, what, details].map(|it| printable(&it)));
    }
    table
}

/// In UTC: to the second, which is what statuses have.
fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%d %H:%M:%SZ")
        .to_string()
}

/// What happened, and what there is to know about it.
fn story(event: &TrailEvent) -> (String, String) {
    let text = |name: &str| event.detail(name).unwrap_or_default();
    let failed = event.event_outcome == "failure";
    let (what, details) = match EventType::named(&event.event_type) {
        Some(EventType::SelectionCompleted) if failed => ("skipped", why(event)),
        Some(EventType::SelectionCompleted) => (
            "selected",
            format!(
                "{} {} for {} ({})",
                text("workflow_id"),
                text("workflow_version"),
                text("target_resource"),
                engine(event)
            ),
        ),
        Some(EventType::ExecutionStarted) => ("created", text("execution_name").to_owned()),
        Some(EventType::WorkflowStarted) => ("running", String::new()),
        Some(EventType::WorkflowCompleted) => ("succeeded", format!("after {}", text("duration"))),
        Some(EventType::WorkflowFailed) => ("failed", why(event)),
        Some(EventType::BlockCleared) => (
            "cleared",
            format!("by {}: {}", event.actor_id, text("clear_reason")),
        ),
        None => (event.event_type.as_str(), event.event_outcome.clone()),
    };
    (what.to_owned(), details)
}

fn why(event: &TrailEvent) -> String {
    let details = event.event_data.get("error_details");
    let text = |name: &str| details?.get(name)?.as_str();
    let after = event.detail("duration").map(|it| format!("after {it}: "));
    let code = text("code").unwrap_or("no reason is known");
    let message = text("message").map(|it| format!(": {it}"));
    format!(
        "{}{code}{}",
        after.unwrap_or_default(),
        message.unwrap_or_default()
    )
}

/// Where the sink drops the engine, it is among the parameters.
fn engine(event: &TrailEvent) -> &str {
    let parameters = event.event_data.get("parameters");
    let parameter = parameters.and_then(|it| it.get("KUBERNAUT_EXECUTION_ENGINE")?.as_str());
    event
        .detail("execution_engine")
        .or(parameter)
        .unwrap_or("?")
}

/// A trail has what workflows and users have written: none of it is for the terminal.
fn printable(text: &str) -> String {
    let printed = |it: char| if it.is_control() { '\u{fffd}' } else { it };
    cut(text.trim(), LONGEST).chars().map(printed).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(event_type: EventType, name: &str, at: &str, data: &serde_json::Value) -> TrailEvent {
        serde_json::from_value(json!({
            "event_type": event_type.as_str(), "event_timestamp": at, "event_outcome": "success",
            "namespace": "prod", "resource_id": name, "correlation_id": "rr-1", "event_data": data,
        }))
        .expect("an event")
    }

    #[test]
    fn br_audit_005_a_trail_is_told_in_order_also_within_a_second() {
        let selected = EventType::SelectionCompleted;
        let duration = json!({ "duration": "4s" });
        let mut events = [
            event(selected, "later", "2026-01-01T00:00:04.1Z", &json!({})),
            event(
                EventType::WorkflowCompleted,
                "first",
                "2026-01-01T00:00:04.7Z",
                &duration,
            ),
            event(selected, "first", "2026-01-01T00:00:00.7Z", &json!({})),
        ];
        in_order(&mut events);
        let told: Vec<_> = events
            .iter()
            .map(|it| (it.resource_id.as_str(), story(it).0))
            .collect();
        let expected = [
            ("first", "selected"),
            ("first", "succeeded"),
            ("later", "selected"),
        ];
        assert_eq!(told, expected.map(|(name, what)| (name, what.to_owned())));
        assert_eq!(story(&events[1]).1, "after 4s");
    }

    #[test]
    fn br_audit_005_nothing_in_a_trail_reaches_the_terminal_as_a_command() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
