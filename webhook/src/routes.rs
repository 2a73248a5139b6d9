//! Routes of the webhook paths, and what all handlers share: the memory budget for request bodies,
//! the deadline, reading the review and writing the response, the tracing span, metrics, and a
//! denial when a handler panics or exceeds the deadline.

use std::any::Any;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::FutureExt;
use http_body_util::BodyExt;
use jiff::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tracing::Instrument;
use wfe_model::text::cut;
use wfe_process::server::ConnectionHandle;

use crate::cancellation;
use crate::clearance;
use crate::deletion;
use crate::metrics::Metrics;
use crate::mutate::Mutator;
use crate::refusal::Refusal;
use crate::review::{Request, ReviewError, Verdict};
use crate::validate::Validator;
use crate::workflow;

/// Below the `timeoutSeconds: 3` of the webhook configuration, so that a slow review is denied with
/// a message instead of a timeout at the API server.
const DEADLINE: Duration = Duration::from_millis(2_500);
/// Lookups end this long before the deadline, so that an unfinished lookup can still be reported.
const LOOKUP_MARGIN: Duration = Duration::from_millis(300);
/// Longest name of a Kubernetes object; longer names are cut in the log.
const MAX_NAME: usize = 253;
/// etcd accepts objects of 1.5 MiB; a review contains two, the new and the stored object.
const MAX_BODY: usize = 3 << 20;
/// Memory for all concurrent reviews: the first [`SMALL_KIB`] of each.
const MEMORY_BUDGET_KIB: usize = 8 << 10;
/// Memory for what large reviews take beyond that: one of the largest at a time. Clients that send large
/// bodies and stall keep others from sending large ones, but leave the room for small ones.
const LARGE_BUDGET_KIB: usize = 12 << 10;
/// Memory of a parsed review as a multiple of its body size.
const BODY_OVERHEAD_FACTOR: usize = 4;
/// Reservation of a small review, of a body of up to 16 KiB; bounds the number of concurrent reviews to
/// `MEMORY_BUDGET_KIB / SMALL_KIB`. One connection has at most 32 requests at a time, a quarter of that.
const SMALL_KIB: usize = 64;
/// How long a review waits for memory before it is rejected with 429.
const ADMISSION_WAIT: Duration = Duration::from_millis(500);
/// The API server sends a body at once; a slow body comes from another client.
const BODY_DEADLINE: Duration = Duration::from_secs(1);

/// The review that a path serves.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Mutate,
    Validate,
    ClearBlock,
    StampCancel,
    WarnDelete,
    ValidateWorkflow,
}

impl Operation {
    const ALL: [Self; 6] = [
        Self::Mutate,
        Self::Validate,
        Self::ClearBlock,
        Self::StampCancel,
        Self::WarnDelete,
        Self::ValidateWorkflow,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Mutate => "/mutate-workflowexecution",
            Self::Validate => "/validate-workflowexecution",
            Self::ClearBlock => "/clear-block",
            Self::StampCancel => "/stamp-cancel",
            Self::WarnDelete => "/warn-delete",
            Self::ValidateWorkflow => "/validate-remediationworkflow",
        }
    }

    /// The operations and resources that the rules of the webhook configuration must select.
    fn operations_and_resources(self) -> &'static [&'static str] {
        match self {
            Self::Mutate | Self::Validate => &["CREATE workflowexecutions"],
            Self::ClearBlock => &["UPDATE workflowexecutions/status"],
            Self::StampCancel => &["UPDATE workflowexecutions"],
            Self::WarnDelete => &["DELETE workflowexecutions"],
            Self::ValidateWorkflow => {
                &["CREATE remediationworkflows", "UPDATE remediationworkflows"]
            }
        }
    }

    /// Name in logs and metrics.
    fn label(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
            Self::ClearBlock => "clear-block",
            Self::StampCancel => "stamp-cancel",
            Self::WarnDelete => "warn-delete",
            Self::ValidateWorkflow => "validate-workflow",
        }
    }
}

/// Serves admission reviews.
pub struct ReviewService {
    mutator: Mutator,
    validator: Validator,
    metrics: Metrics,
    /// One permit per KiB.
    memory_budget: Semaphore,
    /// One permit per KiB.
    large_budget: Semaphore,
}

impl ReviewService {
    /// Creates the service; its whole memory budget is free.
    pub fn new(mutator: Mutator, validator: Validator, metrics: Metrics) -> Self {
        Self {
            mutator,
            validator,
            metrics,
            memory_budget: Semaphore::new(MEMORY_BUDGET_KIB),
            large_budget: Semaphore::new(LARGE_BUDGET_KIB),
        }
    }

    /// The router for the paths in the webhook configurations.
    pub fn routes(self) -> Router {
        let service = Arc::new(self);
        Operation::ALL
            .into_iter()
            .fold(Router::new(), |routes, operation| {
                let handler = async move |State(service): State<Arc<Self>>,
                                          connection: Option<Extension<ConnectionHandle>>,
                                          body: Body| {
                    service.respond(operation, connection, body).await
                };
                routes.route(operation.path(), post(handler).with_state(service.clone()))
            })
    }

    async fn review(
        &self,
        operation: Operation,
        request: &Request<'_>,
        deadline: Instant,
    ) -> Verdict {
        let lookups_end = deadline - LOOKUP_MARGIN;
        match operation {
            Operation::Mutate => self.mutator.mutate(request, lookups_end).await,
            Operation::Validate => self.validator.validate(request, lookups_end).await,
            Operation::ClearBlock => clearance::clear(request, Timestamp::now()),
            Operation::StampCancel => cancellation::stamp(request),
            Operation::WarnDelete => deletion::warn(request),
            Operation::ValidateWorkflow => workflow::review(request),
        }
    }

    /// Reads a request, reviews it within the deadline, and returns the HTTP response.
    async fn respond(
        &self,
        operation: Operation,
        connection: Option<Extension<ConnectionHandle>>,
        body: Body,
    ) -> Response {
        let started = Instant::now();
        let response = async {
            let (_reserved, body) = self.read_body(body).await?;
            let _busy = connection.map(|Extension(connection)| connection.mark_busy());
            let request = Request::read(&body, operation.operations_and_resources())?;
            let deadline = started + DEADLINE;
            let verdict = self.review_within(operation, &request, deadline).await;
            self.metrics
                .answered(operation.label(), &verdict, started.elapsed());
            let body = verdict.response(&request)?;
            Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
        };
        response
            .await
            .unwrap_or_else(|HttpError { code, message }| {
                let operation = operation.label();
                let code_number = code.as_u16();
                tracing::warn!(
                    operation,
                    code = code_number,
                    reason = message,
                    "request rejected without a review"
                );
                self.metrics.turned_away(operation, code);
                let retry_after =
                    (code == StatusCode::TOO_MANY_REQUESTS).then_some([(header::RETRY_AFTER, "1")]);
                (code, retry_after, message).into_response()
            })
    }

    /// Reads the body within its deadline and reserves memory for the received bytes. The announced
    /// `Content-Length` reserves nothing, so that slow clients cannot use up the budget.
    async fn read_body(&self, mut body: Body) -> Result<(Reserved<'_>, Vec<u8>), HttpError> {
        if body.size_hint().lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        let reading = async {
            let mut reserved = Reserved {
                small: self.reserve(1).await?,
                large: none_of(&self.large_budget)?,
            };
            let mut bytes = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(HttpError::bad_request)?;
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if bytes.len() + data.len() > MAX_BODY {
                    return Err(too_large());
                }
                bytes.extend_from_slice(data);
                let needed = (BODY_OVERHEAD_FACTOR * bytes.len()) >> 10;
                grow(
                    &mut reserved.small,
                    &self.memory_budget,
                    needed.min(SMALL_KIB),
                )?;
                let needed = needed.saturating_sub(SMALL_KIB);
                grow(&mut reserved.large, &self.large_budget, needed)?;
            }
            let more = SMALL_KIB.saturating_sub(reserved.small.num_permits());
            reserved.small.merge(self.reserve(more).await?);
            Ok((reserved, bytes))
        };
        let timed_out = |_| HttpError {
            code: StatusCode::REQUEST_TIMEOUT,
            message: format!(
                "the request body was not received within {} ms: try again",
                BODY_DEADLINE.as_millis()
            ),
        };
        let read = tokio::time::timeout(BODY_DEADLINE, reading).await;
        read.map_err(timed_out)?
    }

    /// Reserves memory; waits at most `ADMISSION_WAIT`.
    async fn reserve(&self, kib: usize) -> Result<SemaphorePermit<'_>, HttpError> {
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let acquired =
            tokio::time::timeout(ADMISSION_WAIT, self.memory_budget.acquire_many(kib)).await;
        acquired
            .ok()
            .and_then(Result::ok)
            .ok_or_else(too_many_reviews)
    }

    /// Reviews a request; a handler that panics or exceeds `deadline` results in a denial.
    async fn review_within(
        &self,
        operation: Operation,
        request: &Request<'_>,
        deadline: Instant,
    ) -> Verdict {
        let span = tracing::info_span!(
            "review",
            operation = operation.label(),
            uid = request.uid,
            // Cut, since any client that reaches the port can send names of any length.
            namespace = cut(&request.namespace, MAX_NAME),
            name = cut(&request.name, MAX_NAME),
            user = cut(&request.user().username, MAX_NAME),
        );
        let review = AssertUnwindSafe(self.review(operation, request, deadline)).catch_unwind();
        async {
            let verdict = match tokio::time::timeout_at(deadline, review).await {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(panic)) => Verdict::refuse(vec![Refusal::Panicked(panic_message(&*panic))]),
                Err(_) => Verdict::refuse(vec![Refusal::Timeout {
                    milliseconds: DEADLINE.as_millis(),
                }]),
            };
            if verdict.refusals.is_empty() {
                tracing::debug!("review allowed");
            } else {
                // The full message quotes values, which may be secret: debug level only.
                tracing::info!(rules = verdict.rules(), "review denied");
                tracing::debug!(message_to_user = verdict.message(), "review denied");
            }
            verdict
        }
        .instrument(span)
        .await
    }
}

/// Memory that is reserved for a review.
struct Reserved<'a> {
    small: SemaphorePermit<'a>,
    large: SemaphorePermit<'a>,
}

fn none_of(budget: &Semaphore) -> Result<SemaphorePermit<'_>, HttpError> {
    budget.try_acquire_many(0).map_err(|_| too_many_reviews())
}

/// Makes a reservation at least this large. Does not wait: reviews that each hold a part of the budget
/// would deadlock.
fn grow<'a>(
    held: &mut SemaphorePermit<'a>,
    budget: &'a Semaphore,
    kib: usize,
) -> Result<(), HttpError> {
    let more = kib.saturating_sub(held.num_permits());
    let more = u32::try_from(more).unwrap_or(u32::MAX);
    let more = budget.try_acquire_many(more);
    held.merge(more.map_err(|_| too_many_reviews())?);
    Ok(())
}

/// The HTTP response to a request that is not reviewed. The API server repeats a request after a
/// 429 with `Retry-After`, within its timeout for the webhook.
struct HttpError {
    code: StatusCode,
    message: String,
}

impl HttpError {
    fn bad_request(error: impl Display) -> Self {
        Self {
            code: StatusCode::BAD_REQUEST,
            message: error.to_string(),
        }
    }
}

impl From<ReviewError> for HttpError {
    fn from(error: ReviewError) -> Self {
        Self::bad_request(error)
    }
}

impl From<serde_json::Error> for HttpError {
    fn from(error: serde_json::Error) -> Self {
        Self {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            message: error.to_string(),
        }
    }
}

fn too_many_reviews() -> HttpError {
    HttpError {
        code: StatusCode::TOO_MANY_REQUESTS,
        message: "too many concurrent reviews: try again".to_owned(),
    }
}

fn too_large() -> HttpError {
    HttpError {
        code: StatusCode::PAYLOAD_TOO_LARGE,
        message: format!("the request body must be at most {} MiB", MAX_BODY >> 20),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic without a message".to_owned())
}

#[cfg(test)]
mod tests;
