//! Formats values and errors for messages.

use std::error::Error;

/// An error followed by its chain of causes.
pub fn in_full(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Shortens a rejected value for a message, so that the rule stays readable beside it.
pub fn shortened(text: &str) -> String {
    cut(text, 600)
}

/// Truncates a text to at most `maximum` characters, ending with `…` if it was longer.
pub fn cut(text: &str, maximum: usize) -> String {
    if text.chars().count() <= maximum {
        return text.to_owned();
    }
    text.chars().take(maximum - 1).chain(['…']).collect()
}
