//! Audit sink that appends events to a file, one JSON object per line, [chained](super::chain). One
//! process at a time can open the file for writing.
//!
//! A file that would exceed its maximum size is renamed to `<file>.<number>`, with the number after
//! the highest one in use, and a new file is created. Files are never deleted: that is left to the
//! operator.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::Mutex;
use wfe_model::audit::{AuditEvent, Identity};

use super::chain::{self, Fingerprint, Verifier};
use super::content::{Content, report_other};
use super::sink::{AuditSink, NotRecorded, Unasked};
use super::trail::{StoredIdentity, TrailEvent};

/// Maximum size of a file before rotation.
const MAX_FILE_BYTES: u64 = 100 << 20;
/// Maximum difference between the clock of the event timestamps and that of the file system.
const MAX_CLOCK_SKEW: Duration = Duration::from_hours(1);

/// Destination of the events.
enum Output {
    /// A file, which can be searched for stored events.
    File(TrailFile),
    /// Standard output, and the hash of the last line. Its readers must recognize repeated events by
    /// their ids.
    Stdout(io::Stdout, Fingerprint),
}

/// An open file and the length of its complete lines.
struct TrailFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Hash of the last complete line, also of one in a renamed file.
    last: Fingerprint,
    max_bytes: u64,
    /// Whether a write has failed and may have left a partial line after `length`.
    has_partial_write: bool,
}

/// Audit sink that appends events to a file or to standard output.
pub struct JsonlSink(Arc<Mutex<Output>>);

impl JsonlSink {
    /// Opens `path`, which is created if it does not exist, or standard output for `-`. An
    /// incomplete last line, left by a crash, is removed: its event was not acknowledged.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, MAX_FILE_BYTES)
    }

    fn with_limit(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let output = if path == Path::new("-") {
            Output::Stdout(io::stdout(), Fingerprint::default())
        } else {
            Output::File(TrailFile::open(path, max_bytes)?)
        };
        Ok(Self(Arc::new(Mutex::new(output))))
    }

    /// Runs `work` on a blocking thread, because the disk may be slow.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Output) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let output = self.0.clone();
        let work = move || work(&mut output.lock());
        let result = tokio::task::spawn_blocking(work).await;
        result.map_err(io::Error::other).flatten()
    }
}

impl TrailFile {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)?;
        file.try_lock()
            .map_err(|error| io::Error::other(format!("locked by another process: {error}")))?;
        // Lines that an earlier process has written may be reported as stored, so that they must be
        // on disk.
        file.sync_all()?;
        sync_directory(path)?;
        let length = whole_lines(&mut file)?;
        if length == 0 && !is_empty_or_partial_event(&mut file)? {
            return Err(not_an_event("unexpected content at the start of the file"));
        }
        if let Some(line) = first_line(&mut file, length)? {
            read_line(&line)?;
        }
        if length < file.metadata()?.len() {
            tracing::warn!(path = %path.display(), "removed an incomplete last line");
            file.set_len(length)?;
        }
        let last = last_line(path)?;
        let last = last.map(|line| Fingerprint::of(&line)).unwrap_or_default();
        tracing::info!(path = %path.display(), last = %last, "audit file opened, last line hashed");
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            last,
            max_bytes,
            has_partial_write: false,
        })
    }

    fn append(&mut self, events: &[AuditEvent]) -> io::Result<()> {
        self.repair()?;
        let (lines, last) = chain::lines(events, self.last)?;
        if self.length > 0 && self.length + lines.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        let written = self
            .file
            .write_all(&lines)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.length += lines.len() as u64;
                self.last = last;
                Ok(())
            }
            Err(error) => {
                self.has_partial_write = true;
                Err(error)
            }
        }
    }

    /// Creates the file again if it was deleted, and removes a partial write. Fails if another
    /// process has changed the file.
    fn repair(&mut self) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if metadata.nlink() == 0 {
            *self = Self::open(&self.path, self.max_bytes)?;
        } else if self.has_partial_write {
            // The next line would be appended to the partial one.
            self.file.set_len(self.length)?;
            self.has_partial_write = false;
        } else if metadata.len() != self.length {
            return Err(io::Error::other("another process has changed the file"));
        }
        Ok(())
    }

    /// Renames the file and creates a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let number = numbers(&self.path)?.last().map_or(1, |last| last + 1);
        match std::fs::rename(&self.path, rotated_path(&self.path, number)) {
            // A previous attempt has renamed the file, but could not create the new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        *self = Self::open(&self.path, self.max_bytes)?;
        Ok(())
    }

    /// Searches for `wanted`, from the newest file to the oldest. Stops when all are found, or at a
    /// file that was last written before the oldest of them.
    fn find(&self, wanted: &HashMap<Identity, Content>) -> io::Result<HashSet<Identity>> {
        let (mut found, mut others) = (HashSet::new(), HashSet::new());
        let oldest = wanted.keys().map(|it| it.timestamp).min();
        for opened in files(&self.path)?.rev() {
            let (_, file, length) = opened?;
            let last_written = Timestamp::try_from(file.metadata()?.modified()?);
            let too_old = |oldest: Timestamp| {
                last_written.as_ref().is_ok_and(|written| {
                    written
                        .saturating_add(MAX_CLOCK_SKEW)
                        .is_ok_and(|it| it < oldest)
                })
            };
            if found.len() == wanted.len() || oldest.is_some_and(too_old) {
                break;
            }
            for line in BufReader::new(file.take(length)).split(b'\n') {
                let line = line?;
                let stored = match read_line(&line) {
                    Ok(stored) => stored,
                    Err(error) => {
                        tracing::warn!(path = %self.path.display(), %error, "skipped an invalid line");
                        continue;
                    }
                };
                let Some(content) = wanted.get(&stored) else {
                    continue;
                };
                if content.matches(&serde_json::from_slice(&line).unwrap_or_default()) {
                    found.insert(stored);
                } else {
                    others.insert(stored);
                }
            }
        }
        others.difference(&found).for_each(report_other);
        Ok(found)
    }
}

/// The hash of the last line is in the log when a file is opened and closed.
impl Drop for TrailFile {
    fn drop(&mut self) {
        tracing::info!(path = %self.path.display(), last = %self.last, "audit file closed, last line hashed");
    }
}

/// The renamed files and the current one, from the oldest to the newest, each opened when it is reached:
/// its name, the file, and the length of its complete lines.
fn files(path: &Path) -> io::Result<impl DoubleEndedIterator<Item = io::Result<Opened>>> {
    let open = |name: PathBuf| {
        let opened = open_lines(&name).transpose()?;
        Some(opened.map(|(file, length)| (name, file, length)))
    };
    Ok(names(path)?.into_iter().filter_map(open))
}

type Opened = (PathBuf, File, u64);

/// Opens a file, with the length of its complete lines; `None` if it does not exist, as the current one
/// while it is renamed.
fn open_lines(path: &Path) -> io::Result<Option<(File, u64)>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let length = whole_lines(&mut file)?;
    file.rewind()?;
    Ok(Some((file, length)))
}

/// An unbroken chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verified {
    /// Number of lines.
    pub lines: usize,
    /// Number of files.
    pub files: usize,
    /// Number of lines at the beginning that an older version wrote, without `prev`.
    pub unchained: usize,
    /// Hash of the last line; `None` if there is none.
    pub last: Option<Fingerprint>,
}

/// Verifies that the complete lines in `path` and in the renamed files are one chain, and that one of them
/// has the hash `expected`. The error names the first line that breaks the chain.
pub fn verify(path: &Path, expected: Option<&str>) -> io::Result<Verified> {
    let (mut verifier, mut lines, mut files) = (Verifier::new(expected), 0, 0);
    for opened in self::files(path)? {
        let (name, file, length) = opened?;
        files += 1;
        let mut number = 0;
        for line in BufReader::new(file.take(length)).split(b'\n') {
            number += 1;
            let is_chained = verifier.next(&line?);
            is_chained.map_err(|why| {
                let message = format!("line {number} of {} {why}", name.display());
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
        }
        lines += number;
    }
    if files == 0 {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    if let Some(expected) = verifier.missing() {
        let message = format!(
            "no line has the hash {expected}: lines were removed from the end, or it is another trail"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(Verified {
        lines,
        files,
        unchained: verifier.unchained(),
        last: verifier.last(),
    })
}

/// Names of the renamed files and of the current one, from the oldest to the newest.
fn names(path: &Path) -> io::Result<Vec<PathBuf>> {
    let numbers = numbers(path)?.into_iter();
    let renamed = numbers.map(|number| rotated_path(path, number));
    Ok(renamed.chain([path.to_owned()]).collect())
}

/// The last complete line, also if it is in a renamed file.
fn last_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    for opened in files(path)?.rev() {
        let (_, mut file, length) = opened?;
        let Some(end) = length.checked_sub(1) else {
            continue;
        };
        let start = line_start(&mut file, end)?;
        let mut line = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        file.take(end - start).read_to_end(&mut line)?;
        return Ok(Some(line));
    }
    Ok(None)
}

/// All events of a correlation id in `path` and in the renamed files, from the oldest to the
/// newest.
pub fn read_file(path: &Path, correlation_id: &str) -> io::Result<Vec<TrailEvent>> {
    let mut events = Vec::new();
    for opened in files(path)? {
        let (_, file, length) = opened?;
        for line in BufReader::new(file.take(length)).split(b'\n') {
            match serde_json::from_slice::<TrailEvent>(&line?) {
                Ok(event) if event.correlation_id == correlation_id => events.push(event),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "skipped an invalid line");
                }
            }
        }
    }
    Ok(events)
}

/// Numbers of the renamed files in ascending order. Numbers of deleted files are missing.
fn numbers(path: &Path) -> io::Result<Vec<u32>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory(path))? {
        let other = entry?.file_name();
        let number = other
            .to_str()
            .and_then(|it| it.strip_prefix(&*name)?.strip_prefix('.'));
        numbers.extend(number.and_then(|it| it.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn directory(path: &Path) -> &Path {
    let directory = path.parent().filter(|it| *it != Path::new(""));
    directory.unwrap_or(Path::new("."))
}

fn rotated_path(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Writes the directory to disk, so that a new file still exists after a crash.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

/// Length of the file up to and including its last line feed.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    line_start(file, length)
}

/// Where the line begins that ends at `end`.
fn line_start(file: &mut File, end: u64) -> io::Result<u64> {
    const BLOCK_BYTES: u64 = 1 << 16;
    let mut end = end;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
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

/// The first line, by which a file that is not an audit trail is recognized.
fn first_line(file: &mut File, length: u64) -> io::Result<Option<Vec<u8>>> {
    file.rewind()?;
    BufReader::new(file.take(length))
        .split(b'\n')
        .next()
        .transpose()
}

/// Whether a file without a complete line is empty or has the beginning of an event.
fn is_empty_or_partial_event(file: &mut File) -> io::Result<bool> {
    const EVENT_START: &[u8] = b"{\"version\":";
    let mut start = Vec::new();
    file.rewind()?;
    Read::by_ref(file)
        .take(EVENT_START.len() as u64)
        .read_to_end(&mut start)?;
    Ok(EVENT_START.starts_with(&start))
}

fn read_line(line: &[u8]) -> io::Result<Identity> {
    let stored: StoredIdentity = serde_json::from_slice(line).map_err(not_an_event)?;
    Ok(stored.identity())
}

fn not_an_event(error: impl std::fmt::Display) -> io::Error {
    let message = format!("the file has a line that is not an audit event: {error}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl AuditSink for JsonlSink {
    fn record<'a>(&'a self, events: &'a [AuditEvent]) -> BoxFuture<'a, Result<(), NotRecorded>> {
        async move {
            let events = events.to_vec();
            let write = move |output: &mut Output| match output {
                Output::File(trail) => trail.append(&events),
                Output::Stdout(stdout, last) => {
                    let (lines, hash) = chain::lines(&events, *last)?;
                    stdout.write_all(&lines)?;
                    *last = hash;
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
            let content = |event: &AuditEvent| (event.identity(), Content::of(event));
            let wanted: HashMap<_, _> = events.iter().map(content).collect();
            let find = move |output: &mut Output| match output {
                Output::File(trail) => trail.find(&wanted),
                Output::Stdout(..) => Ok(HashSet::new()),
            };
            let failed = |error| Unasked(format!("read the audit file: {error}"));
            let found = self.with(find).await.map_err(failed)?;
            let is_stored = |event: &AuditEvent| found.contains(&event.identity());
            Ok(events.iter().map(is_stored).collect())
        }
        .boxed()
    }

    /// A dead process writes nothing.
    fn settles_within(&self) -> Duration {
        Duration::ZERO
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

    /// BR-AUDIT-005
    #[tokio::test]
    async fn recorded_after_restart_and_rotation_finds_stored_events() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let events: Vec<_> = (0..9).map(|second| event("a", second)).collect();
        // A file of 1000 bytes has room for two of these lines.
        let open = || JsonlSink::with_limit(&path, 1000).expect("opened");
        let sink = open();
        for event in &events {
            sink.record(std::slice::from_ref(event))
                .await
                .expect("written");
        }
        drop(sink);
        let others = [event("a", 3), event("b", 3), event("a", 30), event("a", 8)];
        let has = open().recorded(&others).await.expect("queried");
        assert_eq!(has, [true, false, false, true]);
        assert_eq!(
            seconds(&path),
            (0..9).collect::<Vec<_>>(),
            "nothing is lost"
        );
        let files = std::fs::read_dir(directory.path()).expect("listed").count();
        assert!(files > 2, "{files} files");
    }

    /// BR-AUDIT-005
    #[tokio::test]
    async fn open_with_incomplete_last_line_removes_it() {
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
        assert_eq!(sink.recorded(&both).await.expect("queried"), [true, false]);
        sink.record(&[second]).await.expect("written");
        assert_eq!(seconds(&path), [1, 1]);
    }

    #[test]
    fn open_file_of_other_content_is_rejected_and_unchanged() {
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
