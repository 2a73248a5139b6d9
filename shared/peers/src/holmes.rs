//! Client of HolmesGPT-API, which analyses a signal in a session: the client begins a session, asks for
//! its state, and reads its result.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use wfe_model::text::{cut, in_full};

use crate::response::{read_body, refused};
use crate::service::{Connection, ServiceError, ServiceOptions};

/// Deadline of a request; the analysis itself goes on in its session.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bounds the memory of a result.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Maximum length of a quoted error.
const MAX_ERROR: usize = 500;

/// What is to be analysed. All fields are required by the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IncidentRequest {
    /// Identifies the incident: the same for each session of an analysis.
    pub incident_id: String,
    /// Correlation id.
    pub remediation_id: String,
    /// Name of the signal.
    pub signal_name: String,
    /// Severity.
    pub severity: String,
    /// Where the signal comes from.
    pub signal_source: String,
    /// Namespace of the resource.
    pub resource_namespace: String,
    /// Kind of the resource.
    pub resource_kind: String,
    /// Name of the resource.
    pub resource_name: String,
    /// What is wrong.
    pub error_message: String,
    /// Environment.
    pub environment: String,
    /// Business priority.
    pub priority: String,
    /// How much risk is accepted.
    pub risk_tolerance: String,
    /// Business category.
    pub business_category: String,
    /// Name of the cluster.
    pub cluster_name: String,
}

/// State of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Session {
    /// The analysis goes on.
    Running,
    /// The result can be read.
    Completed,
    /// The analysis has failed, for this reason.
    Failed(String),
    /// The service does not know the session: it was restarted.
    Lost,
}

/// The result of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The result, not validated.
    Result(Value),
    /// The analysis goes on.
    NotReady,
    /// The service does not know the session.
    Lost,
}

/// The request was not answered, or refused.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum HolmesError {
    /// The service does not respond, or not as itself.
    #[error("{0}")]
    Unavailable(String),
    /// The service refuses the request, and will do so again.
    #[error("{0}")]
    Refused(String),
}

/// A client of HolmesGPT-API.
#[derive(Clone, Debug)]
pub struct Holmes(Arc<Connection>);

impl Holmes {
    /// Creates the HTTP client, without connecting.
    pub fn new(options: ServiceOptions) -> Result<Self, ServiceError> {
        Ok(Self(Arc::new(Connection::new(options)?)))
    }

    /// Begins a session; returns its id.
    pub async fn analyze(&self, incident: &IncidentRequest) -> Result<String, HolmesError> {
        #[derive(Deserialize)]
        struct Begun {
            session_id: String,
        }
        let request = self
            .request(Method::POST, "api/v1/incident/analyze")
            .await?;
        let response = self.send(request.json(incident)).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(error(response).await);
        }
        let Begun { session_id } = json(response).await?;
        if !is_plain(&session_id) {
            return Err(garbage("session_id must be letters, digits, - and _"));
        }
        Ok(session_id)
    }

    /// The state of a session.
    pub async fn session(&self, id: &str) -> Result<Session, HolmesError> {
        #[derive(Deserialize)]
        struct State {
            status: String,
            #[serde(default)]
            error: Option<String>,
        }
        // The id is read from a status, which others may write.
        if !is_plain(id) {
            return Ok(Session::Lost);
        }
        let path = format!("api/v1/incident/session/{id}");
        let request = self.request(Method::GET, &path).await?;
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Session::Lost),
            _ => return Err(error(response).await),
        }
        let state: State = json(response).await?;
        Ok(match state.status.as_str() {
            "completed" => Session::Completed,
            "failed" => Session::Failed(cut(&state.error.unwrap_or_default(), MAX_ERROR)),
            "pending" | "investigating" | "running" => Session::Running,
            other => return Err(garbage(&format!("unknown status {:?}", cut(other, 50)))),
        })
    }

    /// The result of a session.
    pub async fn result(&self, id: &str) -> Result<Outcome, HolmesError> {
        if !is_plain(id) {
            return Ok(Outcome::Lost);
        }
        let path = format!("api/v1/incident/session/{id}/result");
        let request = self.request(Method::GET, &path).await?;
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK => json(response).await.map(Outcome::Result),
            StatusCode::CONFLICT => Ok(Outcome::NotReady),
            StatusCode::NOT_FOUND => Ok(Outcome::Lost),
            _ => Err(error(response).await),
        }
    }

    async fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, HolmesError> {
        let request = self.0.request(method, path, DEADLINE).await;
        request.map_err(HolmesError::Unavailable)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, HolmesError> {
        let response = request.send().await;
        let response = response.map_err(|error| HolmesError::Unavailable(in_full(&error)))?;
        self.0.heed(&response);
        Ok(response)
    }
}

/// Whether the id of a session can be a part of a path.
fn is_plain(id: &str) -> bool {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '_';
    !id.is_empty() && id.chars().all(is_plain)
}

async fn json<T: for<'de> Deserialize<'de>>(response: Response) -> Result<T, HolmesError> {
    let body = read_body(response, MAX_BODY_BYTES).await;
    let body = body.map_err(|_| garbage("it is too long, or was cut off"))?;
    serde_json::from_slice(&body).map_err(|error| garbage(&error.to_string()))
}

fn garbage(why: &str) -> HolmesError {
    HolmesError::Unavailable(format!("HolmesGPT-API's response cannot be read: {why}"))
}

/// What an error response means: only a request that is invalid is never accepted.
async fn error(response: Response) -> HolmesError {
    let status = response.status();
    let text = refused("HolmesGPT-API", response).await.text;
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => HolmesError::Refused(text),
        _ => HolmesError::Unavailable(text),
    }
}
