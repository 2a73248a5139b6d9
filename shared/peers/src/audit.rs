//! The audit sink: where events go that must not be lost.

mod http;
mod jsonl;
mod trail;

use std::time::Duration;

use futures::future::BoxFuture;
use thiserror::Error;
use wfe_model::audit::AuditEvent;

pub use self::http::{HttpSink, HttpSinkError, HttpSinkOptions};
pub use self::jsonl::{JsonlSink, read_file};
pub use self::trail::TrailEvent;

/// Why the sink did not say that it has the events.
#[derive(Debug, Error)]
pub enum NotRecorded {
    /// It has none of them, and may take them later.
    #[error("{0}")]
    Unavailable(String),
    /// It may have all of them or none.
    #[error("{why}")]
    Unanswered {
        /// What happened instead of an answer.
        why: String,
        /// After so long what is not there will not come any more.
        settled_after: Duration,
    },
    /// It has none of them, and will not take at least one for what is in it.
    #[error("{0}")]
    Refused(String),
    /// It has none of them. It failed, though it is well: an outage that it does not know of, or
    /// something in one of them.
    #[error("{0}")]
    Failed(String),
}

/// The sink could not be asked.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Unasked(pub String);

/// Takes events. It does not know them again by itself: who sends events that it may have already
/// asks first.
pub trait AuditSink: Send + Sync {
    /// Stores all of `events` in their order, durably, or none of them.
    fn record<'a>(&'a self, events: &'a [AuditEvent]) -> BoxFuture<'a, Result<(), NotRecorded>>;

    /// Which of `events` it has, by their [identity](AuditEvent::identity).
    fn recorded<'a>(
        &'a self,
        events: &'a [AuditEvent],
    ) -> BoxFuture<'a, Result<Vec<bool>, Unasked>>;

    /// Whether it is likely to take events now: asked after a failure, before the next try.
    fn is_well(&self) -> BoxFuture<'_, Result<(), Unasked>>;
}
