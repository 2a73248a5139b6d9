//! Audit events in a file, one JSON object a line; for one writer at a time.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use wfe_model::audit::{AuditEvent, EventData};

use super::{AuditSink, SinkUnavailable};

/// What makes an event the same event: its id, derived from the uid; where it has none, its content
/// is derived from the stored object, so that these are always the same for it.
fn identity(event: &AuditEvent) -> String {
    match &event.event_data {
        EventData::Execution(data) => data.event_id.to_string(),
        EventData::BlockCleared(data) => {
            let (namespace, name) = (&event.namespace, &event.resource_id);
            format!("{namespace}/{name} cleared at {}", data.cleared_at)
        }
    }
}

struct Trail {
    out: Box<dyn Out>,
    known: HashSet<String>,
}

/// A place for lines.
trait Out: Send {
    /// Writes whole lines; durable on return.
    fn append(&mut self, lines: &[u8]) -> io::Result<()>;
}

/// A file, and how much of it is whole.
struct Whole {
    file: File,
    length: u64,
}

impl Out for Whole {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        // Half a line of a write that failed would spoil the next one.
        self.file.set_len(self.length)?;
        self.file.write_all(lines)?;
        self.file.sync_data()?;
        self.length += lines.len() as u64;
        Ok(())
    }
}

impl Out for io::Stdout {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.write_all(lines)?;
        self.flush()
    }
}

/// See the module.
pub struct JsonlSink(Arc<Mutex<Trail>>);

impl JsonlSink {
    /// Opens `path`, made where it is missing, or standard output for `-`. A last line that a
    /// crash left unfinished is cut off: its event was never acknowledged.
    pub fn open(path: &Path) -> io::Result<Self> {
        let trail = if path == Path::new("-") {
            Trail {
                out: Box::new(io::stdout()),
                known: HashSet::new(),
            }
        } else {
            open_file(path)?
        };
        Ok(Self(Arc::new(Mutex::new(trail))))
    }
}

fn open_file(path: &Path) -> io::Result<Trail> {
    let mut text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let whole = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |last| last + 1);
    if whole < text.len() {
        tracing::warn!(path = %path.display(), "the last line is unfinished and was cut off");
        text.truncate(whole);
    }
    let events = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let known = events
        .map(|line| Ok(identity(&serde_json::from_slice::<AuditEvent>(line)?)))
        .collect::<Result<_, serde_json::Error>>()
        .map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line is no audit event: {error}"),
            )
        })?;
    Ok(Trail {
        out: Box::new(Whole {
            file,
            length: whole as u64,
        }),
        known,
    })
}

impl Trail {
    fn record(&mut self, events: &[AuditEvent]) -> io::Result<()> {
        let mut lines = Vec::new();
        let mut new = HashSet::new();
        for event in events {
            let identity = identity(event);
            if !self.known.contains(&identity) && new.insert(identity) {
                serde_json::to_writer(&mut lines, event)?;
                lines.push(b'\n');
            }
        }
        if !lines.is_empty() {
            self.out.append(&lines)?;
            self.known.extend(new);
        }
        Ok(())
    }
}

impl AuditSink for JsonlSink {
    fn record<'a>(
        &'a self,
        events: &'a [AuditEvent],
    ) -> BoxFuture<'a, Result<(), SinkUnavailable>> {
        let (trail, events) = (self.0.clone(), events.to_vec());
        let write = move || {
            trail
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .record(&events)
        };
        async {
            // The disk may be slow: not on the runtime's threads.
            let written = tokio::task::spawn_blocking(write)
                .await
                .map_err(io::Error::other);
            written.flatten().map_err(|error| SinkUnavailable {
                reason: format!("write the audit file: {error}"),
            })
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use wfe_model::audit::{BlockClearedData, EventType, Outcome};

    use super::*;

    fn event(name: &str, second: i8) -> AuditEvent {
        let when = format!("2026-01-01T00:00:{second:02}Z")
            .parse()
            .expect("a timestamp");
        let event_type = EventType::BlockCleared;
        AuditEvent {
            version: "1.0".to_owned(),
            event_type,
            event_timestamp: when,
            event_category: event_type.category(),
            event_action: event_type.action().to_owned(),
            event_outcome: Outcome::Success,
            actor_type: "user".to_owned(),
            actor_id: "jane".to_owned(),
            resource_type: "WorkflowExecution".to_owned(),
            resource_id: name.to_owned(),
            namespace: "prod".to_owned(),
            correlation_id: "rr-1".to_owned(),
            event_data: EventData::BlockCleared(BlockClearedData {
                event_type,
                workflow_name: name.to_owned(),
                clear_reason: "looked at it".to_owned(),
                cleared_at: when,
                previous_state: "Blocked".to_owned(),
                new_state: "Running".to_owned(),
            }),
        }
    }

    fn lines(path: &Path) -> Vec<AuditEvent> {
        let text = std::fs::read_to_string(path).expect("a file");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("an event"))
            .collect()
    }

    #[tokio::test]
    async fn br_audit_005_each_event_is_written_once_also_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let sink = JsonlSink::open(&path).expect("opened");
        sink.record(&[event("a", 1), event("a", 1), event("b", 1)])
            .await
            .expect("written");
        sink.record(&[event("b", 1), event("b", 2)])
            .await
            .expect("written");
        drop(sink);
        let sink = JsonlSink::open(&path).expect("opened again");
        sink.record(&[event("a", 1), event("c", 1)])
            .await
            .expect("written");
        assert_eq!(
            lines(&path),
            [event("a", 1), event("b", 1), event("b", 2), event("c", 1)]
        );
    }

    #[tokio::test]
    async fn br_audit_005_an_unfinished_last_line_is_cut_off_and_its_event_written_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        JsonlSink::open(&path)
            .expect("opened")
            .record(&[event("a", 1), event("b", 1)])
            .await
            .expect("written");
        let text = std::fs::read(&path).expect("a file");
        std::fs::write(&path, &text[..text.len() - 10]).expect("torn");
        let sink = JsonlSink::open(&path).expect("opened again");
        sink.record(&[event("a", 1), event("b", 1)])
            .await
            .expect("written");
        assert_eq!(lines(&path), [event("a", 1), event("b", 1)]);
    }

    #[test]
    fn a_file_that_is_no_audit_trail_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("other.txt");
        std::fs::write(&path, "something else\n").expect("written");
        assert!(JsonlSink::open(&path).is_err());
        assert_eq!(
            std::fs::read_to_string(&path).expect("untouched"),
            "something else\n"
        );
    }
}
