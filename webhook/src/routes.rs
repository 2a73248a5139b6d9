//! HTTP paths to handlers, with what all of them share: room for the body, a deadline, the
//! envelope, a span, metrics, and an answer whatever happens.

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

use crate::clearance;
use crate::metrics::Metrics;
use crate::mutate::Mutator;
use crate::refusal::Refusal;
use crate::review::{NoReview, Request, Verdict};
use crate::server::Judging;
use crate::validate::Validator;

/// The API server waits 3 s; what takes longer is answered here, with the uid.
const DEADLINE: Duration = Duration::from_millis(2_500);
/// What has not been looked up by then is an outage, and can still be said.
const LOOKUPS_END_BEFORE: Duration = Duration::from_millis(300);
/// Of names in logs.
const MAX_NAME: usize = 253;
/// etcd takes objects of 1.5 MiB; a review has two.
const MAX_BODY: usize = 3 << 20;
/// What all reviews at one time may take, in KiB.
const ROOM: usize = 16 << 10;
/// How many times its size a body takes when it is read.
const TAKES: usize = 4;
/// The least that a review counts for while it is judged, in KiB: as many as `ROOM / LEAST` at one
/// time.
const LEAST: usize = 64;
/// How long a review waits for room.
const PATIENCE: Duration = Duration::from_millis(500);
/// The API server sends a body in one go.
const BODY_DEADLINE: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Mutate,
    Validate,
    ClearBlock,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Mutate, Self::Validate, Self::ClearBlock];

    fn path(self) -> &'static str {
        match self {
            Self::Mutate => "/mutate-workflowexecution",
            Self::Validate => "/validate-workflowexecution",
            Self::ClearBlock => "/clear-block",
        }
    }

    /// What the rules of the webhook configuration must send.
    fn subject(self) -> &'static str {
        match self {
            Self::Mutate | Self::Validate => "CREATE workflowexecutions",
            Self::ClearBlock => "UPDATE workflowexecutions/status",
        }
    }

    /// In logs and metrics.
    fn label(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
            Self::ClearBlock => "clear-block",
        }
    }
}

/// Judges reviews.
pub struct Gate {
    mutator: Mutator,
    validator: Validator,
    metrics: Metrics,
    room: Semaphore,
}

impl Gate {
    /// With all its room.
    pub fn new(mutator: Mutator, validator: Validator, metrics: Metrics) -> Self {
        Self {
            mutator,
            validator,
            metrics,
            room: Semaphore::new(ROOM),
        }
    }

    /// The paths of the webhook configurations.
    pub fn routes(self) -> Router {
        let gate = Arc::new(self);
        Operation::ALL
            .into_iter()
            .fold(Router::new(), |routes, operation| {
                let handler = async move |State(gate): State<Arc<Self>>,
                                          judging: Option<Extension<Judging>>,
                                          body: Body| {
                    gate.answer(operation, judging, body).await
                };
                routes.route(operation.path(), post(handler).with_state(gate.clone()))
            })
    }

    async fn judge(
        &self,
        operation: Operation,
        request: &Request<'_>,
        deadline: Instant,
    ) -> Verdict {
        let lookups_end = deadline - LOOKUPS_END_BEFORE;
        match operation {
            Operation::Mutate => self.mutator.mutate(request, lookups_end).await,
            Operation::Validate => self.validator.validate(request, lookups_end).await,
            Operation::ClearBlock => clearance::clear(request, Timestamp::now()),
        }
    }

    /// Reads the question, has it judged within the deadline, and answers it.
    async fn answer(
        &self,
        operation: Operation,
        judging: Option<Extension<Judging>>,
        body: Body,
    ) -> Response {
        let started = Instant::now();
        let answered = async {
            let (_room, body) = self.read(body).await?;
            let _judging = judging.map(|Extension(judging)| judging.begin());
            let request = Request::read(&body, operation.subject())?;
            let deadline = started + DEADLINE;
            let verdict = self.decide(operation, &request, deadline).await;
            self.metrics
                .answered(operation.label(), &verdict, started.elapsed());
            let answer = verdict.answer(&request.uid)?;
            Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
        };
        answered.await.unwrap_or_else(|NoAnswer { code, message }| {
            let operation = operation.label();
            let code_number = code.as_u16();
            tracing::warn!(
                operation,
                code = code_number,
                why = message,
                "no review was answered"
            );
            self.metrics.turned_away(operation, code);
            let again =
                (code == StatusCode::TOO_MANY_REQUESTS).then_some([(header::RETRY_AFTER, "1")]);
            (code, again, message).into_response()
        })
    }

    /// The body, within its deadline. What has come takes room, not what is announced: who sends
    /// slowly keeps nobody out.
    async fn read(&self, mut body: Body) -> Result<(SemaphorePermit<'_>, Vec<u8>), NoAnswer> {
        if body.size_hint().lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        let reading = async {
            let (mut room, mut bytes) = (self.room(1).await?, Vec::new());
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(NoAnswer::bad_request)?;
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if bytes.len() + data.len() > MAX_BODY {
                    return Err(too_large());
                }
                bytes.extend_from_slice(data);
                // Without waiting: two that hold half of their room each would wait for ever.
                let more = ((TAKES * bytes.len()) >> 10).saturating_sub(room.num_permits());
                let more = u32::try_from(more).unwrap_or(u32::MAX);
                room.merge(self.room.try_acquire_many(more).map_err(|_| no_room())?);
            }
            let more = LEAST.saturating_sub(room.num_permits());
            room.merge(self.room(more).await?);
            Ok((room, bytes))
        };
        let late = |_| NoAnswer {
            code: StatusCode::REQUEST_TIMEOUT,
            message: format!(
                "the body did not come within {} ms",
                BODY_DEADLINE.as_millis()
            ),
        };
        let read = tokio::time::timeout(BODY_DEADLINE, reading).await;
        read.map_err(late)?
    }

    /// So much, in a while.
    async fn room(&self, kib: usize) -> Result<SemaphorePermit<'_>, NoAnswer> {
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let acquired = tokio::time::timeout(PATIENCE, self.room.acquire_many(kib)).await;
        acquired.ok().and_then(Result::ok).ok_or_else(no_room)
    }

    /// The verdict, also where the handler takes too long or fails.
    async fn decide(
        &self,
        operation: Operation,
        request: &Request<'_>,
        deadline: Instant,
    ) -> Verdict {
        let span = tracing::info_span!(
            "review",
            operation = operation.label(),
            uid = request.uid,
            // Whoever reaches the port can send anything.
            namespace = cut(&request.namespace, MAX_NAME),
            name = cut(&request.name, MAX_NAME),
            user = cut(&request.user().username, MAX_NAME),
        );
        let judged = AssertUnwindSafe(self.judge(operation, request, deadline)).catch_unwind();
        async {
            let verdict = match tokio::time::timeout_at(deadline, judged).await {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(panic)) => Verdict::refuse(vec![Refusal::Panicked(message_of(&*panic))]),
                Err(_) => Verdict::refuse(vec![Refusal::Timeout {
                    milliseconds: DEADLINE.as_millis(),
                }]),
            };
            if verdict.refusals.is_empty() {
                tracing::debug!("allowed");
            } else {
                // Values may be secret: they are told to who sent them.
                tracing::info!(rules = verdict.rules(), "denied");
                tracing::debug!(answer = verdict.message(), "denied");
            }
            verdict
        }
        .instrument(span)
        .await
    }
}

/// What the API server hears where there is no review to answer, or no room for one. It repeats
/// a 429 with `Retry-After`, within its deadline.
struct NoAnswer {
    code: StatusCode,
    message: String,
}

impl NoAnswer {
    fn bad_request(error: impl Display) -> Self {
        Self {
            code: StatusCode::BAD_REQUEST,
            message: error.to_string(),
        }
    }
}

impl From<NoReview> for NoAnswer {
    fn from(error: NoReview) -> Self {
        Self::bad_request(error)
    }
}

impl From<serde_json::Error> for NoAnswer {
    fn from(error: serde_json::Error) -> Self {
        Self {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            message: error.to_string(),
        }
    }
}

fn no_room() -> NoAnswer {
    NoAnswer {
        code: StatusCode::TOO_MANY_REQUESTS,
        message: "too many reviews at one time: try again".to_owned(),
    }
}

fn too_large() -> NoAnswer {
    NoAnswer {
        code: StatusCode::PAYLOAD_TOO_LARGE,
        message: format!("a review has at most {} MiB", MAX_BODY >> 20),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it panicked".to_owned())
}

#[cfg(test)]
mod tests;
