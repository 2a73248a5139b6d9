//! A fake of HolmesGPT-API: sessions with prepared answers instead of a language model, with faults on
//! demand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Fields without which a request is invalid.
const REQUIRED: [&str; 14] = [
    "incident_id",
    "remediation_id",
    "signal_name",
    "severity",
    "signal_source",
    "resource_namespace",
    "resource_kind",
    "resource_name",
    "error_message",
    "environment",
    "priority",
    "risk_tolerance",
    "business_category",
    "cluster_name",
];

/// A running fake; stops when the value is dropped.
pub struct Holmes {
    inner: Arc<Mutex<Inner>>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Inner {
    /// The answer by the name of the signal.
    answers: HashMap<String, Value>,
    /// Remaining polls and answer, by the id of the session.
    sessions: HashMap<String, (usize, Value)>,
    /// Polls until a session is complete.
    polls: usize,
    /// Status with which every request is answered.
    outage: Option<u16>,
    begun: usize,
}

impl Holmes {
    /// Serves on a free port of `host`.
    pub async fn start(host: &str) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await?;
        let address = listener.local_addr()?;
        let inner = Arc::new(Mutex::new(Inner::default()));
        let routes = Router::new()
            .route("/api/v1/incident/analyze", post(analyze))
            .route("/api/v1/incident/session/{id}", get(session))
            .route("/api/v1/incident/session/{id}/result", get(result))
            .with_state(inner.clone());
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self {
            inner,
            address,
            serving,
        })
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the answer for a signal of this name.
    pub fn answer(&self, signal: &str, answer: Value) {
        self.inner.lock().answers.insert(signal.to_owned(), answer);
    }

    /// Sets how many polls a session takes.
    pub fn take_polls(&self, polls: usize) {
        self.inner.lock().polls = polls;
    }

    /// Forgets all sessions, as after a restart.
    pub fn forget_sessions(&self) {
        self.inner.lock().sessions.clear();
    }

    /// Answers every request with this status; `None`: no more.
    pub fn fail_with(&self, status: Option<u16>) {
        self.inner.lock().outage = status;
    }

    /// Sessions begun so far.
    pub fn begun(&self) -> usize {
        self.inner.lock().begun
    }
}

impl Drop for Holmes {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

type Shared = State<Arc<Mutex<Inner>>>;

fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason();
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    let kind = [(CONTENT_TYPE, "application/problem+json")];
    (status, kind, body.to_string()).into_response()
}

impl Inner {
    fn fault(&self) -> Option<Response> {
        let status = StatusCode::from_u16(self.outage?).ok()?;
        Some(problem(status, "on demand"))
    }
}

async fn analyze(State(inner): Shared, Json(incident): Json<Value>) -> Response {
    let mut inner = inner.lock();
    if let Some(fault) = inner.fault() {
        return fault;
    }
    let text = |key: &str| incident.get(key).and_then(Value::as_str);
    let missing = REQUIRED.iter().filter(|it| text(it).is_none());
    let missing: Vec<_> = missing.copied().collect();
    if !missing.is_empty() {
        let detail = format!("field required: {}", missing.join(", "));
        return problem(StatusCode::UNPROCESSABLE_ENTITY, &detail);
    }
    let signal = text("signal_name").unwrap_or_default();
    let answer = inner.answers.get(signal).cloned().unwrap_or_default();
    let (id, polls) = (Uuid::new_v4().to_string(), inner.polls);
    inner.sessions.insert(id.clone(), (polls, answer));
    inner.begun += 1;
    (StatusCode::ACCEPTED, Json(json!({ "session_id": id }))).into_response()
}

async fn session(State(inner): Shared, Path(id): Path<String>) -> Response {
    let mut inner = inner.lock();
    if let Some(fault) = inner.fault() {
        return fault;
    }
    let Some((polls, _)) = inner.sessions.get_mut(&id) else {
        return problem(StatusCode::NOT_FOUND, "no such session");
    };
    let status = if *polls == 0 {
        "completed"
    } else {
        "investigating"
    };
    *polls = polls.saturating_sub(1);
    Json(json!({ "session_id": id, "status": status })).into_response()
}

async fn result(State(inner): Shared, Path(id): Path<String>) -> Response {
    let inner = inner.lock();
    if let Some(fault) = inner.fault() {
        return fault;
    }
    match inner.sessions.get(&id) {
        None => problem(StatusCode::NOT_FOUND, "no such session"),
        Some((0, answer)) => Json(answer).into_response(),
        Some(_) => problem(StatusCode::CONFLICT, "not ready"),
    }
}
