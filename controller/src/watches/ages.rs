//! When each watch was last heard of: a dead one looks like one without changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wfe_peers::client::Exchange;
use wfe_process::endpoints::Readiness;

/// Readiness condition: the API server has opened each watch that is needed a short time ago.
pub const WATCHES_ALIVE: &str = "watches-alive";
/// A watch is opened again every 60 s, or 5 s later if its connection is dead. After this time it is
/// not known what has changed since.
const MAX_WATCH_AGE: Duration = Duration::from_secs(75);
/// Resources without whose watches nothing can be decided. The others belong to an engine that may
/// not be installed.
const NEEDED: [&str; 5] = ["workflowexecutions", "leases", "namespaces", "jobs", "pods"];
/// When each needed watch was last opened.
#[derive(Clone, Debug, Default)]
pub struct WatchAges(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// When this process started: no watch was opened before.
    started: Instant,
    /// Resource and time, by what is watched.
    opened: HashMap<String, (String, Instant)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            opened: HashMap::new(),
        }
    }
}

impl WatchAges {
    /// Records the response to a watch.
    pub fn record(&self, exchange: &Exchange) {
        let opened = exchange.code.is_some_and(|code| code < 400);
        let needed = NEEDED.contains(&exchange.resource.as_str());
        if let Some(watched) = exchange.watched.as_ref().filter(|_| opened && needed) {
            let opened = (exchange.resource.clone(), Instant::now());
            self.0.lock().opened.insert(watched.clone(), opened);
        }
    }

    /// The age of the oldest watch of each resource.
    pub fn ages(&self) -> BTreeMap<String, Duration> {
        let mut ages = BTreeMap::new();
        for (resource, at) in self.0.lock().opened.values() {
            let age = ages.entry(resource.clone()).or_insert(Duration::ZERO);
            *age = at.elapsed().max(*age);
        }
        ages
    }

    /// Whether changes of a resource may have been missed.
    pub fn is_silent(&self, resource: &str) -> bool {
        let watches = self.0.lock();
        let of_resource = watches.opened.values().filter(|(it, _)| it == resource);
        let oldest = of_resource.map(|(_, at)| *at).min();
        oldest.unwrap_or(watches.started).elapsed() > MAX_WATCH_AGE
    }

    /// Reports in `readiness` which of the needed watches are silent.
    pub fn report(&self, readiness: &Readiness) {
        let silent: Vec<_> = NEEDED.into_iter().filter(|it| self.is_silent(it)).collect();
        if silent.is_empty() {
            readiness.set(WATCHES_ALIVE, true);
        } else {
            let (silent, age) = (silent.join(", "), MAX_WATCH_AGE.as_secs());
            let why = format!("not heard of for more than {age} s: {silent}");
            readiness.unset(WATCHES_ALIVE, &why);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use jiff::Timestamp;
    use tower::ServiceExt;
    use wfe_process::endpoints::health;

    use super::*;

    fn opened(resource: &str, code: u16) -> Exchange {
        Exchange {
            verb: "watch",
            resource: resource.to_owned(),
            watched: Some(resource.to_owned()),
            code: Some(code),
            sent: Timestamp::now(),
            server_time: None,
        }
    }

    #[tokio::test]
    async fn watch_that_is_not_opened_again_makes_not_ready() {
        let (watches, readiness) = (WatchAges::default(), Readiness::of(&[WATCHES_ALIVE]));
        let readyz = async || {
            let request = Request::get("/readyz").body(Body::empty());
            let response = health(readiness.clone()).oneshot(request.expect("a request"));
            let body = response.await.expect("a response").into_body();
            let body = to_bytes(body, 1 << 16).await.expect("a body");
            String::from_utf8(body.to_vec()).expect("text")
        };
        watches.record(&opened("pods", 200));
        watches.record(&opened("taskruns", 200));
        assert!(!watches.ages().contains_key("taskruns"), "not needed");
        watches.report(&readiness);
        assert_eq!(readyz().await, "ok");
        let before = Instant::now().checked_sub(MAX_WATCH_AGE + Duration::from_secs(5));
        let before = before.expect("the machine runs longer than that");
        for entry in watches.0.lock().opened.values_mut() {
            entry.1 = before;
        }
        for code in [503, 429, 403] {
            watches.record(&opened("pods", code));
        }
        assert!(watches.is_silent("pods") && !watches.is_silent("jobs"));
        assert!(watches.ages()["pods"] > MAX_WATCH_AGE);
        watches.report(&readiness);
        let says = "not ready: watches-alive (not heard of for more than 75 s: pods)";
        assert_eq!(readyz().await, says);
        watches.record(&opened("pods", 200));
        watches.report(&readiness);
        assert_eq!(readyz().await, "ok");
        watches.0.lock().started = before;
        assert!(watches.is_silent("jobs"), "it was never opened");
    }
}
