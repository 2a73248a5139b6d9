//! Faults of the catalog.

use std::time::Duration;

/// A fault in the handling of lookups of a workflow.
#[derive(Clone, Debug, PartialEq)]
pub enum CatalogFault {
    /// The response is delayed.
    Slow(Duration),
    /// The response has this status and is plain text.
    Answer(u16),
    /// The response is 429 and asks for a pause of these seconds.
    TooManyRequests(u64),
    /// The response is 200 with this body.
    Body(String),
}
