//! The HTTP handlers of the workflow catalog.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Result;
use axum::extract::{Path, Query, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use axum::{Extension, Json, Router};
use rusqlite::Connection;
use serde_json::{Value, json};
use uuid::Uuid;

use super::fault::CatalogFault;
use super::openapi::OnDemand;
use super::problem::{problem, refused};
use super::workflows::{self, NotRegistered};
use super::{Inner, lock};

type Shared = State<Arc<Inner>>;

/// Context of a discovery request; all of it is required.
const CONTEXT: [&str; 4] = ["severity", "component", "environment", "priority"];

pub(super) fn routes() -> Router<Arc<Inner>> {
    let change = |status: &'static str| patch(set_status).layer(Extension(status));
    Router::new()
        .route("/api/v1/workflows", get(list).post(register))
        .route("/api/v1/workflows/actions", get(actions))
        .route("/api/v1/workflows/actions/{action_type}", get(discover))
        .route("/api/v1/workflows/{id}", get(by_id))
        .route("/api/v1/workflows/{id}/disable", change("disabled"))
        .route("/api/v1/workflows/{id}/enable", change("active"))
        .route("/api/v1/workflows/{id}/deprecate", change("deprecated"))
}

/// Runs `query` for a client who is authorized.
async fn answer(
    inner: &Inner,
    headers: &HeaderMap,
    query: impl FnOnce(&mut Connection) -> Result<Response>,
) -> Response {
    if let Err(refused) = inner.admit(headers).await {
        return *refused;
    }
    let mut store = lock(&inner.store);
    query(store.database())
        .unwrap_or_else(|_| refused(StatusCode::INTERNAL_SERVER_ERROR, "Failed to get workflow"))
}

async fn by_id(State(inner): Shared, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let fault = {
        let mut faults = lock(&inner.faults);
        faults.lookups += 1;
        faults.catalog.clone()
    };
    let on_demand = |response: Response| {
        let mut response = response;
        response.extensions_mut().insert(OnDemand);
        response
    };
    match fault {
        Some(CatalogFault::Slow(delay)) => tokio::time::sleep(delay).await,
        Some(CatalogFault::Answer(status)) => {
            let status = StatusCode::from_u16(status).unwrap_or_default();
            return on_demand((status, "on demand").into_response());
        }
        Some(CatalogFault::TooManyRequests(seconds)) => {
            let retry = [(RETRY_AFTER, seconds.to_string())];
            let status = StatusCode::TOO_MANY_REQUESTS;
            return on_demand((status, retry, "on demand").into_response());
        }
        Some(CatalogFault::Body(body)) => {
            let kind = [(CONTENT_TYPE, "application/json")];
            return on_demand((kind, body).into_response());
        }
        None => {}
    }
    answer(&inner, &headers, |database| {
        // PostgreSQL fails on a text that is no UUID.
        Uuid::try_parse(&id)?;
        let found = workflows::get(database, &id)?;
        // An entry that a test has stored as it is need not fit the document.
        Ok(found.map_or_else(|| not_found(&id), |it| on_demand(Json(it).into_response())))
    })
    .await
}

fn not_found(id: &str) -> Response {
    problem(
        StatusCode::NOT_FOUND,
        "https://kubernaut.ai/problems/workflow-not-found",
        "Not Found",
        &format!("Workflow not found: {id}"),
    )
}

async fn list(State(inner): Shared, headers: HeaderMap) -> Response {
    answer(&inner, &headers, |database| {
        let found = json!({ "workflows": workflows::all(database)? });
        Ok(Json(found).into_response())
    })
    .await
}

async fn register(State(inner): Shared, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    answer(&inner, &headers, |database| {
        let content = body["content"].as_str().unwrap_or_default();
        Ok(match workflows::register(database, content)? {
            Ok(entry) => (StatusCode::CREATED, Json(entry)).into_response(),
            Err(NotRegistered::Invalid(why)) => refused(StatusCode::BAD_REQUEST, &why),
            Err(NotRegistered::Conflict) => {
                refused(StatusCode::CONFLICT, "this version is registered already")
            }
        })
    })
    .await
}

async fn set_status(
    State(inner): Shared,
    Extension(status): Extension<&'static str>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    answer(&inner, &headers, |database| {
        let reason = body["reason"].as_str().unwrap_or_default();
        let changed = workflows::set_status(database, &id, status, reason)?;
        Ok(changed.map_or_else(|| not_found(&id), |it| Json(it).into_response()))
    })
    .await
}

/// The entries that may be offered: active, of the latest version, and fitting the context. The
/// error is the response.
fn offered(
    database: &Connection,
    context: &HashMap<String, String>,
) -> Result<Result<Vec<Value>, Box<Response>>> {
    let missing = CONTEXT.iter().filter(|it| !context.contains_key(**it));
    let missing: Vec<_> = missing.copied().collect();
    if !missing.is_empty() {
        let why = format!("missing required parameters: {}", missing.join(", "));
        return Ok(Err(Box::new(refused(StatusCode::BAD_REQUEST, &why))));
    }
    let mut offered = workflows::all(database)?;
    offered.retain(|entry| {
        let labels = &entry["labels"];
        entry["status"] == "active"
            && entry["isLatestVersion"] == true
            && CONTEXT.iter().all(|key| fits(&labels[key], &context[*key]))
    });
    Ok(Ok(offered))
}

/// Whether a label, a text or a list of texts, has the value or `*`.
fn fits(label: &Value, value: &str) -> bool {
    let is = |it: &Value| {
        let text = it.as_str().unwrap_or_default();
        text == "*" || text.eq_ignore_ascii_case(value)
    };
    label
        .as_array()
        .map_or_else(|| is(label), |all| all.iter().any(is))
}

async fn actions(
    State(inner): Shared,
    Query(context): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    answer(&inner, &headers, |database| {
        let offered = match offered(database, &context)? {
            Ok(offered) => offered,
            Err(refused) => return Ok(*refused),
        };
        let mut counts = BTreeMap::<String, usize>::new();
        for entry in &offered {
            let action = entry["actionType"].as_str().unwrap_or_default();
            *counts.entry(action.to_owned()).or_default() += 1;
        }
        let types = counts.iter().map(
            |(action, count)| json!({ "actionType": action, "description": "", "workflowCount": count }),
        );
        let types: Vec<_> = types.collect();
        let pagination = page(types.len());
        let found = json!({ "actionTypes": types, "pagination": pagination });
        Ok(Json(found).into_response())
    })
    .await
}

async fn discover(
    State(inner): Shared,
    Path(action_type): Path<String>,
    Query(context): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    const KEYS: [&str; 7] = [
        "workflowId",
        "workflowName",
        "name",
        "description",
        "version",
        "executionBundle",
        "executionEngine",
    ];
    answer(&inner, &headers, |database| {
        let offered = match offered(database, &context)? {
            Ok(offered) => offered,
            Err(refused) => return Ok(*refused),
        };
        let offered = offered.iter().filter(|it| it["actionType"] == action_type);
        let short = |entry: &Value| KEYS.map(|key| (key.to_owned(), entry[key].clone()));
        let offered: Vec<_> = offered
            .map(|entry| short(entry).into_iter().collect::<Value>())
            .collect();
        let pagination = page(offered.len());
        let found =
            json!({ "actionType": action_type, "workflows": offered, "pagination": pagination });
        Ok(Json(found).into_response())
    })
    .await
}

/// One page with everything.
fn page(count: usize) -> Value {
    json!({ "totalCount": count, "offset": 0, "limit": count.max(10), "hasMore": false })
}
