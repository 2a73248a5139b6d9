use std::net::SocketAddr;

use axum::extract::Extension;
use axum::routing::get;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// Generous limit for events that must happen, so that a slow machine does not fail a test.
const DEADLINE: Duration = Duration::from_secs(30);
const HOST: &str = "localhost";

struct TestServer {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
    shutting_down: CancellationToken,
    /// Lets one request to `/wait` finish.
    release: Arc<Notify>,
    /// Signals that a request to `/wait` has arrived.
    arrived: Arc<Notify>,
    serving: JoinHandle<()>,
}

async fn start(limits: Limits) -> TestServer {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("a certificate");
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let mut tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a configuration");
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

    let (release, arrived) = <(Arc<Notify>, Arc<Notify>)>::default();
    let wait = {
        let (release, arrived) = (release.clone(), arrived.clone());
        async move |Extension(connection): Extension<ConnectionHandle>| {
            let _busy = connection.mark_busy();
            arrived.notify_one();
            release.notified().await;
            "waited"
        }
    };
    let routes = Router::new()
        .route("/", get(async || "here"))
        .route("/wait", get(wait));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let shutting_down = CancellationToken::new();
    let serving = tokio::spawn(serve(
        listener,
        Some(tls),
        routes,
        limits,
        shutting_down.clone(),
    ));
    TestServer {
        address,
        roots: Arc::new(roots),
        shutting_down,
        release,
        arrived,
        serving,
    }
}

impl TestServer {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    async fn connect(
        &self,
        version: &'static SupportedProtocolVersion,
        alpn: &str,
    ) -> TlsStream<TcpStream> {
        let mut config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from(HOST).expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        let handshake = connector.connect(name, self.tcp().await);
        within(handshake).await.expect("a handshake")
    }

    async fn http1(&self) -> TlsStream<TcpStream> {
        self.connect(&TLS13, "http/1.1").await
    }

    async fn http2(&self) -> http2::SendRequest<Empty<Bytes>> {
        let stream = TokioIo::new(self.connect(&TLS13, "h2").await);
        let handshake = http2::handshake(TokioExecutor::new(), stream);
        let (sender, connection) = within(handshake).await.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(DEADLINE, future).await;
    waited.expect("done before the deadline")
}

/// Sends a request on a keep-alive connection and returns the whole response.
async fn get_root(stream: &mut TlsStream<TcpStream>) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"here") {
        let read = within(stream.read_buf(&mut answer)).await.expect("read");
        assert!(read > 0, "closed: {}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).expect("text")
}

/// Waits until the server closes the connection, by FIN or by reset.
async fn closed(stream: &mut (impl AsyncReadExt + Unpin)) {
    let _ = within(stream.read_to_end(&mut Vec::new())).await;
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(format!("https://{HOST}{path}"));
    request.body(Empty::new()).expect("a request")
}

#[tokio::test]
async fn serve_tls12_and_tls13_with_http1_and_http2_responds() {
    let server = start(Limits::default()).await;
    for version in [&TLS12, &TLS13] {
        let mut stream = server.connect(version, "http/1.1").await;
        for _ in 0..2 {
            assert!(
                get_root(&mut stream).await.starts_with("HTTP/1.1 200"),
                "the connection is kept alive"
            );
        }
        let mut sender = {
            let stream = TokioIo::new(server.connect(version, "h2").await);
            let handshake = http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), stream);
            let (sender, connection) = within(handshake).await.expect("HTTP/2");
            tokio::spawn(connection);
            sender
        };
        let answer = within(sender.send_request(request("/")))
            .await
            .expect("an answer");
        assert_eq!(answer.version(), Version::HTTP_2);
    }
}

#[tokio::test]
async fn new_connection_at_the_limit_evicts_the_longest_idle() {
    let server = start(Limits {
        connections: 4,
        ..Limits::default()
    })
    .await;
    let mut working = server.http1().await;
    get_root(&mut working).await;
    let mut silent = Vec::new();
    for round in 0..20 {
        silent.push(server.tcp().await);
        // `working` is never the longest idle connection, so it is not evicted.
        assert!(
            get_root(&mut working).await.starts_with("HTTP/1.1 200"),
            "{round}"
        );
    }
    let mut another = server.http1().await;
    assert!(get_root(&mut another).await.starts_with("HTTP/1.1 200"));
    for stream in silent.iter_mut().take(16) {
        closed(stream).await;
    }
}

#[tokio::test]
async fn new_connection_when_all_are_busy_waits_until_one_is_idle() {
    let server = start(Limits {
        connections: 2,
        ..Limits::default()
    })
    .await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = server.http1().await;
        let request = b"GET /wait HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request).await.expect("sent");
        within(server.arrived.notified()).await;
        busy.push(stream);
    }
    let another = async {
        let mut stream = server.http1().await;
        get_root(&mut stream).await
    };
    let answer = async {
        tokio::task::yield_now().await;
        server.release.notify_one();
        server.release.notify_one();
    };
    let (answered, ()) = tokio::join!(another, answer);
    assert!(answered.starts_with("HTTP/1.1 200"));
    drop(busy);
}

/// A limit that expires well before `DEADLINE`.
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn connection_without_handshake_is_closed() {
    let server = start(Limits {
        handshake: SHORT,
        ..Limits::default()
    })
    .await;
    let mut garbage = server.tcp().await;
    garbage
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("sent");
    closed(&mut garbage).await;
    closed(&mut server.tcp().await).await;
}

#[tokio::test]
async fn connection_without_first_request_is_closed() {
    let server = start(Limits {
        first_request: SHORT,
        ..Limits::default()
    })
    .await;
    let mut slow = server.http1().await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: ")
        .await
        .expect("sent");
    closed(&mut slow).await;
}

#[tokio::test]
async fn connection_idle_after_a_request_is_closed() {
    let server = start(Limits {
        idle: SHORT,
        ..Limits::default()
    })
    .await;
    let mut idle = server.http1().await;
    get_root(&mut idle).await;
    closed(&mut idle).await;
}

#[tokio::test]
async fn shutdown_serves_requests_and_asks_clients_to_reconnect() {
    let server = start(Limits {
        lame_duck: Duration::from_secs(3),
        ..Limits::default()
    })
    .await;
    let mut kept = server.http1().await;
    assert!(!get_root(&mut kept).await.contains("connection: close"));
    let mut streams = server.http2().await;
    let open = tokio::spawn(streams.send_request(request("/wait")));
    within(server.arrived.notified()).await;

    server.shutting_down.cancel();
    let mut fresh = server.http2().await;
    let answer = within(fresh.send_request(request("/"))).await;
    assert!(answer.is_ok(), "a new connection is served: {answer:?}");
    assert!(get_root(&mut kept).await.contains("connection: close"));
    closed(&mut kept).await;
    let mut late = server.http1().await;
    assert!(
        get_root(&mut late).await.contains("connection: close"),
        "still served"
    );
    server.release.notify_one();
    let answer = within(open).await.expect("joined").expect("an answer");
    let body = answer.into_body().collect().await.expect("a body");
    assert_eq!(
        body.to_bytes(),
        "waited",
        "a request from before the shutdown is served"
    );
    within(async {
        while streams.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(server.serving).await.expect("the server stops");
    assert!(TcpStream::connect(server.address).await.is_err());
}
