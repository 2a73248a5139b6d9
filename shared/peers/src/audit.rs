//! Audit sinks, which store audit events durably.

mod http;
mod jsonl;
mod sink;
mod trail;

pub use self::http::{HttpSink, HttpSinkError, HttpSinkOptions};
pub use self::jsonl::{JsonlSink, read_file};
pub use self::sink::{AuditSink, NotRecorded, Unasked};
pub use self::trail::TrailEvent;
