//! The endpoints `/healthz`, `/readyz` and `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server::{self, Limits};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A main loop that has not run for this time is stuck.
pub const MAX_SILENCE: Duration = Duration::from_secs(30);

/// The listener could not be bound.
#[derive(Debug, Error)]
#[error("listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Named conditions of readiness, and notes. Each component sets its own.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Report>>);

/// What `/readyz` reports.
#[derive(Debug, Default)]
struct Report {
    conditions: Vec<Condition>,
    /// Texts for the operator that do not affect readiness, by component.
    notes: BTreeMap<&'static str, String>,
    /// When the main loop ran last; `None`: it does not say so.
    beat: Option<Instant>,
}

#[derive(Debug)]
struct Condition {
    name: &'static str,
    holds: bool,
    /// Why the condition does not hold, if known.
    why: Option<String>,
}

impl Readiness {
    /// Creates `conditions`, all of them unset. The process is ready when all are set.
    pub fn of(conditions: &[&'static str]) -> Self {
        let unset = |name: &&'static str| Condition {
            name,
            holds: false,
            why: None,
        };
        Self(Arc::new(Mutex::new(Report {
            conditions: conditions.iter().map(unset).collect(),
            ..Report::default()
        })))
    }

    /// Sets or unsets a condition.
    pub fn set(&self, condition: &str, holds: bool) {
        self.change(condition, holds, None);
    }

    /// Unsets a condition, and reports why.
    pub fn unset(&self, condition: &str, why: &str) {
        self.change(condition, false, Some(why.to_owned()));
    }

    fn change(&self, condition: &str, holds: bool, why: Option<String>) {
        let mut report = self.0.lock();
        let mut conditions = report.conditions.iter_mut();
        if let Some(found) = conditions.find(|it| it.name == condition) {
            (found.holds, found.why) = (holds, why);
        }
    }

    /// Records that the main loop runs. A process that does so once must do it again and again.
    pub fn beat(&self) {
        self.0.lock().beat = Some(Instant::now());
    }

    /// Time since the last [`beat`](Self::beat); `None` if there was none.
    pub fn since_beat(&self) -> Option<Duration> {
        self.0.lock().beat.map(|beat| beat.elapsed())
    }

    /// Sets the note of a component; `None` removes it.
    pub fn note(&self, component: &'static str, text: Option<String>) {
        let notes = &mut self.0.lock().notes;
        match text {
            Some(text) => drop(notes.insert(component, text)),
            None => drop(notes.remove(component)),
        }
    }

    /// Counts the catalog entries that are set aside, and notes why.
    pub fn report_rejected_entries(&self, rejected: &Gauge, errors: &[String]) {
        rejected.set(i64::try_from(errors.len()).unwrap_or(i64::MAX));
        self.note("catalog", (!errors.is_empty()).then(|| errors.join("; ")));
    }

    /// Whether every condition is set, and the text for the operator.
    fn report(&self) -> (bool, String) {
        let report = self.0.lock();
        let unset = report.conditions.iter().filter(|it| !it.holds);
        let unset: Vec<_> = unset
            .map(|it| match &it.why {
                Some(why) => format!("{} ({why})", it.name),
                None => it.name.to_owned(),
            })
            .collect();
        let state = if unset.is_empty() {
            "ok".to_owned()
        } else {
            format!("not ready: {}", unset.join(", "))
        };
        let notes = report.notes.iter();
        let notes = notes.map(|(component, text)| format!("\n{component}: {text}"));
        (unset.is_empty(), state + &notes.collect::<String>())
    }
}

/// Routes of the health endpoint. `/healthz` responds with 200 as long as the runtime schedules tasks
/// and the main loop, if it reports itself, runs.
pub fn health(readiness: Readiness) -> Router {
    let readyz = async |State(readiness): State<Readiness>| match readiness.report() {
        (true, text) => (StatusCode::OK, text),
        (false, text) => (StatusCode::SERVICE_UNAVAILABLE, text),
    };
    let healthz = async |State(readiness): State<Readiness>| match readiness.since_beat() {
        Some(silence) if silence > MAX_SILENCE => {
            let text = format!("the main loop has not run for {} s", silence.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        _ => (StatusCode::OK, "ok".to_owned()),
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(readiness)
}

/// Routes of the metrics endpoint.
pub fn metrics(registry: Registry) -> Router {
    let registry = Arc::new(registry);
    let render = async |State(registry): State<Arc<Registry>>| -> Response {
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    Router::new()
        .route("/metrics", get(render))
        .with_state(registry)
}

/// Binds `address` and serves `routes` in the background until `stop` is cancelled.
pub async fn serve(
    address: SocketAddr,
    routes: Router,
    stop: CancellationToken,
) -> Result<(), ListenError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ListenError { address, source })?;
    let limits = Limits::of_endpoints();
    tokio::spawn(server::serve(listener, None, routes, limits, stop));
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    use super::*;

    async fn get_path(routes: Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = routes.oneshot(request).await.expect("a response");
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20)
            .await
            .expect("a body");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn readyz_with_unset_conditions_is_503_with_their_names() {
        let readiness = Readiness::of(&["caches synced", "certificate loaded"]);
        let routes = health(readiness.clone());
        readiness.set("caches synced", true);
        let (status, body) = get_path(routes.clone(), "/readyz").await;
        assert_eq!(
            (status, body.as_str()),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: certificate loaded"
            )
        );
        readiness.set("certificate loaded", true);
        assert_eq!(get_path(routes.clone(), "/readyz").await.0, StatusCode::OK);
        readiness.unset("caches synced", "401 Unauthorized");
        readiness.note("catalog", Some("1 file is set aside".to_owned()));
        let (status, body) = get_path(routes.clone(), "/readyz").await;
        let says = "not ready: caches synced (401 Unauthorized)\ncatalog: 1 file is set aside";
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, says)
        );
        readiness.set("caches synced", true);
        readiness.note("catalog", None);
        let (status, body) = get_path(routes, "/readyz").await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, "ok"));
    }

    #[tokio::test]
    async fn healthz_without_ready_conditions_is_200() {
        assert_eq!(
            get_path(health(Readiness::of(&["x"])), "/healthz").await.0,
            StatusCode::OK
        );
    }

    #[tokio::test]
    async fn healthz_with_stuck_main_loop_is_503() {
        let readiness = Readiness::default();
        readiness.beat();
        let ask = || get_path(health(readiness.clone()), "/healthz");
        assert_eq!(ask().await.0, StatusCode::OK);
        readiness.0.lock().beat = Instant::now().checked_sub(MAX_SILENCE * 2);
        let (status, body) = ask().await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body, "the main loop has not run for 60 s");
    }

    #[tokio::test]
    async fn metrics_response_is_openmetrics() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("things", "Things counted", counter.clone());
        counter.inc();
        let (status, body) = get_path(metrics(registry), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            body.contains("things_total 1") && body.ends_with("# EOF\n"),
            "{body}"
        );
    }
}
