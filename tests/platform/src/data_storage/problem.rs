//! Error responses.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A problem response (RFC 9457).
pub(super) fn problem(status: StatusCode, kind: &str, title: &str, detail: &str) -> Response {
    let body = json!({ "type": kind, "title": title, "status": status.as_u16(), "detail": detail });
    let header = [(CONTENT_TYPE, "application/problem+json")];
    (status, header, body.to_string()).into_response()
}

/// A problem response with the title of its status.
pub(super) fn refused(status: StatusCode, detail: &str) -> Response {
    problem(
        status,
        "about:blank",
        status.canonical_reason().unwrap_or_default(),
        detail,
    )
}
