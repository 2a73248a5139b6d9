//! `wfe-controller audit`: a trail as a table that reads as a story.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use url::Url;
use wfe_model::audit::EventType;
use wfe_model::rules::cut;
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
            let read = read_file(&path).with_context(|| format!("read {}", path.display()))?;
            let ours = read
                .into_iter()
                .filter(|it| it.correlation_id == correlation_id);
            ours.collect()
        }
        Source::DataStorage(options) => HttpSink::new(*options)?.trail(correlation_id).await?,
    };
    if events.is_empty() {
        bail!("nothing is known of {correlation_id}");
    }
    events.sort_by_key(|event: &TrailEvent| event.event_timestamp);
    writeln!(out, "{}", table(&events).trim_fmt())?;
    Ok(())
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
