//! A receiver of notifications, in memory: a chat, a pager or a ticket system elsewhere.

use std::sync::Arc;

use anyhow::Result;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::notification::Notification;

type Taken = Arc<Mutex<Vec<Notification>>>;

/// Takes notifications by POST and lists all of them on GET, both at `/notifications`.
pub async fn run(listener: TcpListener) -> Result<()> {
    let routes = Router::new()
        .route("/notifications", post(take).get(list))
        .with_state(Taken::default());
    Ok(axum::serve(listener, routes).await?)
}

async fn take(State(taken): State<Taken>, Json(notification): Json<Notification>) -> StatusCode {
    tracing::info!(text = notification.text, "received");
    taken.lock().push(notification);
    StatusCode::CREATED
}

async fn list(State(taken): State<Taken>) -> Json<Vec<Notification>> {
    Json(taken.lock().clone())
}
