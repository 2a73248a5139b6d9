//! The `OpenAPI` document, and the check of requests and responses against it.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jsonschema::Validator;
use serde_json::{Value, json};

use super::problem::refused;

const DOCUMENT: &str = include_str!("openapi.yaml");

/// The schemas of each operation, by its method and path.
pub(super) struct OpenApi(HashMap<(String, String), Operation>);

struct Operation {
    body: Option<Validator>,
    /// By status and content type; the status is `default` for all others.
    responses: HashMap<(String, String), Validator>,
}

impl OpenApi {
    /// Compiles the document.
    pub(super) fn new() -> Result<Self> {
        let document: Value = serde_saphyr::from_str(DOCUMENT)?;
        let paths = document["paths"].as_object().context("no paths")?;
        let mut operations = HashMap::new();
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                let key = (method.to_uppercase(), path.clone());
                operations.insert(key, Operation::new(&document, operation)?);
            }
        }
        Ok(Self(operations))
    }
}

impl Operation {
    fn new(document: &Value, operation: &Value) -> Result<Self> {
        let compile = |schema: &Value| {
            let mut schema = schema.clone();
            // References in the schema are paths in the document.
            schema["components"] = document["components"].clone();
            let compiled = jsonschema::options().offline().build(&schema);
            compiled.map_err(|error| anyhow!("{error}"))
        };
        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
        let body = (!body.is_null()).then(|| compile(body)).transpose()?;
        let mut responses = HashMap::new();
        for (status, mut response) in operation["responses"].as_object().into_iter().flatten() {
            if let Some(reference) = response["$ref"].as_str() {
                let pointer = reference.trim_start_matches('#');
                response = document.pointer(pointer).context("a reference")?;
            }
            for (kind, content) in response["content"].as_object().into_iter().flatten() {
                let key = (status.clone(), kind.clone());
                responses.insert(key, compile(&content["schema"])?);
            }
        }
        Ok(Self { body, responses })
    }

    /// Why a response is not one of the document's.
    fn misfit(&self, status: StatusCode, kind: &str, body: &[u8]) -> Option<String> {
        let found = |status: &str| self.responses.get(&(status.to_owned(), kind.to_owned()));
        let Some(schema) = found(status.as_str()).or_else(|| found("default")) else {
            return Some(format!("no response {status} with {kind:?}"));
        };
        match serde_json::from_slice(body) {
            Ok(body) => errors(schema, &body),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// Every violation of a schema, in the words of the real service.
fn errors(schema: &Validator, value: &Value) -> Option<String> {
    let errors = schema.iter_errors(value);
    let errors = errors.map(|it| format!("Error at \"{}\": {it}", it.instance_path()));
    let errors: Vec<_> = errors.collect();
    (!errors.is_empty()).then(|| errors.join(" | "))
}

/// Rejects requests whose body the document does not have, before they are authenticated, as the real
/// service does. A response that the document does not have is a bug of this fake: it is replaced by
/// one that says so.
pub(super) async fn check(
    State(document): State<Arc<OpenApi>>,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let key = (request.method().to_string(), path.as_str().to_owned());
    let Some(operation) = document.0.get(&key) else {
        return bug(&format!("no operation {key:?}"));
    };
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        return bug("the request broke off");
    };
    if let Some(schema) = &operation.body {
        let bad = |why: &str| refused(StatusCode::BAD_REQUEST, why);
        let value = match serde_json::from_slice::<Value>(&body) {
            Ok(value) => value,
            Err(error) => return bad(&format!("request body must be JSON: {error}")),
        };
        if let Some(errors) = errors(schema, &value) {
            let prefix = "request body has an error: doesn't match schema";
            return bad(&format!("{prefix}: {errors}"));
        }
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        return bug("the response broke off");
    };
    let kind = parts.headers.get(CONTENT_TYPE);
    let kind = kind.and_then(|it| it.to_str().ok()).unwrap_or_default();
    // A fault that a test has asked for is not in the document.
    let on_demand = parts.extensions.get::<OnDemand>().is_some();
    let misfit = operation.misfit(parts.status, kind, &body);
    match misfit.filter(|_| !on_demand) {
        Some(why) => bug(&why),
        None => Response::from_parts(parts, Body::from(body)),
    }
}

/// Marks a response that a test has asked for.
#[derive(Clone)]
pub(super) struct OnDemand;

fn bug(why: &str) -> Response {
    let text = json!({ "bug in the fake, compare openapi.yaml": why }).to_string();
    eprintln!("{text}");
    (StatusCode::NOT_IMPLEMENTED, text).into_response()
}
