//! What the responses of the API server say about this process: whether it is refused for good, and
//! whether its clock is right. Both make the controller not ready, with the reason.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use wfe_peers::client::{Exchange, OnExchange};
use wfe_process::endpoints::Readiness;

use crate::metrics::Metrics;
use crate::watches::WatchAges;

/// Readiness condition: the API server lets the controller list and watch what it needs.
pub const ACCEPTED: &str = "accepted-by-api-server";
/// Readiness condition: timeouts, cooldown and backoff are computed with this clock from times that
/// other clocks have written.
pub const CLOCK_IN_SYNC: &str = "clock-in-sync";
/// Tolerated difference of the clocks.
const MAX_SKEW: SignedDuration = SignedDuration::from_secs(30);
/// The reason of a slow start is read from Events: without them only the reason is missing.
const OPTIONAL: &str = "events";

/// Counts each exchange in `metrics` and reports its meaning in `readiness` and `watches`.
pub fn observer(metrics: Metrics, readiness: Readiness, watches: WatchAges) -> OnExchange {
    let refusals = Mutex::new(Refusals::default());
    Arc::new(move |exchange| {
        metrics.kube_request(exchange);
        watches.record(exchange);
        refusals.lock().report(exchange, &readiness);
        match skew(exchange, Timestamp::now()) {
            Some(skew) if skew > MAX_SKEW => {
                let why = format!("it differs from the API server's by {} s", skew.as_secs());
                readiness.unset(CLOCK_IN_SYNC, &why);
            }
            Some(_) => readiness.set(CLOCK_IN_SYNC, true),
            None => {}
        }
    })
}

/// Refusals that last until an administrator acts. Other ones are stored in the status of the object
/// that they concern.
#[derive(Default)]
struct Refusals {
    /// The credentials are not accepted.
    unauthenticated: bool,
    /// Resources that may not be listed or watched.
    forbidden: BTreeSet<String>,
}

impl Refusals {
    fn report(&mut self, exchange: &Exchange, readiness: &Readiness) {
        let Some(code) = exchange.code else { return };
        self.unauthenticated = code == 401;
        let resource = &exchange.resource;
        if matches!(exchange.verb, "list" | "watch") && resource != OPTIONAL {
            match code {
                403 => drop(self.forbidden.insert(resource.clone())),
                code if code < 400 => drop(self.forbidden.remove(resource)),
                _ => {}
            }
        }
        if self.unauthenticated {
            readiness.unset(ACCEPTED, "401: the token is not accepted");
        } else if self.forbidden.is_empty() {
            readiness.set(ACCEPTED, true);
        } else {
            let resources: Vec<_> = self.forbidden.iter().map(String::as_str).collect();
            let why = format!("403: list and watch {}", resources.join(", "));
            readiness.unset(ACCEPTED, &why);
        }
    }
}

/// How much the clocks differ at least. The API server sets `Date` between `sent` and `received`, in
/// whole seconds.
fn skew(exchange: &Exchange, received: Timestamp) -> Option<SignedDuration> {
    let server = exchange.server_time?;
    let behind = exchange.sent.duration_since(server) - SignedDuration::from_secs(1);
    let ahead = server.duration_since(received);
    Some(behind.max(ahead).max(SignedDuration::ZERO))
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use prometheus_client::registry::Registry;
    use tower::ServiceExt;
    use wfe_process::endpoints::health;

    use super::*;

    fn exchange(verb: &'static str, resource: &str, code: u16) -> Exchange {
        Exchange {
            verb,
            resource: resource.to_owned(),
            watched: (verb == "watch").then(|| resource.to_owned()),
            code: Some(code),
            sent: Timestamp::now(),
            server_time: Some(Timestamp::now()),
        }
    }

    async fn readyz(readiness: &Readiness) -> String {
        let request = Request::get("/readyz").body(Body::empty());
        let response = health(readiness.clone()).oneshot(request.expect("a request"));
        let body = response.await.expect("a response").into_body();
        let body = to_bytes(body, 1 << 16).await.expect("a body");
        String::from_utf8(body.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn lasting_refusal_and_wrong_clock_make_not_ready_with_the_reason() {
        let readiness = Readiness::of(&[ACCEPTED, CLOCK_IN_SYNC]);
        let metrics = Metrics::new(&mut Registry::default());
        let observe = observer(metrics, readiness.clone(), WatchAges::default());
        observe(&exchange("list", "jobs", 200));
        assert_eq!(readyz(&readiness).await, "ok");
        observe(&exchange("create", "jobs", 403));
        observe(&exchange("list", "events", 403));
        assert_eq!(readyz(&readiness).await, "ok", "told elsewhere");
        observe(&exchange("watch", "jobs", 403));
        observe(&exchange("list", "pods", 200));
        let says = "not ready: accepted-by-api-server (403: list and watch jobs)";
        assert_eq!(readyz(&readiness).await, says);
        observe(&exchange("watch", "jobs", 200));
        assert_eq!(readyz(&readiness).await, "ok");
        observe(&exchange("get", "secrets", 401));
        let says = "not ready: accepted-by-api-server (401: the token is not accepted)";
        assert_eq!(readyz(&readiness).await, says);
        observe(&exchange("get", "secrets", 200));
        assert_eq!(readyz(&readiness).await, "ok");

        for offset in [40, -40] {
            let mut late = exchange("list", "jobs", 200);
            let server = Timestamp::now() + SignedDuration::from_secs(offset);
            late.server_time = Some(server);
            observe(&late);
            let text = readyz(&readiness).await;
            let says = "not ready: clock-in-sync (it differs from the API server's by ";
            assert!(text.starts_with(says), "{text}");
        }
        let mut slow = exchange("list", "jobs", 200);
        slow.sent -= SignedDuration::from_secs(60);
        slow.server_time = Some(slow.sent);
        observe(&slow);
        assert_eq!(readyz(&readiness).await, "ok", "a slow response is no skew");
    }
}
