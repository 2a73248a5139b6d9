//! The HTTP handlers, and the injection of faults.

use std::panic::resume_unwind;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::problem::{problem, refused};
use super::store::Query;
use super::{Fault, Inner, catalog, lock, openapi, rules};

type Shared = State<Arc<Inner>>;

pub(super) fn routes(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/api/v1/audit/events/batch", post(batch))
        .route("/api/v1/audit/events", get(find))
        .route("/health/ready", get(ready))
        .merge(catalog::routes())
        .route_layer(from_fn_with_state(inner.document.clone(), openapi::check))
        .layer(DefaultBodyLimit::disable())
        .with_state(inner)
}

async fn ready(State(inner): Shared) -> Response {
    match lock(&inner.faults).current {
        Some((Fault::DatabaseDown, _)) => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "about:blank",
            "Not ready",
            "database",
        ),
        _ => Json(json!({ "status": "ready" })).into_response(),
    }
}

async fn batch(State(inner): Shared, headers: HeaderMap, body: String) -> Response {
    let now = Timestamp::now();
    // The OpenAPI document has accepted the body.
    let events = serde_json::from_str::<Vec<Value>>(&body).unwrap_or_default();
    if let Some(refused) = rules::refusal(&events, now) {
        return self::refused(StatusCode::BAD_REQUEST, &refused);
    }
    if let Err(refused) = inner.admit(&headers).await {
        return *refused;
    }
    let fault = {
        let mut faults = lock(&inner.faults);
        faults.batches += 1;
        faults.take()
    };
    match fault {
        Some(Fault::Limit(bytes)) if body.len() > bytes => answered(413),
        None | Some(Fault::Limit(_)) => inner.store(&events),
        Some(Fault::Slow(delay)) => {
            tokio::time::sleep(delay).await;
            inner.store(&events)
        }
        Some(Fault::Answer(status)) => answered(status),
        Some(Fault::DatabaseDown) => failed(),
        Some(Fault::LoseAnswer) => {
            inner.store(&events);
            // The panic of the handler closes the connection without a response.
            resume_unwind(Box::new("the answer is lost"))
        }
        Some(Fault::CommitLate(delay)) => {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                inner.store(&events);
            });
            std::future::pending().await
        }
    }
}

async fn find(State(inner): Shared, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let query = match read_query(query.as_deref().unwrap_or_default()) {
        Ok(query) => query,
        Err(refused) => return self::refused(StatusCode::BAD_REQUEST, &refused),
    };
    if let Err(refused) = inner.admit(&headers).await {
        return *refused;
    }
    let fault = {
        let mut faults = lock(&inner.faults);
        faults.queries += 1;
        faults.current.map(|(fault, _)| fault)
    };
    match fault {
        Some(Fault::Answer(status)) => return answered(status),
        Some(Fault::DatabaseDown) => return failed(),
        _ => {}
    }
    let store = lock(&inner.store);
    let Ok((data, total)) = store.find(&query) else {
        return failed();
    };
    let has_more = query.offset + data.len() < total;
    let pagination = json!({ "limit": query.limit, "offset": query.offset, "total": total, "has_more": has_more });
    Json(json!({ "data": data, "pagination": pagination })).into_response()
}

/// Unknown parameters are ignored, as in the real service.
fn read_query(text: &str) -> Result<Query, String> {
    let mut query = Query {
        limit: 50,
        ..Query::default()
    };
    for (key, value) in url::form_urlencoded::parse(text.as_bytes()) {
        let number = || value.parse::<usize>().map_err(|error| error.to_string());
        let instant = || value.parse().map_err(|_| format!("{key}: no instant"));
        match key.as_ref() {
            "correlation_id" => query.correlation_id = Some(value.into_owned()),
            "event_type" => query.event_type = Some(value.into_owned()),
            "since" => query.since = Some(instant()?),
            "until" => query.until = Some(instant()?),
            "limit" => query.limit = number()?,
            "offset" => query.offset = number()?,
            _ => {}
        }
    }
    if (1..=1000).contains(&query.limit) {
        Ok(query)
    } else {
        Err("limit must be 1 to 1000".to_owned())
    }
}

fn answered(status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    refused(status, "on demand")
}

fn failed() -> Response {
    refused(
        StatusCode::INTERNAL_SERVER_ERROR,
        "Failed to write audit events batch to database",
    )
}

impl super::Faults {
    /// The fault to apply to this batch; counts down.
    fn take(&mut self) -> Option<Fault> {
        let (fault, times) = self.current.as_mut()?;
        let fault = *fault;
        *times = times.saturating_sub(1);
        if *times == 0 {
            self.current = None;
        }
        Some(fault)
    }
}

impl Inner {
    fn store(&self, events: &[Value]) -> Response {
        let (failing_text, keeps_engine) = {
            let faults = lock(&self.faults);
            (faults.failing_text.clone(), faults.keeps_engine)
        };
        let has = |event: &Value| {
            failing_text
                .as_ref()
                .is_some_and(|it| event.to_string().contains(it))
        };
        if events
            .iter()
            .any(|event| rules::exceeds_columns(event) || has(event))
        {
            return failed();
        }
        let mut store = lock(&self.store);
        match store.insert(events, keeps_engine) {
            Ok(ids) => {
                let message = format!("{} audit events created successfully", ids.len());
                let body = json!({ "event_ids": ids, "message": message });
                (StatusCode::CREATED, Json(body)).into_response()
            }
            Err(_) => failed(),
        }
    }

    /// Authenticates and authorizes the request; the error is the response.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        let admitted = self
            .authorizer
            .admit(headers, "create", "data-storage-service")
            .await;
        admitted.map_err(|(status, why)| Box::new(refused(status, &why)))
    }
}
