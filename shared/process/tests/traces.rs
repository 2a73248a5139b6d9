//! Spans reach a collector: here a server that keeps the bodies of all requests.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use parking_lot::Mutex;
use wfe_process::telemetry::{self, LogFormat, Root};

const TRACEPARENT: &str = "00-3f2504e04f8941d39a0c0305e82c3301-9a0c0305e82c3301-01";

/// A span joins the trace, the root span has the ids that others name as their parent, and the end
/// of the process loses neither.
#[tokio::test(flavor = "multi_thread")]
async fn spans_of_a_process_that_ends_reach_the_collector() {
    let bodies = Arc::<Mutex<Vec<u8>>>::default();
    let received = bodies.clone();
    let collect = post(async move |body: Bytes| received.lock().extend(body));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = axum::serve(listener, Router::new().route("/v1/traces", collect));
    let server = tokio::spawn(server.into_future());

    // The exporter reads its environment, which a test cannot change for itself.
    let program = std::env::current_exe().expect("this program");
    let output = tokio::task::spawn_blocking(move || {
        Command::new(program)
            .args(["--exact", "process", "--ignored"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
            .output()
    });
    let output = output.await.expect("no panic").expect("it runs");
    assert!(output.status.success(), "{output:?}");
    server.abort();

    let bodies = bodies.lock();
    let count = |part: &[u8]| bodies.windows(part.len()).filter(|it| *it == part).count();
    let (trace, root) = (&TRACEPARENT[3..35], &TRACEPARENT[36..52]);
    assert_eq!(
        count(&hex::decode(trace).expect("hex")),
        2,
        "both spans are in the trace"
    );
    // It is the second half of the trace id in both, too.
    assert_eq!(
        count(&hex::decode(root).expect("hex")),
        4,
        "an id and a parent's id"
    );
    for text in ["the-service", "a pass", "the whole", "no such image"] {
        assert_eq!(count(text.as_bytes()), 1, "{text}");
    }
    assert_eq!(count(b"noise"), 0, "only spans of this project");
}

#[tokio::test]
#[ignore = "the process of the other test"]
async fn process() {
    let telemetry = telemetry::init("the-service", LogFormat::Text, "info").expect("telemetry");
    let pass = tracing::info_span!(target: "wfe_test", "a pass");
    telemetry::join(&pass, || Some(TRACEPARENT.to_owned()));
    pass.in_scope(|| tracing::info_span!(target: "hyper", "noise").in_scope(|| ()));
    drop(pass);
    let root = Root {
        traceparent: TRACEPARENT.to_owned(),
        name: "the whole".to_owned(),
        began: SystemTime::now() - Duration::from_secs(3),
        ended: SystemTime::now(),
        error: Some("no such image".to_owned()),
        attributes: Vec::new(),
    };
    telemetry::export(|| Some(root));
    drop(telemetry);
}
