//! An HTTP proxy between a controller and the API server that injects faults into requests.
//!
//! Every mutating request has a name: verb, resource and ordinal, as in
//! `update workflowexecutions/status #2`. Watch events can be held back by resource.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::response::Parts;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use futures::{Stream, StreamExt};
use http_body_util::BodyExt;
use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A fault that is applied to one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The request is not forwarded, and never answered.
    Drop,
    /// The request is forwarded, and never answered.
    DropAnswer,
    /// The proxy answers with this status code instead of the API server.
    Refuse(u16),
    /// The request is forwarded after the delay, even if the client has gone.
    Delay(Duration),
    /// The request is forwarded by [`Proxy::deliver`], and never answered.
    Hold,
}

/// How the API server is, for every request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Weather {
    /// As it is.
    #[default]
    Fair,
    /// Each request takes this time longer.
    Slow(Duration),
    /// Each request is answered with 429 and this header `Retry-After`, in seconds.
    Throttled(u32),
    /// Every second request is answered with 503.
    Flaky,
    /// Nothing is answered, open watches are silent, and no connection is closed.
    Silent,
    /// Each watch is answered with 410, since what changed is not known any more.
    Expired,
    /// Its clock is an hour behind.
    Behind,
}

/// A request that is held back.
struct Held {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

/// A proxy for one controller; stops when the value is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    upstream: Client,
    requests: Mutex<Requests>,
    weather: watch::Sender<Weather>,
    /// Number of faults applied so far.
    applied_faults: watch::Sender<usize>,
    /// Number of requests received, reads included.
    received: watch::Sender<usize>,
    /// Resources whose watch events are held back.
    held_resources: watch::Sender<HashSet<String>>,
    /// Number of watch chunks that were held back, by resource.
    withheld: Mutex<HashMap<String, usize>>,
    /// Number of times that all open watches became silent.
    frozen: watch::Sender<usize>,
    /// Number of times that all watches were closed.
    cut: watch::Sender<usize>,
}

#[derive(Default)]
struct Requests {
    counts: HashMap<String, usize>,
    mutations: Vec<String>,
    held: Vec<Held>,
    armed: Option<(String, Fault)>,
}

impl Proxy {
    /// Forwards requests to the API server with the credentials of `upstream`, on a free port.
    pub async fn start(upstream: Client) -> Result<Self> {
        let shared = Arc::new(Shared {
            upstream,
            requests: Mutex::default(),
            weather: watch::Sender::new(Weather::Fair),
            applied_faults: watch::Sender::new(0),
            received: watch::Sender::new(0),
            held_resources: watch::Sender::new(HashSet::new()),
            withheld: Mutex::default(),
            frozen: watch::Sender::new(0),
            cut: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let routes = Router::new().fallback(handle).with_state(shared.clone());
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self {
            address,
            shared,
            task: task.abort_handle(),
        })
    }

    /// A kubeconfig whose server is this proxy.
    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{ "name": "proxy", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "proxy", "user": {} }],
            "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "proxy", "namespace": self.shared.upstream.default_namespace() } }],
        })
    }

    /// Resets the ordinals, and applies `fault` to the request of that name.
    pub fn arm(&self, fault: Option<(String, Fault)>) {
        *self.shared.requests() = Requests {
            armed: fault,
            ..Requests::default()
        };
    }

    /// Changes the weather.
    pub fn weather(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Lets the weather last, then clears it. With [`Weather::Expired`] open watches are closed first.
    pub async fn clear_after(&self, lasting: Duration) {
        if *self.shared.weather.borrow() == Weather::Expired {
            self.cut();
        }
        tokio::time::sleep(lasting).await;
        self.weather(Weather::Fair);
    }

    /// Open watches say nothing any more, and are not closed either.
    pub fn freeze(&self) {
        self.shared.frozen.send_modify(|count| *count += 1);
    }

    /// Number of requests received so far, reads included.
    pub fn received(&self) -> usize {
        *self.shared.received.borrow()
    }

    /// Names of the mutating requests since [`arm`](Self::arm).
    pub fn mutations(&self) -> Vec<String> {
        self.shared.requests().mutations.clone()
    }

    /// Completes when the next fault is applied.
    pub fn next_fault(&self) -> impl Future<Output = ()> + use<> {
        increased_by(1, self.shared.applied_faults.subscribe())
    }

    /// Completes when `count` more requests have been received, reads included.
    pub fn requests(&self, count: usize) -> impl Future<Output = ()> + use<> {
        increased_by(count, self.shared.received.subscribe())
    }

    /// Holds back the watch events of `resource` until [`release`](Self::release).
    pub fn hold(&self, resource: &str) {
        self.shared.held_resources.send_modify(|held| {
            held.insert(resource.to_owned());
        });
    }

    /// Number of chunks of watch events of `resource` that were held back.
    pub fn withheld(&self, resource: &str) -> usize {
        let withheld = self.shared.withheld.lock();
        withheld.get(resource).copied().unwrap_or(0)
    }

    /// Forwards all watch events again.
    pub fn release(&self) {
        self.shared.held_resources.send_modify(HashSet::clear);
    }

    /// Forwards the requests held by [`Fault::Hold`]; returns the status codes of the API server.
    pub async fn deliver(&self) -> Result<Vec<StatusCode>> {
        let held = std::mem::take(&mut self.shared.requests().held);
        let mut codes = Vec::new();
        for request in held {
            let Held {
                method,
                uri,
                headers,
                body,
            } = request;
            let answer = self.shared.forward(method, &uri, &headers, body).await?;
            codes.push(answer.status());
        }
        Ok(codes)
    }

    /// Closes all open watches.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }
}

/// Completes when the counter has grown by `more`.
fn increased_by(more: usize, mut counter: watch::Receiver<usize>) -> impl Future<Output = ()> {
    let before = *counter.borrow_and_update();
    async move {
        let _ = counter.wait_for(|now| *now >= before + more).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock()
    }

    /// Records a mutating request; returns the fault to apply to the request.
    fn record(&self, kind: &str) -> Option<Fault> {
        let mut requests = self.requests();
        let count = requests.counts.entry(kind.to_owned()).or_default();
        *count += 1;
        let name = format!("{kind} #{count}");
        requests.mutations.push(name.clone());
        let (_, fault) = requests.armed.take_if(|(armed, _)| *armed == name)?;
        Some(fault)
    }

    fn count_fault(&self) {
        self.applied_faults.send_modify(|count| *count += 1);
    }

    async fn forward(
        &self,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<kube::client::Body>> {
        let path = uri.path_and_query().context("no path")?.as_str();
        let mut request = Request::builder().method(method).uri(path);
        for name in [header::ACCEPT, header::CONTENT_TYPE] {
            if let Some(value) = headers.get(&name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(kube::client::Body::from(body.to_vec()))?;
        Ok(self.upstream.send(request).await?)
    }

    /// The body of a watch: pauses while the resource is held back, ends when watches are closed.
    fn watch_body(
        self: Arc<Self>,
        resource: String,
        body: kube::client::Body,
    ) -> impl Stream<Item = Result<Bytes>> {
        let mut cut = self.cut.subscribe();
        cut.mark_unchanged();
        let cut = async move { cut.changed().await.is_ok() };
        let (held, weather) = (self.held_resources.subscribe(), self.weather.subscribe());
        let frozen = self.frozen.subscribe();
        let before = *frozen.borrow();
        body.into_data_stream()
            .then(move |chunk| {
                let (mut held, mut weather) = (held.clone(), weather.clone());
                let is_frozen = *frozen.borrow() != before;
                let (resource, shared) = (resource.clone(), self.clone());
                async move {
                    weather.wait_for(|it| *it != Weather::Silent).await?;
                    if is_frozen {
                        return std::future::pending().await;
                    }
                    if held.borrow().contains(&resource) {
                        let withheld = shared.withheld.lock();
                        let mut withheld = withheld;
                        *withheld.entry(resource.clone()).or_default() += 1;
                    }
                    held.wait_for(|held| !held.contains(&resource)).await?;
                    Ok(chunk?)
                }
            })
            .take_until(cut)
    }
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    shared.received.send_modify(|count| *count += 1);
    let (weather, count) = (*shared.weather.borrow(), *shared.received.borrow());
    match weather {
        Weather::Slow(time) => tokio::time::sleep(time).await,
        Weather::Throttled(seconds) => {
            let mut refused = refusal(StatusCode::TOO_MANY_REQUESTS, "throttled by the proxy");
            refused
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
            return refused;
        }
        Weather::Flaky if count.is_multiple_of(2) => {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "refused by the proxy");
        }
        Weather::Expired if is_watch(&uri) => {
            return refusal(StatusCode::GONE, "too old resource version");
        }
        Weather::Fair | Weather::Behind | Weather::Flaky | Weather::Expired => {}
        Weather::Silent => return std::future::pending().await,
    }
    let mut response = match answer(shared, method, uri, headers, body).await {
        Ok(response) => response,
        Err(error) => refusal(StatusCode::BAD_GATEWAY, &format!("{error:#}")),
    };
    if weather == Weather::Behind {
        let hour_ago = Timestamp::now() - SignedDuration::from_hours(1);
        let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&hour_ago);
        if let Some(date) = date.ok().and_then(|it| it.parse().ok()) {
            response.headers_mut().insert(header::DATE, date);
        }
    }
    response
}

async fn answer(
    shared: Arc<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Body>> {
    let resource = resource(uri.path());
    let fault = verb(&method).and_then(|verb| shared.record(&format!("{verb} {resource}")));
    match fault {
        Some(Fault::Drop) => {
            shared.count_fault();
            return std::future::pending().await;
        }
        Some(Fault::Hold) => {
            shared.requests().held.push(Held {
                method,
                uri,
                headers,
                body,
            });
            shared.count_fault();
            return std::future::pending().await;
        }
        Some(Fault::DropAnswer) => {
            shared.forward(method, &uri, &headers, body).await?;
            shared.count_fault();
            return std::future::pending().await;
        }
        Some(Fault::Refuse(code)) => {
            shared.count_fault();
            return Ok(refusal(StatusCode::from_u16(code)?, "refused by the proxy"));
        }
        Some(Fault::Delay(time)) => {
            shared.count_fault();
            let late = shared.clone();
            let sent = tokio::spawn(async move {
                tokio::time::sleep(time).await;
                late.forward(method, &uri, &headers, body).await
            });
            return buffered(sent.await??).await;
        }
        None => {}
    }
    let answer = shared.forward(method, &uri, &headers, body).await?;
    if !is_watch(&uri) {
        return buffered(answer).await;
    }
    let (head, body) = answer.into_parts();
    Ok(response(
        &head,
        Body::from_stream(shared.watch_body(resource, body)),
    ))
}

fn is_watch(uri: &Uri) -> bool {
    let query = uri.query();
    query.is_some_and(|query| query.contains("watch=true"))
}

async fn buffered(answer: Response<kube::client::Body>) -> Result<Response<Body>> {
    let (head, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(response(&head, Body::from(body)))
}

fn response(head: &Parts, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, kind.clone());
    }
    response
}

/// An error response in the form of the API server.
fn refusal(code: StatusCode, message: &str) -> Response<Body> {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code.as_u16(), "message": message,
        "reason": if code == StatusCode::GONE { "Expired".to_owned() } else { code.canonical_reason().unwrap_or_default().replace(' ', "") },
    });
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = code;
    response
}

fn verb(method: &Method) -> Option<&'static str> {
    match method.as_str() {
        "POST" => Some("create"),
        "PUT" => Some("update"),
        "PATCH" => Some("patch"),
        "DELETE" => Some("delete"),
        _ => None,
    }
}

/// The resource of a request path, with its subresource, as `workflowexecutions/status`.
fn resource(path: &str) -> String {
    let parts: Vec<_> = path.trim_matches('/').split('/').collect();
    let rest = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        other => other,
    };
    match rest {
        ["namespaces", _, resource, _, subresource] => format!("{resource}/{subresource}"),
        ["namespaces", _, resource, ..] | [resource, ..] => (*resource).to_owned(),
        [] => String::new(),
    }
}
