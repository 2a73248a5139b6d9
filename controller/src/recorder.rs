//! Records Kubernetes Events: they are published beside the passes from a bounded queue, and a repeated
//! one is counted in the first. An Event that cannot be published is logged and not retried.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wfe_core::names::MANAGER;
use wfe_model::text::in_full;

use crate::metrics::Metrics;

/// Type of an Event that needs no attention.
pub const NORMAL: &str = "Normal";
/// Type of an Event that may need attention.
pub const WARNING: &str = "Warning";

/// Events that wait to be published.
const QUEUE: usize = 1_024;
/// Events that are published at the same time.
const CONCURRENCY: usize = 4;
/// Maximum of the API server.
const MAX_NOTE_BYTES: usize = 1024;
/// A name of 253 characters has no room for the time of an Event.
const MAX_NAME_PREFIX: usize = 230;
const DEADLINE: Duration = Duration::from_secs(5);
/// Time for the Events that are left at the end.
const DRAIN: Duration = Duration::from_millis(500);
/// For how long a repetition is counted in the first Event, which the API server deletes after an
/// hour by default.
const SERIES: Duration = Duration::from_mins(50);

/// What an Event says.
#[derive(Clone, Debug)]
pub struct Happening {
    /// The object that it happened to.
    pub regarding: ObjectReference,
    /// [`NORMAL`] or [`WARNING`].
    pub type_: &'static str,
    /// Reason in `CamelCase`.
    pub reason: String,
    /// What happened, and what to do.
    pub note: String,
}

/// Takes Events. Never waits: when the queue is full, an Event is dropped and counted.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<(Happening, Timestamp)>,
    metrics: Metrics,
}

impl Recorder {
    /// A recorder, and the publisher that must run for it.
    pub fn new(client: &Client, metrics: Metrics) -> (Self, Publisher) {
        let (queue, recorded) = mpsc::channel(QUEUE);
        let publisher = Publisher {
            recorded,
            published: Published {
                client: client.clone(),
                instance: std::env::var("HOSTNAME").unwrap_or_else(|_| MANAGER.to_owned()),
                series: Mutex::default(),
            },
        };
        (Self { queue, metrics }, publisher)
    }

    /// Records an Event that happens now.
    pub fn record(&self, mut happening: Happening) {
        happening.note = fit(&happening.note, MAX_NOTE_BYTES);
        let reason = happening.reason.clone();
        if self.queue.try_send((happening, Timestamp::now())).is_err() {
            self.metrics.event_dropped();
            tracing::warn!(reason, "too many Events, one is dropped");
        }
    }
}

/// Publishes recorded Events.
pub struct Publisher {
    recorded: mpsc::Receiver<(Happening, Timestamp)>,
    published: Published,
}

impl Publisher {
    /// Publishes Events until `end` is cancelled, then for a moment those that are left.
    pub async fn run(&mut self, end: &CancellationToken) {
        let publish = async |(happening, at)| self.published.publish(happening, at).await;
        let recorded = received(&mut self.recorded).take_until(end.cancelled());
        recorded.for_each_concurrent(CONCURRENCY, &publish).await;
        self.recorded.close();
        let rest = received(&mut self.recorded).for_each_concurrent(CONCURRENCY, publish);
        // The next leader must not wait for Events.
        let _ = tokio::time::timeout(DRAIN, rest).await;
    }
}

fn received<T>(receiver: &mut mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::poll_fn(|context| receiver.poll_recv(context))
}

/// Published Events.
struct Published {
    client: Client,
    /// The process, as the API server wants it beside the controller's name.
    instance: String,
    series: Mutex<HashMap<Key, Series>>,
}

/// Uid of the object, reason and note: equal in repetitions.
type Key = (Option<String>, String, String);

fn key(happening: &Happening) -> Key {
    let uid = happening.regarding.uid.clone();
    (uid, happening.reason.clone(), happening.note.clone())
}

/// An Event and its repetitions.
struct Series {
    name: String,
    count: i32,
    began: Instant,
}

impl Published {
    async fn publish(&self, happening: Happening, at: Timestamp) {
        let reason = happening.reason.clone();
        let publishing = async {
            match self.repetition(&happening) {
                Some((name, count)) if self.repeat(&happening, &name, count, at).await? => Ok(()),
                _ => self.create(&happening, at).await,
            }
        };
        match tokio::time::timeout(DEADLINE, publishing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = in_full(&error);
                tracing::warn!(reason, error, "publishing an Event failed");
            }
            Err(_) => tracing::warn!(reason, "publishing an Event timed out"),
        }
    }

    /// Name of the first Event and the number of repetitions with this one, if it is one.
    fn repetition(&self, happening: &Happening) -> Option<(String, i32)> {
        let mut series = self.series.lock();
        series.retain(|_, it| it.began.elapsed() < SERIES);
        let first = series.get_mut(&key(happening))?;
        first.count += 1;
        Some((first.name.clone(), first.count))
    }

    /// Returns whether the first Event still exists.
    async fn repeat(
        &self,
        happening: &Happening,
        name: &str,
        count: i32,
        at: Timestamp,
    ) -> kube::Result<bool> {
        let series = json!({ "series": { "count": count, "lastObservedTime": MicroTime(at) } });
        let (patch, parameters) = (Patch::Merge(series), PatchParams::default());
        match self.api(happening).patch(name, &parameters, &patch).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, happening: &Happening, at: Timestamp) -> kube::Result<()> {
        let name = happening.regarding.name.as_deref().unwrap_or_default();
        let prefix: String = name.chars().take(MAX_NAME_PREFIX).collect();
        let prefix = prefix.trim_end_matches(['.', '-']);
        // As client-go names Events: a list is in the order of time.
        let name = format!("{prefix}.{:x}", at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: happening.regarding.namespace.clone(),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(at)),
            note: Some(happening.note.clone()),
            reason: Some(happening.reason.clone()),
            regarding: Some(happening.regarding.clone()),
            reporting_controller: Some(MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(happening.type_.to_owned()),
            ..Event::default()
        };
        let parameters = PostParams::default();
        self.api(happening).create(&parameters, &event).await?;
        // Others tell of a change, which does not repeat itself.
        if happening.type_ != WARNING {
            return Ok(());
        }
        let first = Series {
            name,
            count: 1,
            began: Instant::now(),
        };
        self.series.lock().insert(key(happening), first);
        Ok(())
    }

    fn api(&self, happening: &Happening) -> Api<Event> {
        let namespace = happening.regarding.namespace.as_deref();
        Api::namespaced(self.client.clone(), namespace.unwrap_or_default())
    }
}

/// Shortens `note` to at most `maximum` bytes. A command at its end stays whole: the text before it
/// is cut.
fn fit(note: &str, maximum: usize) -> String {
    if note.len() <= maximum {
        return note.to_owned();
    }
    let commands = ["kubectl ", "wfe-controller "];
    let command = commands.iter().filter_map(|it| note.rfind(it)).max();
    let command = command.map_or("", |at| &note[at..]);
    let command = if command.len() > maximum / 2 {
        ""
    } else {
        command
    };
    let room = maximum - command.len() - "… ".len();
    let text = &note[..note.floor_char_boundary(room)];
    format!("{text}… {command}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use wfe_core::clearing;

    use super::*;

    #[test]
    fn fit_long_note_keeps_its_command_whole() {
        let command = clearing::command("prod", &"n".repeat(253));
        let note = format!("It failed ({}): {command}", "ü".repeat(2000));
        let fitted = fit(&note, MAX_NOTE_BYTES);
        assert!(fitted.len() <= MAX_NOTE_BYTES, "{} bytes", fitted.len());
        assert!(
            fitted.starts_with("It failed (ü") && fitted.ends_with(&command),
            "{fitted}"
        );
        assert_eq!(fit("short", MAX_NOTE_BYTES), "short");
        assert_eq!(fit(&"x".repeat(2000), 10), "xxxxxx…");
    }
}
