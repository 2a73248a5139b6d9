//! The client for the API server, and what it tells of each response.

mod pace;

use std::iter;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, header};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use thiserror::Error;
use tower::{BoxError, Service, ServiceBuilder};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use self::pace::{Hold, Paced};

pub use self::pace::Pace;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time in which a response must begin, also that to a watch.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(30);
/// Time in which a response must go on.
const READ_TIMEOUT: Duration = Duration::from_secs(70);
/// How long the API server keeps a watch open: less than the time in which a response must go on. A
/// watch whose connection is dead is noticed 5 s later.
pub const WATCH_SECONDS: u32 = 60;
/// An idle connection is probed after this time, and given up after as many probes without a reply.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// A connection whose data is not acknowledged for this time is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no client could be created.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The process neither runs in a cluster nor has a kubeconfig.
    #[error("no in-cluster configuration and no kubeconfig found")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration has an invalid certificate or key.
    #[error("create the client for the API server")]
    Client(#[from] kube::Error),
}

/// The program runs where workflows run.
#[derive(Debug, Error)]
#[error(
    "--execution-namespace {0} is the namespace of this program: whoever may create pods there could use its ServiceAccount; install it in a namespace of its own"
)]
pub struct NotApart(String);

/// Checks that this program does not run in the namespace of the executions.
pub fn check_apart(client: &Client, execution_namespace: &str) -> Result<(), NotApart> {
    if client.default_namespace() == execution_namespace {
        return Err(NotApart(execution_namespace.to_owned()));
    }
    Ok(())
}

/// A request to the API server and the head of its response.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// The verb as in RBAC: get, list, watch, create, update, patch, delete.
    pub verb: &'static str,
    /// The resource, as `jobs` or `workflowexecutions/status`.
    pub resource: String,
    /// Of a watch: what is watched, the same in each repetition.
    pub watched: Option<String>,
    /// HTTP status code; `None` if there was no response.
    pub code: Option<u16>,
    /// When the request was sent.
    pub sent: Timestamp,
    /// When the API server responded, by its own clock.
    pub server_time: Option<Timestamp>,
}

/// Receives each exchange.
pub type OnExchange = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// Creates a client with the ServiceAccount token inside a cluster, else with the kubeconfig. The
/// client does not retry requests, because each caller has its own deadline and retries itself.
pub async fn connect() -> Result<Client, ClientError> {
    connect_observed(Arc::new(|_| ()), None).await
}

/// As [`connect`]; `on_exchange` receives the head of each response, and requests wait for their
/// turn in `pace`.
pub async fn connect_observed(
    on_exchange: OnExchange,
    pace: Option<Pace>,
) -> Result<Client, ClientError> {
    let config = Config::infer().await?;
    let connector = config.rustls_https_connector_with_connector(tcp())?;
    let mut connector = TimeoutConnector::new(connector);
    connector.set_read_timeout(Some(READ_TIMEOUT));
    let client = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    let hold = Hold::default();
    let observed = Observed {
        inner: service,
        on_exchange,
        hold: hold.clone(),
    };
    let namespace = config.default_namespace;
    Ok(match pace {
        Some(pace) => Client::new(Paced::new(observed, pace, hold), namespace),
        None => Client::new(observed, namespace),
    })
}

/// TCP connections that notice a peer which has vanished without a word.
fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    // The scheme is checked by the TLS connector.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    connector
}

#[derive(Clone)]
struct Observed<S> {
    inner: S,
    on_exchange: OnExchange,
    hold: Hold,
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = verb_and_resource(request.method(), request.uri());
        let watched = (verb == "watch").then(|| watched(request.uri()));
        let mut exchange = Exchange {
            verb,
            resource,
            watched,
            code: None,
            sent: Timestamp::now(),
            server_time: None,
        };
        let (responding, on_exchange) = (self.inner.call(request), self.on_exchange.clone());
        let hold = self.hold.clone();
        let span = tracing::debug_span!(
            "request",
            otel.kind = "client",
            verb,
            resource = exchange.resource,
            code = Empty
        );
        async move {
            let responding = tokio::time::timeout(RESPONSE_DEADLINE, responding);
            let result = responding.await.map_err(BoxError::from).flatten();
            if let Ok(response) = &result {
                exchange.code = Some(response.status().as_u16());
                Span::current().record("code", exchange.code);
                let header = |name| response.headers().get(name)?.to_str().ok();
                exchange.server_time = header(header::DATE).and_then(server_time);
                // Of other responses the header concerns one object.
                let wait = matches!(exchange.code, Some(429 | 503));
                if let Some(seconds) = header(header::RETRY_AFTER).filter(|_| wait) {
                    hold.until_retry(seconds);
                }
            }
            on_exchange(&exchange);
            result
        }
        .instrument(span)
        .boxed()
    }
}

/// The time in a header `Date`.
fn server_time(date: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(date).ok()
}

/// Path and selectors of a watch.
fn watched(uri: &http::Uri) -> String {
    let query = uri.query().unwrap_or_default().split('&');
    let selectors = query.filter(|it| it.contains("Selector="));
    let parts = iter::once(uri.path()).chain(selectors);
    parts.collect::<Vec<_>>().join(" ")
}

/// As the API server names a request in RBAC and in its own metrics. No object names, so that the
/// set of resources is closed.
fn verb_and_resource(method: &Method, uri: &http::Uri) -> (&'static str, String) {
    let mut parts = uri.path().trim_matches('/').split('/');
    // `api/v1` or `apis/<group>/<version>`.
    let group = if parts.next() == Some("apis") { 2 } else { 1 };
    let mut parts: Vec<_> = parts.skip(group).collect();
    if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        parts.drain(..2);
    }
    let named = parts.len() > 1;
    let resource = match parts.as_slice() {
        [] => "discovery".to_owned(),
        [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
        [resource, ..] => (*resource).to_owned(),
    };
    let watches = uri
        .query()
        .is_some_and(|query| query.contains("watch=true"));
    let verb = match *method {
        Method::GET if watches => "watch",
        Method::GET if named => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Method::GET, "/api/v1/namespaces?limit=1", "list", "namespaces")]
    #[case(Method::GET, "/api/v1/namespaces/prod", "get", "namespaces")]
    #[case(
        Method::GET,
        "/api/v1/namespaces/prod/pods?watch=true",
        "watch",
        "pods"
    )]
    #[case(
        Method::GET,
        "/apis/kubernaut.ai/v1alpha1/workflowexecutions",
        "list",
        "workflowexecutions"
    )]
    #[case(
        Method::PUT,
        "/apis/kubernaut.ai/v1alpha1/namespaces/p/workflowexecutions/a/status",
        "update",
        "workflowexecutions/status"
    )]
    #[case(Method::DELETE, "/apis/batch/v1/namespaces/p/jobs/a", "delete", "jobs")]
    #[case(Method::GET, "/apis", "list", "discovery")]
    fn request_is_named_by_verb_and_resource(
        #[case] method: Method,
        #[case] uri: &str,
        #[case] verb: &str,
        #[case] resource: &str,
    ) {
        let uri = uri.parse().expect("a URI");
        let found = verb_and_resource(&method, &uri);
        assert_eq!((found.0, found.1.as_str()), (verb, resource));
    }

    #[test]
    fn date_of_response_is_read() {
        let time = server_time("Fri, 27 Nov 2026 19:39:53 GMT");
        let expected = "2026-11-27T19:39:53Z".parse().expect("a timestamp");
        assert_eq!(time, Some(expected));
        assert_eq!(server_time("yesterday"), None);
    }
}
