//! The world outside: the workflow catalog, what workflows depend on, the audit sink.
//!
//! Each is a small interface with the answers that callers must tell apart: there, not there, and
//! not known.

pub mod audit;
pub mod catalog;
pub mod client;
pub mod dependencies;
pub mod discovery;

use std::error::Error;

/// An error and its causes, for people.
pub fn in_full(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
