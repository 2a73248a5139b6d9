//! The server, with or without TLS: accepts connections and serves HTTP/1.1 and HTTP/2 on them, with
//! bounds that hold against hostile clients.
//!
//! Each handshake runs in the task of its connection. The number of connections is limited: at the
//! limit, a new connection evicts another: one that has not sent a request before one that has, and
//! then the one that has been idle longest, so that half-open, slow and idle connections cannot lock
//! out the API server. During shutdown, requests are still served
//! while clients are asked to reconnect (`Connection: close`, GOAWAY).

mod connections;
mod limits;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use self::connections::ConnectionHandle;
use self::connections::{Connections, Entry};
pub use self::limits::Limits;

/// Delay after a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// Evicted connections that may finish their graceful shutdown although their slot is taken again;
/// further ones are dropped at once, which bounds the file descriptors under attack.
const MAX_GRACEFUL_EVICTIONS: usize = 32;
/// Bytes of all headers of a request.
const MAX_HEADERS: u32 = 16 << 10;
/// Concurrent requests on one HTTP/2 connection.
const MAX_STREAMS: u32 = 32;
/// HTTP/2 flow control: bytes of a body that are buffered before a handler reads them.
const FLOW_CONTROL_WINDOW: u32 = 64 << 10;
/// Delay until the next eviction is tried, when all connections are busy or have not closed yet.
const EVICTION_RETRY_DELAY: Duration = Duration::from_millis(20);
/// HTTP/2 pings detect a peer that has vanished without closing its connection.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// State shared by all connections.
struct Server {
    /// `None`: connections are served without TLS.
    acceptor: Option<TlsAcceptor>,
    http: Builder<TokioExecutor>,
    routes: Router,
    limits: Limits,
    graceful_evictions: Semaphore,
    /// Cancelled at the shutdown signal: clients are asked to reconnect.
    shutting_down: CancellationToken,
    /// Cancelled after `Limits::lame_duck`: connections are closed.
    draining: CancellationToken,
}

/// Serves until `limits.lame_duck` after `shutting_down` is cancelled, then waits up to
/// `limits.drain` for open requests.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    routes: Router,
    limits: Limits,
    shutting_down: CancellationToken,
) {
    let server = Arc::new(Server {
        acceptor: tls.map(|tls| TlsAcceptor::from(Arc::new(tls))),
        http: http(limits),
        routes,
        limits,
        graceful_evictions: Semaphore::new(MAX_GRACEFUL_EVICTIONS),
        shutting_down,
        draining: CancellationToken::new(),
    });
    let slots = Arc::new(Semaphore::new(limits.connections));
    let lame_duck = async {
        server.shutting_down.cancelled().await;
        tokio::time::sleep(limits.lame_duck).await;
    };
    tokio::select! {
        () = accept(&listener, &server, &slots) => {}
        () = lame_duck => {}
    }
    drop(listener);
    server.draining.cancel();
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let drained = tokio::time::timeout(limits.drain, slots.acquire_many(all));
    if drained.await.is_err() {
        tracing::warn!("connections still open after the drain timeout");
    }
}

fn http(limits: Limits) -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .max_buf_size(MAX_HEADERS as usize)
        // hyper applies this timeout between requests as well, so it must not be below `idle`.
        .header_read_timeout(limits.idle);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(FLOW_CONTROL_WINDOW)
        .initial_connection_window_size(FLOW_CONTROL_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    http
}

/// Accepts connections and spawns a task for each. Never returns.
async fn accept(listener: &TcpListener, server: &Arc<Server>, slots: &Arc<Semaphore>) {
    let connections = Connections::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed, retrying");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        // Responses are small: Nagle's algorithm would delay concurrent ones on a connection.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "setting TCP_NODELAY failed, connection dropped");
            continue;
        }
        let slot = take_slot(slots, &connections).await;
        let entry = Arc::new(connections.open());
        tokio::spawn(server.clone().connection(stream, entry, slot));
    }
}

/// Takes a connection slot; evicts an idle connection if there is none. When all
/// connections are busy, new ones wait in the kernel's accept queue: busy ones become idle within
/// the deadline of their reviews.
async fn take_slot(slots: &Arc<Semaphore>, connections: &Connections) -> OwnedSemaphorePermit {
    loop {
        if slots.available_permits() == 0 {
            connections.evict_idle();
        }
        let acquired = tokio::time::timeout(EVICTION_RETRY_DELAY, slots.clone().acquire_owned());
        if let Ok(Ok(slot)) = acquired.await {
            return slot;
        }
    }
}

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum CloseReason {
    /// A new connection needs the slot.
    Evicted,
    /// The connection exceeded the time limit of its phase.
    Idle,
    /// The process shuts down.
    Shutdown,
}

impl CloseReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Idle => "idle",
            Self::Shutdown => "shutdown",
        }
    }
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        entry: Arc<Entry>,
        slot: OwnedSemaphorePermit,
    ) {
        let Some(acceptor) = &self.acceptor else {
            entry.handshake_done();
            return self.clone().serve_stream(stream, false, entry, slot).await;
        };
        let handshake = acceptor.accept(stream);
        let stream = tokio::select! {
            stream = tokio::time::timeout(self.limits.handshake, handshake) => match stream {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => return tracing::debug!("TLS handshake timed out"),
            },
            () = entry.evicted() => return tracing::debug!("TLS handshake aborted, connection evicted"),
            () = self.draining.cancelled() => return,
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2".as_slice());
        entry.handshake_done();
        self.clone()
            .serve_stream(stream, is_http2, entry, slot)
            .await;
    }

    async fn serve_stream(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        is_http2: bool,
        entry: Arc<Entry>,
        slot: OwnedSemaphorePermit,
    ) {
        let service = {
            let (server, entry) = (self.clone(), entry.clone());
            service_fn(move |request| server.clone().serve_request(entry.clone(), request))
        };
        let mut serving = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let reason = tokio::select! {
            result = serving.as_mut() => return log_error(result),
            reason = self.close_reason(&entry, is_http2) => reason,
        };
        tracing::debug!(reason = reason.as_str(), "closing connection");
        serving.as_mut().graceful_shutdown();
        if reason == CloseReason::Evicted {
            // Free the slot now. A busy connection finishes its requests in any case.
            drop(slot);
            let graceful = self.graceful_evictions.try_acquire();
            if graceful.is_err() && !entry.is_busy() {
                return;
            }
            let _ = tokio::time::timeout(self.limits.drain, serving).await;
            return;
        }
        if let Ok(result) = tokio::time::timeout(self.limits.drain, serving).await {
            log_error(result);
        }
        drop(slot);
    }

    async fn serve_request(
        self: Arc<Self>,
        entry: Arc<Entry>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        entry.mark_used();
        request
            .extensions_mut()
            .insert(ConnectionHandle(entry.clone()));
        let is_http2 = request.version() == Version::HTTP_2;
        let Ok(mut response) = self.routes.clone().oneshot(request).await;
        if self.shutting_down.is_cancelled() && !is_http2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        entry.mark_used();
        Ok(response)
    }

    /// Waits until there is a reason to close the connection.
    ///
    /// During shutdown an HTTP/2 connection gets a GOAWAY as soon as it has had a request: the
    /// client then repeats what the server has not accepted. Before the first request hyper would
    /// cut the connection instead. An HTTP/1.1 connection is closed with its next response
    /// (`Connection: close`): closing it between requests could lose a request in flight.
    async fn close_reason(&self, entry: &Entry, is_http2: bool) -> CloseReason {
        let goaway = async {
            self.shutting_down.cancelled().await;
            entry.first_request().await;
        };
        let mut goaway = pin!(goaway);
        loop {
            let idle_deadline = entry.idle_deadline(&self.limits);
            tokio::select! {
                () = entry.evicted() => return CloseReason::Evicted,
                () = goaway.as_mut(), if is_http2 => return CloseReason::Shutdown,
                () = self.draining.cancelled() => return CloseReason::Shutdown,
                () = tokio::time::sleep_until(idle_deadline) => {
                    if entry.idle_deadline(&self.limits) <= idle_deadline {
                        return CloseReason::Idle;
                    }
                }
            }
        }
    }
}

fn log_error(result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = result {
        tracing::debug!(error, "connection failed");
    }
}

#[cfg(test)]
mod tests;
