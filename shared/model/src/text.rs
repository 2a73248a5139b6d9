//! Texts for people: values and errors in messages.

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

/// A found value for a message: a huge one would bury the rule.
pub fn shortened(text: &str) -> String {
    cut(text, 600)
}

/// A text of at most `most` characters, with a mark where it was longer.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}
