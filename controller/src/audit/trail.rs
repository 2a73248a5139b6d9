//! `wfe-controller audit`: prints an audit trail as a table.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use url::Url;
use wfe_model::audit::EventType;
use wfe_model::text::cut;
use wfe_peers::audit::{self, HttpSink, TrailEvent, Verified, read_file};
use wfe_peers::data_storage::DataStorage;
use wfe_peers::service::{PlainHttp, ServiceOptions};
use wfe_peers::token::BearerToken;

/// Maximum number of characters in a cell; the stored events have the full text. A message ends with
/// what to do, as when the workflow may run again.
const MAX_CELL: usize = 600;

/// A query that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(35);

/// Source of an audit trail.
pub enum Source {
    /// An audit file, together with its rotated files.
    File(PathBuf),
    /// Data Storage.
    DataStorage(Box<ServiceOptions>),
}

impl Source {
    /// A text that is not a URL with a host names a file.
    pub fn of(
        text: &str,
        ca: Option<PathBuf>,
        token_file: Option<PathBuf>,
        plain_http: bool,
    ) -> Self {
        match Url::parse(text) {
            Ok(url) if url.has_host() => Self::DataStorage(Box::new(ServiceOptions {
                url,
                ca,
                token: token_file.map(BearerToken::File),
                plain_http: PlainHttp::flag("--data-storage-plain-http", plain_http),
            })),
            _ => Self::File(PathBuf::from(text)),
        }
    }
}

/// Prints the events, oldest first.
pub async fn print(source: Source, correlation_id: &str, out: &mut impl Write) -> Result<()> {
    let mut events = match source {
        Source::File(path) => {
            let read = read_file(&path, correlation_id);
            read.with_context(|| format!("read {}", path.display()))?
        }
        Source::DataStorage(options) => {
            let server = Arc::new(DataStorage::new(*options)?);
            HttpSink::new(server, DEADLINE)
                .trail(correlation_id)
                .await?
        }
    };
    if events.is_empty() {
        bail!("no audit events with correlation id \"{correlation_id}\"");
    }
    sort(&mut events);
    writeln!(out, "{}", table(&events).trim_fmt())?;
    Ok(())
}

/// Verifies the chain of an audit file and prints its end; one line must have the hash `expected`.
pub fn verify(source: &Source, expected: Option<&str>, out: &mut impl Write) -> Result<()> {
    let Source::File(path) = source else {
        bail!("--verify takes an audit file: Data Storage has no chain");
    };
    let verified = audit::verify(path, expected).context("the audit trail is broken")?;
    let Verified {
        lines,
        files,
        unchained,
        last,
    } = verified;
    let last = last.map_or_else(|| "none".to_owned(), |it| it.to_string());
    writeln!(
        out,
        "unbroken: {lines} events in {files} file(s); hash of the last line: {last}"
    )?;
    if unchained > 0 {
        writeln!(
            out,
            "not chained, by an older version: the first {unchained}"
        )?;
    }
    Ok(())
}

/// Sorts by second; within a second the events of the WorkflowExecution that began first come
/// first.
fn sort(events: &mut [TrailEvent]) {
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
        let (what, details) = describe(event);
        let name = format!("{}/{}", event.namespace, event.resource_id);
        table.add_row([time(event.event_timestamp), name, what, details].map(|it| printable(&it)));
    }
    table
}

/// In UTC with a resolution of seconds, as in statuses.
fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%d %H:%M:%SZ")
        .to_string()
}

/// The transition and its details.
fn describe(event: &TrailEvent) -> (String, String) {
    let text = |name: &str| event.detail(name).unwrap_or_default();
    let failed = event.event_outcome == "failure";
    let (what, details) = match EventType::named(&event.event_type) {
        Some(EventType::SelectionCompleted) if failed => ("skipped", failure(event)),
        Some(EventType::SelectionCompleted) => (
            "selected",
            format!(
                "{} {} for {} ({}){}",
                text("workflow_id"),
                text("workflow_version"),
                text("target_resource"),
                engine(event),
                requester(event),
            ),
        ),
        Some(EventType::ExecutionStarted) => ("created", execution(event).to_owned()),
        Some(EventType::WorkflowStarted) => ("running", String::new()),
        Some(EventType::WorkflowCompleted) => ("succeeded", format!("after {}", text("duration"))),
        Some(EventType::WorkflowFailed) => ("failed", failure(event)),
        Some(EventType::BlockCleared) => (
            "cleared",
            format!("by {}: {}", event.actor_id, text("clear_reason")),
        ),
        None => (event.event_type.as_str(), event.event_outcome.clone()),
    };
    (what.to_owned(), details)
}

fn failure(event: &TrailEvent) -> String {
    let details = event.event_data.get("error_details");
    let text = |name: &str| details?.get(name)?.as_str();
    let after = event.detail("duration").map(|it| format!("after {it}: "));
    let code = text("code").unwrap_or("unknown reason");
    let message = text("message").map(|it| format!(": {it}"));
    format!(
        "{}{code}{}",
        after.unwrap_or_default(),
        message.unwrap_or_default()
    )
}

/// The Job or PipelineRun, as `Job/namespace/name`.
fn execution(event: &TrailEvent) -> &str {
    parameter(event, "KUBERNAUT_EXECUTION").unwrap_or("?")
}

fn requester(event: &TrailEvent) -> String {
    let user = parameter(event, "KUBERNAUT_REQUESTED_BY");
    user.map_or_else(String::new, |it| format!(", requested by {it}"))
}

fn parameter<'a>(event: &'a TrailEvent, name: &str) -> Option<&'a str> {
    event.event_data.get("parameters")?.get(name)?.as_str()
}

/// Data Storage drops the field of the engine, so events carry the engine as a parameter as well.
fn engine(event: &TrailEvent) -> &str {
    event
        .detail("execution_engine")
        .or_else(|| parameter(event, "KUBERNAUT_EXECUTION_ENGINE"))
        .unwrap_or("?")
}

/// Replaces control characters, which workflows and users may have written, so that the terminal
/// does not interpret them.
fn printable(text: &str) -> String {
    let printed = |it: char| if it.is_control() { '\u{fffd}' } else { it };
    cut(text.trim(), MAX_CELL).chars().map(printed).collect()
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

    /// BR-AUDIT-005
    #[test]
    fn trail_with_events_in_one_second_is_sorted() {
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
        sort(&mut events);
        let printed: Vec<_> = events
            .iter()
            .map(|it| (it.resource_id.as_str(), describe(it).0))
            .collect();
        let expected = [
            ("first", "selected"),
            ("first", "succeeded"),
            ("later", "selected"),
        ];
        assert_eq!(
            printed,
            expected.map(|(name, what)| (name, what.to_owned()))
        );
        assert_eq!(describe(&events[1]).1, "after 4s");
    }

    /// BR-AUDIT-005
    #[test]
    fn printable_with_control_characters_replaces_them() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
