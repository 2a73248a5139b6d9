//! The TLS accept loop, for clients that mean no harm and for those that do.
//!
//! A handshake runs in its connection's own task. The number of connections is bounded: when all
//! are taken, the one that has done nothing for the longest time makes room, so that neither
//! half-open nor slow nor idle ones keep the API server out. On shutdown clients are told to go
//! elsewhere while they are still served.

mod connections;

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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use self::connections::Judging;
use self::connections::{Connections, Entry};
use crate::certificate::ServingCertificate;

/// After an accept that failed (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that are told about their end, beyond those that are served.
const FAREWELLS: usize = 32;
/// All headers of a request.
const MAX_HEADERS: u32 = 16 << 10;
/// Requests at one time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 32;
/// How much of a body may be on its way before it is asked for.
const WINDOW: u32 = 64 << 10;
/// How soon another connection is asked to make room, where all were busy.
const MAKE_ROOM_AGAIN: Duration = Duration::from_millis(20);
/// An HTTP/2 peer that is gone is noticed by these.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// How much and how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time.
    pub connections: usize,
    /// From the accept to the end of the handshake.
    pub handshake: Duration,
    /// From the handshake to the first request's headers.
    pub first_request: Duration,
    /// Between two requests; clients of the API server's kind keep connections for 90 s, and
    /// should be the ones to close.
    pub idle: Duration,
    /// From the signal to the end of accepting: until the last client knows where else to go.
    pub lame_duck: Duration,
    /// For the connections that are left then.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            handshake: Duration::from_secs(5),
            first_request: Duration::from_secs(10),
            idle: Duration::from_mins(2),
            lame_duck: Duration::from_secs(5),
            drain: Duration::from_secs(5),
        }
    }
}

/// TLS 1.2 and 1.3 with whatever certificate is current.
pub fn tls(certificate: Arc<ServingCertificate>) -> ServerConfig {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// What every connection needs.
struct Server {
    acceptor: TlsAcceptor,
    http: Builder<TokioExecutor>,
    routes: Router,
    limits: Limits,
    farewells: Semaphore,
    /// Clients are to go elsewhere.
    leaving: CancellationToken,
    /// Nobody is served any more.
    ended: CancellationToken,
}

/// Serves until some seconds after `leaving`, then lets open requests finish.
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    routes: Router,
    limits: Limits,
    leaving: CancellationToken,
) {
    let server = Arc::new(Server {
        acceptor: TlsAcceptor::from(Arc::new(tls)),
        http: http(limits),
        routes,
        limits,
        farewells: Semaphore::new(FAREWELLS),
        leaving,
        ended: CancellationToken::new(),
    });
    let slots = Arc::new(Semaphore::new(limits.connections));
    let lame_duck = async {
        server.leaving.cancelled().await;
        tokio::time::sleep(limits.lame_duck).await;
    };
    tokio::select! {
        () = accept(&listener, &server, &slots) => {}
        () = lame_duck => {}
    }
    drop(listener);
    server.ended.cancel();
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let drained = tokio::time::timeout(limits.drain, slots.acquire_many(all));
    if drained.await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

fn http(limits: Limits) -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .max_buf_size(MAX_HEADERS as usize)
        // It runs between requests, too.
        .header_read_timeout(limits.idle);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_DEADLINE);
    http
}

/// For ever: each connection gets a slot, if need be that of one that does nothing.
async fn accept(listener: &TcpListener, server: &Arc<Server>, slots: &Arc<Semaphore>) {
    let connections = Connections::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small, and several may be on their way on one connection.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone at once");
            continue;
        }
        let slot = take_slot(slots, &connections).await;
        let entry = Arc::new(connections.open());
        tokio::spawn(server.clone().connection(stream, entry, slot));
    }
}

/// A slot, if need be that of a connection that does nothing. When all are busy, new ones wait in the
/// kernel's queue: a request has a deadline.
async fn take_slot(slots: &Arc<Semaphore>, connections: &Connections) -> OwnedSemaphorePermit {
    loop {
        if slots.available_permits() == 0 {
            connections.close_longest_idle();
        }
        let freed = tokio::time::timeout(MAKE_ROOM_AGAIN, slots.clone().acquire_owned());
        if let Ok(Ok(slot)) = freed.await {
            return slot;
        }
    }
}

/// Why a connection is ended from here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// Another one needs its slot.
    MakesRoom,
    /// It has been idle for too long.
    Idle,
    /// The process ends.
    Shutdown,
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        entry: Arc<Entry>,
        slot: OwnedSemaphorePermit,
    ) {
        let handshake = self.acceptor.accept(stream);
        let stream = tokio::select! {
            stream = tokio::time::timeout(self.limits.handshake, handshake) => match stream {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => return tracing::debug!("TLS handshake took too long"),
            },
            () = entry.evicted() => return tracing::debug!("TLS handshake made room"),
            () = self.ended.cancelled() => return,
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2".as_slice());
        entry.shook_hands();
        let service = {
            let (server, entry) = (self.clone(), entry.clone());
            service_fn(move |request| server.clone().answer(entry.clone(), request))
        };
        let mut serving = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let end = tokio::select! {
            result = serving.as_mut() => return note(result),
            end = self.end(&entry, is_http2) => end,
        };
        tracing::debug!(?end, "a connection is closed");
        serving.as_mut().graceful_shutdown();
        if end == End::MakesRoom {
            // The slot is needed now; a few may say goodbye, an attacker's many may not.
            drop(slot);
            let farewell = self.farewells.try_acquire();
            if farewell.is_err() && !entry.is_busy() {
                return;
            }
            let _ = tokio::time::timeout(self.limits.drain, serving).await;
            return;
        }
        if let Ok(result) = tokio::time::timeout(self.limits.drain, serving).await {
            note(result);
        }
        drop(slot);
    }

    async fn answer(
        self: Arc<Self>,
        entry: Arc<Entry>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        entry.used();
        request.extensions_mut().insert(Judging(entry.clone()));
        let is_http2 = request.version() == Version::HTTP_2;
        let Ok(mut response) = self.routes.clone().oneshot(request).await;
        if self.leaving.is_cancelled() && !is_http2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        entry.used();
        Ok(response)
    }

    /// Until there is a reason to end the connection. HTTP/2 has a way to say so between requests,
    /// once the first has come: before, the client is cut off. An HTTP/1.1 client hears it with
    /// its next answer, lest it lose a request that it is just sending.
    async fn end(&self, entry: &Entry, is_http2: bool) -> End {
        let told = async {
            self.leaving.cancelled().await;
            entry.asked().await;
        };
        let mut told = pin!(told);
        loop {
            let quiet_until = entry.quiet_until(&self.limits);
            tokio::select! {
                () = entry.evicted() => return End::MakesRoom,
                () = told.as_mut(), if is_http2 => return End::Shutdown,
                () = self.ended.cancelled() => return End::Shutdown,
                () = tokio::time::sleep_until(quiet_until) => {
                    if entry.quiet_until(&self.limits) <= quiet_until {
                        return End::Idle;
                    }
                }
            }
        }
    }
}

fn note(result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = result {
        tracing::debug!(error, "a connection ended");
    }
}

#[cfg(test)]
mod tests;
