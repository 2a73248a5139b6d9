//! Audit events in a file, one JSON object a line; for one writer at a time.
//!
//! A file that has grown to its limit is renamed, to the first free `<file>.<number>`, and a new one
//! begun. Nothing is ever deleted: that is for who keeps the trail.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use wfe_model::audit::{AuditEvent, Identity};

use super::trail::Known;
use super::{AuditSink, NotRecorded, TrailEvent, Unasked};

/// A file that is larger gives way to a new one.
const LARGEST: u64 = 100 << 20;
/// How much later than their own moment events may be said to be written: clocks differ.
const SKEW: Duration = Duration::from_hours(1);

/// Where the lines go.
enum Out {
    /// Durable, and asked what it has.
    File(Trail),
    /// Whoever reads it knows events again by their ids.
    Stdout(io::Stdout),
}

/// A file, and how much of it is whole.
struct Trail {
    path: PathBuf,
    file: File,
    length: u64,
    largest: u64,
    /// A write has failed: what is behind the whole lines is ours to cut off.
    torn: bool,
}

/// See the module.
pub struct JsonlSink(Arc<Mutex<Out>>);

impl JsonlSink {
    /// Opens `path`, made where it is missing, or standard output for `-`. A last line that a
    /// crash left unfinished is cut off: its event was never acknowledged.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, LARGEST)
    }

    fn with_limit(path: &Path, largest: u64) -> io::Result<Self> {
        let out = if path == Path::new("-") {
            Out::Stdout(io::stdout())
        } else {
            Out::File(Trail::open(path, largest)?)
        };
        Ok(Self(Arc::new(Mutex::new(out))))
    }

    /// The disk may be slow: not on the runtime's threads.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Out) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let out = self.0.clone();
        let work = move || work(&mut out.lock().unwrap_or_else(PoisonError::into_inner));
        let worked = tokio::task::spawn_blocking(work).await;
        worked.map_err(io::Error::other).flatten()
    }
}

impl Trail {
    fn open(path: &Path, largest: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)?;
        file.try_lock()
            .map_err(|error| io::Error::other(format!("another process writes to it: {error}")))?;
        // What an earlier process has written counts from now on: it must be on disk.
        file.sync_all()?;
        sync_folder(path)?;
        let length = whole_lines(&mut file)?;
        if length == 0 && !begins_as_ours(&mut file)? {
            return Err(no_event("it begins with something else"));
        }
        if let Some(line) = first_line(&mut file, length)? {
            read_line(&line)?;
        }
        if length < file.metadata()?.len() {
            tracing::warn!(path = %path.display(), "the last line is unfinished and is cut off");
            file.set_len(length)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            largest,
            torn: false,
        })
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.check()?;
        if self.length > 0 && self.length + lines.len() as u64 > self.largest {
            self.rotate()?;
        }
        let written = self
            .file
            .write_all(lines)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.length += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.torn = true;
                Err(error)
            }
        }
    }

    /// That the file is as we left it, or is made so.
    fn check(&mut self) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if metadata.nlink() == 0 {
            // Somebody has removed it.
            *self = Self::open(&self.path, self.largest)?;
        } else if self.torn {
            // Half a line would spoil the next one.
            self.file.set_len(self.length)?;
            self.torn = false;
        } else if metadata.len() != self.length {
            return Err(io::Error::other("somebody else has changed it"));
        }
        Ok(())
    }

    /// Gives the file another name and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let number = numbers(&self.path)?.last().map_or(1, |last| last + 1);
        match std::fs::rename(&self.path, rotated_path(&self.path, number)) {
            // An earlier try came so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        *self = Self::open(&self.path, self.largest)?;
        Ok(())
    }

    /// Which of `wanted` are there, the newest file first, and no older one than need be.
    fn find(&self, wanted: &HashSet<Identity>) -> io::Result<HashSet<Identity>> {
        let mut found = HashSet::new();
        let oldest = wanted.iter().map(|it| it.timestamp).min();
        for (file, length) in files(&self.path)? {
            let last_written = Timestamp::try_from(file.metadata()?.modified()?);
            let too_old = |oldest: Timestamp| {
                last_written
                    .as_ref()
                    .is_ok_and(|written| written.saturating_add(SKEW).is_ok_and(|it| it < oldest))
            };
            if found.len() == wanted.len() || oldest.is_some_and(too_old) {
                break;
            }
            for line in BufReader::new(file.take(length)).split(b'\n') {
                match read_line(&line?) {
                    Ok(identity) if wanted.contains(&identity) => drop(found.insert(identity)),
                    Ok(_) => {}
                    Err(error) => tracing::warn!(path = %self.path.display(), %error, "left out"),
                }
            }
        }
        Ok(found)
    }
}

/// The files of a trail, the newest first, and how much of each is whole lines.
fn files(path: &Path) -> io::Result<Vec<(File, u64)>> {
    let numbers = numbers(path)?;
    let older = numbers.into_iter().rev().map(|it| rotated_path(path, it));
    let open = |path: PathBuf| {
        let mut file = File::open(path)?;
        let length = whole_lines(&mut file)?;
        file.rewind()?;
        Ok((file, length))
    };
    std::iter::once(path.to_owned())
        .chain(older)
        .map(open)
        .collect()
}

/// Every event of a correlation in `path` and in the files that were renamed, as written.
pub fn read_file(path: &Path, correlation_id: &str) -> io::Result<Vec<TrailEvent>> {
    let mut events = Vec::new();
    for (file, length) in files(path)?.into_iter().rev() {
        for line in BufReader::new(file.take(length)).split(b'\n') {
            match serde_json::from_slice::<TrailEvent>(&line?) {
                Ok(event) if event.correlation_id == correlation_id => events.push(event),
                Ok(_) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "a line is left out"),
            }
        }
    }
    Ok(events)
}

/// Numbers of the files that were renamed, in their order; some may have been removed.
fn numbers(path: &Path) -> io::Result<Vec<u32>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder(path))? {
        let other = entry?.file_name();
        let number = other
            .to_str()
            .and_then(|it| it.strip_prefix(&*name)?.strip_prefix('.'));
        numbers.extend(number.and_then(|it| it.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn folder(path: &Path) -> &Path {
    let folder = path.parent().filter(|it| *it != Path::new(""));
    folder.unwrap_or(Path::new("."))
}

fn rotated_path(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// A new file is there after a crash when its folder is on disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// How long the part of a file is that ends with the last line end.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    const STEP: u64 = 1 << 16;
    let mut end = file.metadata()?.len();
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        Read::by_ref(file)
            .take(end - start)
            .read_to_end(&mut block)?;
        if let Some(last) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// The first line of a file: one that does not begin as a trail is not ours to write to.
fn first_line(file: &mut File, length: u64) -> io::Result<Option<Vec<u8>>> {
    file.rewind()?;
    BufReader::new(file.take(length))
        .split(b'\n')
        .next()
        .transpose()
}

/// Whether a file without a whole line is empty, or a first line that a crash has cut off.
fn begins_as_ours(file: &mut File) -> io::Result<bool> {
    const BEGIN: &[u8] = b"{\"version\":";
    let mut begin = Vec::new();
    file.rewind()?;
    Read::by_ref(file)
        .take(BEGIN.len() as u64)
        .read_to_end(&mut begin)?;
    Ok(BEGIN.starts_with(&begin))
}

fn read_line(line: &[u8]) -> io::Result<Identity> {
    let known: Known = serde_json::from_slice(line).map_err(no_event)?;
    Ok(known.identity())
}

fn no_event(error: impl std::fmt::Display) -> io::Error {
    let message = format!("a line is no audit event: {error}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl AuditSink for JsonlSink {
    fn record<'a>(&'a self, events: &'a [AuditEvent]) -> BoxFuture<'a, Result<(), NotRecorded>> {
        async move {
            let mut lines = Vec::new();
            for event in events {
                serde_json::to_writer(&mut lines, event)
                    .map_err(|error| NotRecorded::Refused(error.to_string()))?;
                lines.push(b'\n');
            }
            let write = move |out: &mut Out| match out {
                Out::File(trail) => trail.append(&lines),
                Out::Stdout(stdout) => {
                    stdout.write_all(&lines)?;
                    stdout.flush()
                }
            };
            let failed = |error| NotRecorded::Unavailable(format!("write the audit file: {error}"));
            self.with(write).await.map_err(failed)
        }
        .boxed()
    }

    fn recorded<'a>(
        &'a self,
        events: &'a [AuditEvent],
    ) -> BoxFuture<'a, Result<Vec<bool>, Unasked>> {
        async move {
            let wanted: HashSet<_> = events.iter().map(AuditEvent::identity).collect();
            let find = move |out: &mut Out| match out {
                Out::File(trail) => trail.find(&wanted),
                Out::Stdout(_) => Ok(HashSet::new()),
            };
            let failed = |error| Unasked(format!("read the audit file: {error}"));
            let found = self.with(find).await.map_err(failed)?;
            let has = |event: &AuditEvent| found.contains(&event.identity());
            Ok(events.iter().map(has).collect())
        }
        .boxed()
    }

    fn is_well(&self) -> BoxFuture<'_, Result<(), Unasked>> {
        futures::future::ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use wfe_model::audit::{BlockClearedData, EventData, EventType, Outcome};

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

    fn seconds(path: &Path) -> Vec<i8> {
        let events = read_file(path, "rr-1").expect("read");
        let second = |it: TrailEvent| {
            it.event_timestamp
                .to_zoned(jiff::tz::TimeZone::UTC)
                .second()
        };
        events.into_iter().map(second).collect()
    }

    #[tokio::test]
    async fn br_audit_005_a_trail_is_asked_what_it_has_also_after_a_restart_and_in_older_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let events: Vec<_> = (0..9).map(|second| event("a", second)).collect();
        // Two of these lines fit.
        let open = || JsonlSink::with_limit(&path, 1000).expect("opened");
        let sink = open();
        for event in &events {
            sink.record(std::slice::from_ref(event))
                .await
                .expect("written");
        }
        drop(sink);
        let others = [event("a", 3), event("b", 3), event("a", 30), event("a", 8)];
        let has = open().recorded(&others).await.expect("asked");
        assert_eq!(has, [true, false, false, true]);
        assert_eq!(
            seconds(&path),
            (0..9).collect::<Vec<_>>(),
            "nothing is lost"
        );
        let files = std::fs::read_dir(directory.path()).expect("listed").count();
        assert!(files > 2, "{files} files");
    }

    #[tokio::test]
    async fn br_audit_005_an_unfinished_last_line_is_cut_off_and_not_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let (first, second) = (event("a", 1), event("b", 1));
        let both = [first.clone(), second.clone()];
        let sink = JsonlSink::open(&path).expect("opened");
        sink.record(&both).await.expect("written");
        let text = std::fs::read(&path).expect("a file");
        std::fs::write(&path, &text[..text.len() - 10]).expect("torn");
        drop(sink);
        let sink = JsonlSink::open(&path).expect("opened again");
        JsonlSink::open(&path).err().expect("one writer at a time");
        assert_eq!(sink.recorded(&both).await.expect("asked"), [true, false]);
        sink.record(&[second]).await.expect("written");
        assert_eq!(seconds(&path), [1, 1]);
    }

    #[test]
    fn a_file_that_is_no_audit_trail_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("other.txt");
        for text in ["something else\n", "something else"] {
            std::fs::write(&path, text).expect("written");
            assert!(JsonlSink::open(&path).is_err());
            let untouched = std::fs::read_to_string(&path).expect("read");
            assert_eq!(untouched, text);
        }
    }
}
