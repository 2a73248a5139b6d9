//! Audit sinks, which store audit events durably.

mod chain;
mod content;
mod http;
mod jsonl;
mod sink;
mod trail;

pub use self::chain::Fingerprint;
pub use self::http::HttpSink;
pub use self::jsonl::{JsonlSink, Verified, read_file, verify};
pub use self::sink::{AuditSink, NotRecorded, Unasked};
pub use self::trail::TrailEvent;
