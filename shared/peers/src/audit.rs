//! The audit sink: where events go that must not be lost.

mod jsonl;

use futures::future::BoxFuture;
use thiserror::Error;
use wfe_model::audit::AuditEvent;

pub use self::jsonl::JsonlSink;

/// The sink did not say that it has the events: it may have all, some or none of them.
#[derive(Debug, Error)]
#[error("{reason}")]
pub struct SinkUnavailable {
    /// What failed.
    pub reason: String,
}

/// Takes events.
pub trait AuditSink: Send + Sync {
    /// Stores those of `events` that it does not have yet, in their order; they are durable when
    /// it says `Ok`. May be called again with the same events after an error.
    fn record<'a>(&'a self, events: &'a [AuditEvent])
    -> BoxFuture<'a, Result<(), SinkUnavailable>>;
}
