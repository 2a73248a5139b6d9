use std::net::SocketAddr;

use axum::extract::Extension;
use axum::routing::get;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// For what must happen; nothing here takes so long.
const DEADLINE: Duration = Duration::from_secs(30);
const HOST: &str = "localhost";

struct Served {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
    leaving: CancellationToken,
    /// Lets `/wait` answer.
    answer: Arc<Notify>,
    /// `/wait` was asked.
    asked: Arc<Notify>,
    serving: JoinHandle<()>,
    _files: TempDir,
}

async fn start(limits: Limits) -> Served {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let files = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("a certificate");
    let write = |name: &str, pem: String| std::fs::write(files.path().join(name), pem);
    write("tls.crt", made.cert.pem()).expect("written");
    write("tls.key", made.signing_key.serialize_pem()).expect("written");
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).expect("PEM");
    roots.add(root).expect("a root");

    let (answer, asked) = <(Arc<Notify>, Arc<Notify>)>::default();
    let wait = {
        let (answer, asked) = (answer.clone(), asked.clone());
        async move |Extension(judging): Extension<Judging>| {
            let _busy = judging.begin();
            asked.notify_one();
            answer.notified().await;
            "waited"
        }
    };
    let routes = Router::new()
        .route("/", get(async || "here"))
        .route("/wait", get(wait));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let leaving = CancellationToken::new();
    let tls = tls(ServingCertificate::load(files.path()).expect("loaded"));
    let serving = tokio::spawn(serve(listener, tls, routes, limits, leaving.clone()));
    Served {
        address,
        roots: Arc::new(roots),
        leaving,
        answer,
        asked,
        serving,
        _files: files,
    }
}

impl Served {
    async fn silent(&self) -> TcpStream {
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
        let handshake = connector.connect(name, self.silent().await);
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
    waited.expect("it happens within the deadline")
}

/// One request on a connection that goes on: the whole answer, as text.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"here") {
        let read = within(stream.read_buf(&mut answer)).await.expect("read");
        assert!(read > 0, "closed: {}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).expect("text")
}

/// Until the other side ends the connection: a reset is an end, too.
async fn closed(stream: &mut (impl AsyncReadExt + Unpin)) {
    let _ = within(stream.read_to_end(&mut Vec::new())).await;
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    let request = Request::get(format!("https://{HOST}{path}"));
    request.body(Empty::new()).expect("a request")
}

#[tokio::test]
async fn both_versions_of_tls_and_of_http_are_spoken() {
    let served = start(Limits::default()).await;
    for version in [&TLS12, &TLS13] {
        let mut stream = served.connect(version, "http/1.1").await;
        for _ in 0..2 {
            assert!(
                ask(&mut stream).await.starts_with("HTTP/1.1 200"),
                "kept alive"
            );
        }
        let mut sender = {
            let stream = TokioIo::new(served.connect(version, "h2").await);
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
async fn who_does_nothing_makes_room_for_who_asks() {
    let served = start(Limits {
        connections: 4,
        ..Limits::default()
    })
    .await;
    let mut working = served.http1().await;
    ask(&mut working).await;
    let mut silent = Vec::new();
    for round in 0..20 {
        silent.push(served.silent().await);
        // It is never the longest idle one.
        assert!(
            ask(&mut working).await.starts_with("HTTP/1.1 200"),
            "{round}"
        );
    }
    let mut another = served.http1().await;
    assert!(ask(&mut another).await.starts_with("HTTP/1.1 200"));
    for stream in silent.iter_mut().take(16) {
        closed(stream).await;
    }
}

#[tokio::test]
async fn who_was_busy_makes_room_as_soon_as_it_is_not() {
    let served = start(Limits {
        connections: 2,
        ..Limits::default()
    })
    .await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = served.http1().await;
        let request = b"GET /wait HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request).await.expect("sent");
        within(served.asked.notified()).await;
        busy.push(stream);
    }
    let another = async {
        let mut stream = served.http1().await;
        ask(&mut stream).await
    };
    let answer = async {
        tokio::task::yield_now().await;
        served.answer.notify_one();
        served.answer.notify_one();
    };
    let (answered, ()) = tokio::join!(another, answer);
    assert!(answered.starts_with("HTTP/1.1 200"));
    drop(busy);
}

/// So short that it is over within the deadline; the others are not.
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_handshake_that_does_not_come_is_closed() {
    let served = start(Limits {
        handshake: SHORT,
        ..Limits::default()
    })
    .await;
    let mut garbage = served.silent().await;
    garbage
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("sent");
    closed(&mut garbage).await;
    closed(&mut served.silent().await).await;
}

#[tokio::test]
async fn a_request_that_does_not_come_is_closed() {
    let served = start(Limits {
        first_request: SHORT,
        ..Limits::default()
    })
    .await;
    let mut slow = served.http1().await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: ")
        .await
        .expect("sent");
    closed(&mut slow).await;
}

#[tokio::test]
async fn a_connection_that_is_not_used_any_more_is_closed() {
    let served = start(Limits {
        idle: SHORT,
        ..Limits::default()
    })
    .await;
    let mut idle = served.http1().await;
    ask(&mut idle).await;
    closed(&mut idle).await;
}

#[tokio::test]
async fn at_the_end_clients_are_told_to_go_and_served_until_they_have() {
    let served = start(Limits {
        lame_duck: Duration::from_secs(3),
        ..Limits::default()
    })
    .await;
    let mut kept = served.http1().await;
    assert!(!ask(&mut kept).await.contains("connection: close"));
    let mut streams = served.http2().await;
    let open = tokio::spawn(streams.send_request(request("/wait")));
    within(served.asked.notified()).await;

    served.leaving.cancel();
    let mut fresh = served.http2().await;
    let answer = within(fresh.send_request(request("/"))).await;
    assert!(answer.is_ok(), "a new one is not cut off: {answer:?}");
    assert!(ask(&mut kept).await.contains("connection: close"));
    closed(&mut kept).await;
    let mut late = served.http1().await;
    assert!(
        ask(&mut late).await.contains("connection: close"),
        "still served"
    );
    served.answer.notify_one();
    let answer = within(open).await.expect("joined").expect("an answer");
    let body = answer.into_body().collect().await.expect("a body");
    assert_eq!(
        body.to_bytes(),
        "waited",
        "what was asked before is answered"
    );
    within(async {
        while streams.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(served.serving).await.expect("it ends");
    assert!(TcpStream::connect(served.address).await.is_err());
}
