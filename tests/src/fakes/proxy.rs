//! A proxy between a controller and the API server, which knows what is asked, and can lose it.
//!
//! Every request that changes something has a name: verb, resource and how many of the kind came
//! before, as `update workflowexecutions/status #2`. A watch can be held back by its resource.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::response::Parts;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use futures::{Stream, StreamExt};
use http_body_util::BodyExt;
use kube::Client;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What happens to one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It never arrives, and is never answered.
    Drop,
    /// It is carried out, and never answered.
    DropAnswer,
    /// The API server would answer so.
    Refuse(u16),
    /// It arrives late, even when nobody waits for the answer any more.
    Delay(Duration),
    /// It arrives when the test [says so](Proxy::deliver), and is never answered.
    Hold,
}

/// A request that has not arrived yet.
struct Held {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

/// A proxy for one controller; ends with the value.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    upstream: Client,
    requests: Mutex<Requests>,
    /// How many faults have struck.
    struck: watch::Sender<usize>,
    /// How many requests came, reads included.
    seen: watch::Sender<usize>,
    /// Resources whose watches are held back.
    held: watch::Sender<HashSet<String>>,
    /// How often something was held back, by resource.
    withheld: Mutex<HashMap<String, usize>>,
    /// How often watches were cut.
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
    /// Serves what `upstream` may do, on a port of its own.
    pub async fn start(upstream: Client) -> Result<Self> {
        let shared = Arc::new(Shared {
            upstream,
            requests: Mutex::default(),
            struck: watch::Sender::new(0),
            seen: watch::Sender::new(0),
            held: watch::Sender::new(HashSet::new()),
            withheld: Mutex::default(),
            cut: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let routes = Router::new().fallback(pass).with_state(shared.clone());
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self {
            address,
            shared,
            task: task.abort_handle(),
        })
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{ "name": "proxy", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "proxy", "user": {} }],
            "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "proxy" } }],
        })
    }

    /// Counts from zero, with `fault` for the request of that name.
    pub fn arm(&self, fault: Option<(String, Fault)>) {
        *self.shared.requests() = Requests {
            armed: fault,
            ..Requests::default()
        };
    }

    /// What was changed since it was [armed](Self::arm), by name.
    pub fn mutations(&self) -> Vec<String> {
        self.shared.requests().mutations.clone()
    }

    /// Until the next fault from now on strikes.
    pub fn strikes(&self) -> impl Future<Output = ()> + use<> {
        more(self.shared.struck.subscribe(), 1)
    }

    /// Until `count` more requests have come from now on, reads included.
    pub fn requests(&self, count: usize) -> impl Future<Output = ()> + use<> {
        more(self.shared.seen.subscribe(), count)
    }

    /// Holds back what the watch of `resource` has to tell from now on.
    pub fn hold(&self, resource: &str) {
        self.shared.held.send_modify(|held| {
            held.insert(resource.to_owned());
        });
    }

    /// How often the watch of `resource` had something to tell while it was held back.
    pub fn withheld(&self, resource: &str) -> usize {
        let withheld = self
            .shared
            .withheld
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        withheld.get(resource).copied().unwrap_or(0)
    }

    /// Lets every watch go on.
    pub fn release(&self) {
        self.shared.held.send_modify(HashSet::clear);
    }

    /// Has every request arrive that was held; what the API server answers.
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

    /// Ends every watch that is open.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }
}

fn more(mut counted: watch::Receiver<usize>, more: usize) -> impl Future<Output = ()> {
    let before = *counted.borrow_and_update();
    async move {
        let _ = counted.wait_for(|now| *now >= before + more).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request that changes something; whether it is the one that is to be lost.
    fn count(&self, kind: &str) -> Option<Fault> {
        let mut requests = self.requests();
        let count = requests.counts.entry(kind.to_owned()).or_default();
        *count += 1;
        let name = format!("{kind} #{count}");
        requests.mutations.push(name.clone());
        let (_, fault) = requests.armed.take_if(|(armed, _)| *armed == name)?;
        Some(fault)
    }

    fn strike(&self) {
        self.struck.send_modify(|count| *count += 1);
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

    /// The body of a watch, as long as nobody cuts it, with pauses while it is held back.
    fn watched(
        self: Arc<Self>,
        resource: String,
        body: kube::client::Body,
    ) -> impl Stream<Item = Result<Bytes>> {
        let mut cut = self.cut.subscribe();
        cut.mark_unchanged();
        let cut = async move { cut.changed().await.is_ok() };
        let held = self.held.subscribe();
        body.into_data_stream()
            .then(move |chunk| {
                let (mut held, resource, shared) = (held.clone(), resource.clone(), self.clone());
                async move {
                    if held.borrow().contains(&resource) {
                        let withheld = shared.withheld.lock();
                        let mut withheld = withheld.unwrap_or_else(PoisonError::into_inner);
                        *withheld.entry(resource.clone()).or_default() += 1;
                    }
                    held.wait_for(|held| !held.contains(&resource)).await?;
                    Ok(chunk?)
                }
            })
            .take_until(cut)
    }
}

async fn pass(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    shared.seen.send_modify(|count| *count += 1);
    match answer(shared, method, uri, headers, body).await {
        Ok(response) => response,
        Err(error) => refusal(StatusCode::BAD_GATEWAY, &format!("{error:#}")),
    }
}

async fn answer(
    shared: Arc<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Body>> {
    let resource = resource(uri.path());
    let fault = verb(&method).and_then(|verb| shared.count(&format!("{verb} {resource}")));
    match fault {
        Some(Fault::Drop) => {
            shared.strike();
            return std::future::pending().await;
        }
        Some(Fault::Hold) => {
            shared.requests().held.push(Held {
                method,
                uri,
                headers,
                body,
            });
            shared.strike();
            return std::future::pending().await;
        }
        Some(Fault::DropAnswer) => {
            shared.forward(method, &uri, &headers, body).await?;
            shared.strike();
            return std::future::pending().await;
        }
        Some(Fault::Refuse(code)) => {
            shared.strike();
            return Ok(refusal(StatusCode::from_u16(code)?, "refused by the proxy"));
        }
        Some(Fault::Delay(time)) => {
            shared.strike();
            let late = shared.clone();
            let sent = tokio::spawn(async move {
                tokio::time::sleep(time).await;
                late.forward(method, &uri, &headers, body).await
            });
            return whole(sent.await??).await;
        }
        None => {}
    }
    let is_watch = uri
        .query()
        .is_some_and(|query| query.contains("watch=true"));
    let answer = shared.forward(method, &uri, &headers, body).await?;
    if !is_watch {
        return whole(answer).await;
    }
    let (head, body) = answer.into_parts();
    Ok(response(
        &head,
        Body::from_stream(shared.watched(resource, body)),
    ))
}

async fn whole(answer: Response<kube::client::Body>) -> Result<Response<Body>> {
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

/// As the API server says it.
fn refusal(code: StatusCode, message: &str) -> Response<Body> {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code.as_u16(), "message": message,
        "reason": code.canonical_reason().unwrap_or_default().replace(' ', ""),
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

/// `workflowexecutions/status` of a path.
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
