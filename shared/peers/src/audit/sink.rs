//! The interface of every audit sink.

use std::time::Duration;

use futures::future::BoxFuture;
use thiserror::Error;
use wfe_model::audit::AuditEvent;

/// Why the sink did not confirm that it has stored the events.
#[derive(Debug, Error)]
pub enum NotRecorded {
    /// The sink stored none of the events, and may accept them later.
    #[error("{0}")]
    Unavailable(String),
    /// It is unknown whether the sink stored all of the events or none.
    #[error("{why}")]
    Unanswered {
        /// What happened instead of a response.
        why: String,
        /// Time after which the request can no longer be committed.
        settled_after: Duration,
    },
    /// The sink stored none of the events, and will never accept at least one of them.
    #[error("{0}")]
    Refused(String),
    /// The sink stored none of the events and failed although it reports to be healthy. The cause
    /// is either an outage that the sink has not detected, or the content of one of the events.
    #[error("{0}")]
    Failed(String),
}

/// The query failed.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Unasked(pub String);

/// A sink for audit events. Sinks do not detect duplicates: a caller that may have sent events
/// before must query them first.
pub trait AuditSink: Send + Sync {
    /// Stores all of `events` durably and in order, or none of them.
    fn record<'a>(&'a self, events: &'a [AuditEvent]) -> BoxFuture<'a, Result<(), NotRecorded>>;

    /// For each of `events`, whether the sink has stored it, by its
    /// [identity](AuditEvent::identity).
    fn recorded<'a>(
        &'a self,
        events: &'a [AuditEvent],
    ) -> BoxFuture<'a, Result<Vec<bool>, Unasked>>;

    /// Longest time for which a request whose sender has died may still be committed.
    fn settles_within(&self) -> Duration;

    /// Checks the health of the sink, after a failure and before the next attempt.
    fn is_well(&self) -> BoxFuture<'_, Result<(), Unasked>>;
}
