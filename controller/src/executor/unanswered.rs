//! Requests without a definite answer.

/// A request that got no definite answer: to be repeated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{act}: {cause}")]
pub struct Unanswered {
    /// What was tried.
    pub act: &'static str,
    /// Why there is no answer.
    pub cause: String,
}

impl Unanswered {
    /// Of a request to the API server.
    pub fn of(act: &'static str) -> impl Fn(kube::Error) -> Self {
        move |error| Self {
            act,
            cause: error.to_string(),
        }
    }
}
