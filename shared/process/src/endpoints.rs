//! The endpoints `/healthz`, `/readyz` and `/metrics`.

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

/// The listener could not be bound.
#[derive(Debug, Error)]
#[error("listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Named conditions of readiness. Each component sets its own condition.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Vec<(&'static str, AtomicBool)>>);

impl Readiness {
    /// Creates `conditions`, all of them unset. The process is ready when all are set.
    pub fn of(conditions: &[&'static str]) -> Self {
        Self(Arc::new(
            conditions
                .iter()
                .map(|name| (*name, AtomicBool::new(false)))
                .collect(),
        ))
    }

    /// Sets or unsets a condition.
    pub fn set(&self, condition: &str, holds: bool) {
        for (_, value) in self.0.iter().filter(|(name, _)| *name == condition) {
            value.store(holds, Ordering::Relaxed);
        }
    }

    /// The unset conditions.
    fn unset(&self) -> Vec<&'static str> {
        self.0
            .iter()
            .filter(|(_, value)| !value.load(Ordering::Relaxed))
            .map(|(name, _)| *name)
            .collect()
    }
}

/// Routes of the health endpoint. `/healthz` responds as long as the runtime schedules tasks.
pub fn health(readiness: Readiness) -> Router {
    let readyz = async |State(readiness): State<Readiness>| {
        let unset = readiness.unset();
        if unset.is_empty() {
            (StatusCode::OK, "ok".to_owned())
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {}", unset.join(", ")),
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

/// Binds `address` and serves `routes` in the background until `stop` is cancelled.
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
            tracing::error!(%address, %error, "endpoint failed");
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
        readiness.set("caches synced", false);
        assert_eq!(
            get_path(routes, "/readyz").await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
    }

    #[tokio::test]
    async fn healthz_without_ready_conditions_is_200() {
        assert_eq!(
            get_path(health(Readiness::of(&["x"])), "/healthz").await.0,
            StatusCode::OK
        );
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
