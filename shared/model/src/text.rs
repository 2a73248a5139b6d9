//! Formats values and errors for messages.

use std::error::Error;

use kube::core::Status;

/// An error followed by its chain of causes.
pub fn in_full(error: &(dyn Error + 'static)) -> String {
    let (mut texts, mut next) = (Vec::new(), Some(error));
    while let Some(error) = next {
        next = error.source();
        match next.and_then(|cause| cause.downcast_ref::<Box<Status>>()) {
            // kube's own text of such an error ends with debug output of the status.
            Some(status) => {
                texts.push(refusal(status));
                break;
            }
            None => texts.push(error.to_string()),
        }
    }
    texts.join(": ")
}

/// A refusal by the API server, as `403 Forbidden: jobs.batch "a" is forbidden`.
fn refusal(status: &Status) -> String {
    let Status {
        code,
        reason,
        message,
        ..
    } = status;
    format!("{code} {reason}: {message}")
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

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    /// As kube's client returns it.
    #[derive(Debug, Error)]
    #[error("ApiError: {0} ({0:?})")]
    struct ApiError(#[source] Box<Status>);

    #[derive(Debug, Error)]
    #[error("get Secret a")]
    struct ReadError(#[source] ApiError);

    #[test]
    fn in_full_refusal_of_api_server_has_no_debug_text() {
        let status = Status::failure("no route", "ServiceUnavailable").with_code(503);
        let error = ReadError(ApiError(Box::new(status)));
        let text = in_full(&error);
        assert_eq!(text, "get Secret a: 503 ServiceUnavailable: no route");
    }
}
