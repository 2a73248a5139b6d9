//! HTTP paths to handlers, with what all of them share: the envelope, a deadline, a span, metrics.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tracing::Instrument;

use crate::metrics::Metrics;
use crate::mutate::mutate;
use crate::review::{Request, Review, Verdict};
use crate::validate::Validator;

/// The API server waits 3 s; what takes longer is answered here, with the uid.
const DEADLINE: Duration = Duration::from_millis(2_500);
/// etcd takes objects of 1.5 MiB; a review has two.
const MAX_BODY: usize = 3 << 20;

/// What handlers need.
#[derive(Clone)]
pub struct Handlers {
    /// Judges creates.
    pub validator: Arc<Validator>,
    /// Counts answers.
    pub metrics: Metrics,
}

/// The paths of the webhook configurations.
pub fn routes(handlers: Handlers) -> Router {
    Router::new()
        .route("/mutate-workflowexecution", post(mutate_route))
        .route("/validate-workflowexecution", post(validate_route))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(handlers)
}

async fn mutate_route(State(handlers): State<Handlers>, body: Bytes) -> Response {
    answer("mutate", &handlers.metrics, &body, async |request| {
        mutate(&request)
    })
    .await
}

async fn validate_route(State(handlers): State<Handlers>, body: Bytes) -> Response {
    answer("validate", &handlers.metrics, &body, async |request| {
        handlers.validator.validate(&request).await
    })
    .await
}

/// Reads the question, has it judged within the deadline, and answers it.
async fn answer<F>(
    operation: &'static str,
    metrics: &Metrics,
    body: &[u8],
    judge: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Verdict>,
{
    let started = Instant::now();
    let request = match serde_json::from_slice::<Review>(body) {
        Ok(review) => review.request,
        Err(error) => {
            tracing::warn!(operation, %error, "a body is no AdmissionReview");
            return (
                StatusCode::BAD_REQUEST,
                format!("the body is no AdmissionReview: {error}"),
            )
                .into_response();
        }
    };
    let uid = request.uid.clone();
    let name = request
        .part("/metadata/name")
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let span = tracing::info_span!(
        "review",
        operation,
        uid,
        namespace = request.namespace,
        name
    );
    let verdict = async {
        let verdict = tokio::time::timeout(DEADLINE, judge(request))
            .await
            .unwrap_or_else(|_| too_late());
        if let Some(denial) = &verdict.denial {
            tracing::info!(reason = denial.reason, message = denial.message(), "denied");
        } else {
            tracing::debug!("allowed");
        }
        verdict
    }
    .instrument(span)
    .await;
    metrics.answered(operation, &verdict, started.elapsed());
    (
        [(header::CONTENT_TYPE, "application/json")],
        verdict.answer(&uid).to_string(),
    )
        .into_response()
}

fn too_late() -> Verdict {
    let message = format!(
        "the review took longer than {} ms: try again",
        DEADLINE.as_millis()
    );
    Verdict::denied(StatusCode::GATEWAY_TIMEOUT, "Timeout", "metadata", message)
}
