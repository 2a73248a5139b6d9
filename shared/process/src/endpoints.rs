//! `/healthz`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why an endpoint is not there.
#[derive(Debug, Error)]
#[error("listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Conditions of readiness, each set by whoever knows.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Vec<(&'static str, AtomicBool)>>);

impl Readiness {
    /// Ready when all of `conditions` are set; none is yet.
    pub fn of(conditions: &[&'static str]) -> Self {
        Self(Arc::new(
            conditions
                .iter()
                .map(|name| (*name, AtomicBool::new(false)))
                .collect(),
        ))
    }

    /// Sets a condition.
    pub fn set(&self, condition: &str, holds: bool) {
        for (_, value) in self.0.iter().filter(|(name, _)| *name == condition) {
            value.store(holds, Ordering::Relaxed);
        }
    }

    /// The conditions that do not hold.
    fn missing(&self) -> Vec<&'static str> {
        self.0
            .iter()
            .filter(|(_, value)| !value.load(Ordering::Relaxed))
            .map(|(name, _)| *name)
            .collect()
    }
}

/// Routes of the health endpoint. `/healthz` answers as long as the process can.
pub fn health(readiness: Readiness) -> Router {
    let readyz = async |State(readiness): State<Readiness>| {
        let missing = readiness.missing();
        if missing.is_empty() {
            (StatusCode::OK, "ok".to_owned())
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {}", missing.join(", ")),
            )
        }
    };
    Router::new()
        .route("/healthz", get(async || "ok"))
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

/// Binds `address` and serves `routes` in the background until `stop`.
pub async fn serve(
    address: SocketAddr,
    routes: Router,
    stop: CancellationToken,
) -> Result<(), ListenError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ListenError { address, source })?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
        {
            tracing::error!(%address, %error, "endpoint ended");
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    use super::*;

    async fn ask(routes: Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let answer = routes.oneshot(request).await.expect("an answer");
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn ready_is_said_when_every_condition_holds_and_names_what_is_missing() {
        let readiness = Readiness::of(&["caches synced", "certificate loaded"]);
        let routes = health(readiness.clone());
        readiness.set("caches synced", true);
        let (status, said) = ask(routes.clone(), "/readyz").await;
        assert_eq!(
            (status, said.as_str()),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: certificate loaded"
            )
        );
        readiness.set("certificate loaded", true);
        assert_eq!(ask(routes.clone(), "/readyz").await.0, StatusCode::OK);
        readiness.set("caches synced", false);
        assert_eq!(
            ask(routes, "/readyz").await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
    }

    #[tokio::test]
    async fn a_process_that_answers_is_alive() {
        assert_eq!(
            ask(health(Readiness::of(&["x"])), "/healthz").await.0,
            StatusCode::OK
        );
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("things", "Things counted", counter.clone());
        counter.inc();
        let (status, said) = ask(metrics(registry), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            said.contains("things_total 1") && said.ends_with("# EOF\n"),
            "{said}"
        );
    }
}
