//! Lines of an audit file that are chained by their hashes: each has, as `prev`, the SHA-256 of the line
//! before, so that a line that was changed, removed or added is found.
//!
//! Whoever can write the file can also write a new chain, or remove the last lines: keep the hash of a last
//! line elsewhere. The controller logs it when it opens and closes a file.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wfe_model::audit::AuditEvent;

/// A SHA-256, of a line without its line feed; zeros for the line before the first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The hash of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Serialize)]
struct ChainedEvent<'a> {
    #[serde(flatten)]
    event: &'a AuditEvent,
    prev: String,
}

#[derive(Deserialize)]
struct Link {
    prev: Option<String>,
}

/// The lines of `events`, each with its line feed, after the line with hash `last`; and the hash of the
/// last of them.
pub(super) fn lines(
    events: &[AuditEvent],
    last: Fingerprint,
) -> serde_json::Result<(Vec<u8>, Fingerprint)> {
    let (mut lines, mut last) = (Vec::new(), last);
    for event in events {
        let prev = last.to_string();
        let line = serde_json::to_vec(&ChainedEvent { event, prev })?;
        last = Fingerprint::of(&line);
        lines.extend(line);
        lines.push(b'\n');
    }
    Ok((lines, last))
}

/// A chain that is being verified.
#[derive(Debug)]
pub(super) struct Verifier<'a> {
    last: Option<Fingerprint>,
    /// Lines before the first one with `prev`.
    unchained: usize,
    is_chained: bool,
    /// A hash that a line must have.
    expected: Option<&'a str>,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(expected: Option<&'a str>) -> Self {
        Self {
            last: None,
            unchained: 0,
            is_chained: false,
            expected,
        }
    }

    /// Verifies the next line. Lines before the first one may have been archived.
    pub(super) fn next(&mut self, line: &[u8]) -> Result<(), String> {
        let read: Result<Link, _> = serde_json::from_slice(line);
        let read = read.map_err(|error| format!("is not an audit event: {error}"))?;
        let hash = Fingerprint::of(line);
        let before = self.last.replace(hash);
        if self.expected.is_some_and(|it| it == hash.to_string()) {
            self.expected = None;
        }
        let Some(prev) = read.prev else {
            if self.is_chained {
                return Err("has no prev".to_owned());
            }
            self.unchained += 1;
            return Ok(());
        };
        self.is_chained = true;
        match before {
            Some(before) if prev != before.to_string() => Err(format!(
                "has prev {prev}, but the line before has the hash {before}: that line was changed, or lines between them were removed or added"
            )),
            _ => Ok(()),
        }
    }

    /// The expected hash, if no line had it.
    pub(super) fn missing(&self) -> Option<&str> {
        self.expected
    }

    /// Number of lines that an older version wrote.
    pub(super) fn unchained(&self) -> usize {
        self.unchained
    }

    /// The hash of the last line.
    pub(super) fn last(&self) -> Option<Fingerprint> {
        self.last
    }
}
