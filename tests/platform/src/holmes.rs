//! A stand-in for HolmesGPT-API: its sessions, in memory, with answers that a function gives instead of a
//! language model, and faults on demand.

#![expect(clippy::indexing_slicing, reason = "of JSON: what is missing is null")]

use std::collections::HashMap;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use axum::extract::{Path, Request, State as Extracted};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::authorizer::Authorizer;

/// The Service on which clients need a permission.
const SERVICE: &str = "kubernaut-agent";

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

/// Answers an investigation: the incident in, the result out.
pub type Investigate = Arc<dyn Fn(Value) -> BoxFuture<'static, Value> + Send + Sync>;

/// A running HolmesGPT-API; stops when the value is dropped.
pub struct Holmes {
    inner: Arc<Inner>,
    /// Prepared answers by the name of the signal.
    answers: Arc<Mutex<HashMap<String, Value>>>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

struct Inner {
    investigate: Investigate,
    /// Which clients are authorized; `None`: all.
    authorizer: Option<Authorizer>,
    state: Mutex<State>,
}

/// A session: remaining polls, and the answer when it is known.
#[derive(Default)]
struct Session {
    polls: usize,
    answer: Option<Value>,
}

#[derive(Default)]
struct State {
    sessions: HashMap<String, Session>,
    /// Polls that a session takes at least.
    polls: usize,
    /// Status with which every request is answered.
    outage: Option<u16>,
    begun: usize,
}

impl Holmes {
    /// Serves all clients on a free port of `host`, with prepared answers.
    pub async fn start(host: &str) -> Result<Self> {
        Self::start_for(host, None).await
    }

    /// Serves the clients that `authorizer` admits on a free port of `host`, with prepared answers.
    pub async fn start_for(host: &str, authorizer: Option<Authorizer>) -> Result<Self> {
        let answers = Arc::new(Mutex::new(HashMap::<String, Value>::new()));
        let prepared = answers.clone();
        let investigate = move |incident: Value| -> BoxFuture<'static, Value> {
            let signal = incident["signal_name"].as_str().unwrap_or_default();
            let answer = prepared.lock().get(signal).cloned();
            ready(answer.unwrap_or_default()).boxed()
        };
        let listener = TcpListener::bind((host, 0)).await?;
        Self::listen(listener, Arc::new(investigate), authorizer, answers)
    }

    /// Serves the clients that `authorizer` admits on `address`, with the answers of `investigate`.
    pub async fn serve(
        address: SocketAddr,
        investigate: Investigate,
        authorizer: Authorizer,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Self::listen(listener, investigate, Some(authorizer), Arc::default())
    }

    fn listen(
        listener: TcpListener,
        investigate: Investigate,
        authorizer: Option<Authorizer>,
        answers: Arc<Mutex<HashMap<String, Value>>>,
    ) -> Result<Self> {
        let address = listener.local_addr()?;
        let state = Mutex::default();
        let inner = Arc::new(Inner {
            investigate,
            authorizer,
            state,
        });
        let routes = Router::new()
            .route("/api/v1/incident/analyze", post(analyze))
            .route("/api/v1/incident/session/{id}", get(session))
            .route("/api/v1/incident/session/{id}/result", get(result))
            .layer(from_fn_with_state(inner.clone(), admit))
            .with_state(inner.clone());
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self {
            inner,
            answers,
            address,
            serving,
        })
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Prepares the answer for a signal of this name.
    pub fn answer(&self, signal: &str, answer: Value) {
        self.answers.lock().insert(signal.to_owned(), answer);
    }

    /// Sets how many polls a session takes.
    pub fn take_polls(&self, polls: usize) {
        self.inner.state.lock().polls = polls;
    }

    /// Forgets all sessions, as after a restart.
    pub fn forget_sessions(&self) {
        self.inner.state.lock().sessions.clear();
    }

    /// Answers every request with this status; `None`: no more.
    pub fn fail_with(&self, status: Option<u16>) {
        self.inner.state.lock().outage = status;
    }

    /// Sessions begun so far.
    pub fn begun(&self) -> usize {
        self.inner.state.lock().begun
    }
}

impl Drop for Holmes {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

type Shared = Extracted<Arc<Inner>>;

fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason();
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    let kind = [(CONTENT_TYPE, "application/problem+json")];
    (status, kind, body.to_string()).into_response()
}

impl State {
    fn fault(&self) -> Option<Response> {
        let status = StatusCode::from_u16(self.outage?).ok()?;
        Some(problem(status, "on demand"))
    }
}

async fn admit(Extracted(inner): Shared, request: Request, next: Next) -> Response {
    let verb = match *request.method() {
        Method::GET => "get",
        _ => "create",
    };
    if let Some(authorizer) = &inner.authorizer
        && let Err((status, why)) = authorizer.admit(request.headers(), verb, SERVICE).await
    {
        return problem(status, &why);
    }
    next.run(request).await
}

async fn analyze(Extracted(inner): Shared, Json(incident): Json<Value>) -> Response {
    if let Some(fault) = inner.state.lock().fault() {
        return fault;
    }
    let text = |key: &str| incident.get(key).and_then(Value::as_str);
    let missing = REQUIRED.iter().filter(|it| text(it).is_none());
    let missing: Vec<_> = missing.copied().collect();
    if !missing.is_empty() {
        let detail = format!("field required: {}", missing.join(", "));
        return problem(StatusCode::UNPROCESSABLE_ENTITY, &detail);
    }
    let id = Uuid::new_v4().to_string();
    let mut investigation = (inner.investigate)(incident);
    // A prepared answer is there at once.
    let answer = (&mut investigation).now_or_never();
    let is_open = answer.is_none();
    {
        let mut state = inner.state.lock();
        let polls = state.polls;
        state.sessions.insert(id.clone(), Session { polls, answer });
        state.begun += 1;
    }
    if is_open {
        let id = id.clone();
        tokio::spawn(async move {
            let answer = investigation.await;
            if let Some(session) = inner.state.lock().sessions.get_mut(&id) {
                session.answer = Some(answer);
            }
        });
    }
    (StatusCode::ACCEPTED, Json(json!({ "session_id": id }))).into_response()
}

async fn session(Extracted(inner): Shared, Path(id): Path<String>) -> Response {
    let mut state = inner.state.lock();
    if let Some(fault) = state.fault() {
        return fault;
    }
    let Some(session) = state.sessions.get_mut(&id) else {
        return problem(StatusCode::NOT_FOUND, "no such session");
    };
    let status = if session.result().is_some() {
        "completed"
    } else {
        "investigating"
    };
    session.polls = session.polls.saturating_sub(1);
    Json(json!({ "session_id": id, "status": status })).into_response()
}

async fn result(Extracted(inner): Shared, Path(id): Path<String>) -> Response {
    let state = inner.state.lock();
    if let Some(fault) = state.fault() {
        return fault;
    }
    match state.sessions.get(&id).map(Session::result) {
        None => problem(StatusCode::NOT_FOUND, "no such session"),
        Some(Some(answer)) => Json(answer).into_response(),
        Some(None) => problem(StatusCode::CONFLICT, "not ready"),
    }
}

impl Session {
    /// The answer, once the session has been asked for often enough.
    fn result(&self) -> Option<&Value> {
        self.answer.as_ref().filter(|_| self.polls == 0)
    }
}
