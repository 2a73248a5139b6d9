//! The pace of requests: a token bucket, and the pause that the API server asks for.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::Service;

/// Longest pause that the API server can ask for.
const MAX_HOLD: Duration = Duration::from_secs(30);

/// How many requests are sent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests per second in the long run.
    pub qps: u32,
    /// Requests that may be sent at once after a time of rest.
    pub burst: u32,
}

/// Until when the API server wants no requests.
#[derive(Clone, Default)]
pub(super) struct Hold(Arc<Mutex<Option<Instant>>>);

impl Hold {
    /// Holds requests for the seconds in a header `Retry-After`.
    pub(super) fn until_retry(&self, seconds: &str) {
        let Ok(seconds) = seconds.parse() else { return };
        let until = Instant::now() + Duration::from_secs(seconds).min(MAX_HOLD);
        let mut held = self.0.lock();
        *held = (*held).max(Some(until));
    }
}

/// Sends requests in the order of their arrival, each when there is a token for it and the API
/// server wants it. A request that its sender has given up takes no token.
///
/// The bucket is kept as the time at which it is full (generic cell rate algorithm). No rate limiter
/// of tower or governor can be told to pause.
pub(super) struct Paced<S> {
    inner: S,
    /// Time in which a token is added.
    interval: Duration,
    /// Time in which an empty bucket is filled.
    filling: Duration,
    full_at: Instant,
    hold: Hold,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(super) fn new(inner: S, pace: Pace, hold: Hold) -> Self {
        let interval = Duration::from_secs(1) / pace.qps.max(1);
        Self {
            inner,
            interval,
            filling: interval * pace.burst.max(1),
            full_at: Instant::now(),
            hold,
            waiting: None,
        }
    }

    /// When the next request may be sent.
    fn next(&self) -> Instant {
        let token = self.full_at + self.interval - self.filling;
        let held = *self.hold.0.lock();
        held.map_or(token, |held| held.max(token))
    }
}

impl<S, Request> Service<Request> for Paced<S>
where
    S: Service<Request>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            let next = self.next();
            if next <= Instant::now() {
                return self.inner.poll_ready(context);
            }
            self.waiting = Some(Box::pin(sleep_until(next)));
        }
    }

    fn call(&mut self, request: Request) -> S::Future {
        self.full_at = self.full_at.max(Instant::now()) + self.interval;
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt, service_fn};

    use super::*;

    async fn echo(request: u32) -> Result<u32, Infallible> {
        Ok(request)
    }

    /// Sends requests for 10 s and returns how many were sent.
    async fn sent(paced: &mut Paced<impl Service<u32, Response = u32, Error = Infallible>>) -> u32 {
        let mut sent = 0;
        let sending = async {
            loop {
                let ready = paced.ready().await.expect("infallible");
                ready.call(sent).await.expect("infallible");
                sent += 1;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(9_999), sending).await;
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn requests_beyond_the_burst_are_sent_at_the_rate() {
        let pace = Pace { qps: 10, burst: 30 };
        let mut paced = Paced::new(service_fn(echo), pace, Hold::default());
        assert_eq!(sent(&mut paced).await, 30 + 99);
        assert_eq!(sent(&mut paced).await, 100, "the bucket is empty");
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(
            sent(&mut paced).await,
            30 + 99,
            "it was filled, and not more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_the_time_of_retry_after() {
        let hold = Hold::default();
        let pace = Pace { qps: 10, burst: 1 };
        let mut paced = Paced::new(service_fn(echo), pace, hold.clone());
        hold.until_retry("5");
        hold.until_retry("1");
        hold.until_retry("Wed, 21 Oct 2026 07:28:00 GMT");
        assert_eq!(sent(&mut paced).await, 50);
        hold.until_retry("3600");
        assert_eq!(sent(&mut paced).await, 0);
        tokio::time::advance(MAX_HOLD).await;
        assert_ne!(sent(&mut paced).await, 0, "no pause is longer");
    }
}
