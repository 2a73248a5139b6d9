//! Error of a request without a definite answer.

use wfe_model::text::in_full;

/// A request that got no definite answer and must be repeated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{act}: {cause}")]
pub struct Unanswered {
    /// The request, as a verb phrase.
    pub act: &'static str,
    /// The error of the request.
    pub cause: String,
    /// Whether the API server is down, overloaded or out of reach: the object is not the cause.
    pub outage: bool,
}

impl Unanswered {
    /// Converts the error of the request `act` to the API server.
    pub fn of(act: &'static str) -> impl Fn(kube::Error) -> Self {
        move |error| Self {
            act,
            cause: in_full(&error),
            outage: match &error {
                kube::Error::Api(status) => matches!(status.code, 429 | 502..=504),
                _ => true,
            },
        }
    }

    /// A create found an object with the name, which was gone a moment later: the next attempt
    /// creates it.
    pub fn just_deleted() -> Self {
        Self {
            act: "create the execution",
            cause: "an object with the same name was just deleted".to_owned(),
            outage: false,
        }
    }
}
