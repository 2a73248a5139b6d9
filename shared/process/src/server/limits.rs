//! How many connections are served, and how long each phase of one may take.

use std::time::Duration;

/// Limits on connections and their phases.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Concurrent connections.
    pub connections: usize,
    /// Longest time from the accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// Longest time from the handshake to the headers of the first request.
    pub first_request: Duration,
    /// Longest time between two requests. Above the 90 s after which the API server's HTTP client
    /// closes an idle connection: if the server closed first, a request could be lost.
    pub idle: Duration,
    /// How long new connections are still accepted after the shutdown signal: until every node has
    /// removed this pod from the Service's endpoints.
    pub lame_duck: Duration,
    /// How long the remaining connections may finish their requests after that.
    pub drain: Duration,
}

impl Limits {
    /// For the endpoints of health and metrics, which the kubelet and few others ask: no request is
    /// lost when the process ends.
    pub fn of_endpoints() -> Self {
        Self {
            connections: 64,
            first_request: Duration::from_secs(5),
            lame_duck: Duration::ZERO,
            drain: Duration::from_secs(1),
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            handshake: Duration::from_secs(5),
            first_request: Duration::from_secs(10),
            idle: Duration::from_mins(2),
            lame_duck: Duration::from_secs(5),
            drain: Duration::from_secs(5),
        }
    }
}
