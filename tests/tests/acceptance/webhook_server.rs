//! The webhook's server in front of a real API server: replaced while it is asked, and attacked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use kube::Api;
use kube::api::DynamicObject;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wfe_tests::system::{Script, System, dry_run};

use crate::schema_verdicts::{object, untyped};
use crate::setup::{SECONDS_30, cluster};

/// In bytes: what reviews may take, 256 connections and what runs.
const MOST_MEMORY: u64 = 60_000_000;

fn workflow() -> Script {
    Script::of("any", format!("r.io/any@sha256:{}", "4".repeat(64)), "")
}

/// One good review: the API server waits 3 s for it, then refuses.
async fn review(api: &Api<DynamicObject>) -> Result<(), String> {
    let request = json!(workflow().request("one", &json!({})).spec);
    let created = api.create(&dry_run(), &object(&request)).await;
    created.map(drop).map_err(|error| error.to_string())
}

/// The same review, as bytes.
fn raw_review() -> Vec<u8> {
    let body = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "raw", "operation": "CREATE", "namespace": "any",
        "resource": { "group": "kubernaut.ai", "version": "v1alpha1", "resource": "workflowexecutions" },
        "object": workflow().request("one", &json!({})),
    } });
    let body = body.to_string().into_bytes();
    let length = body.len();
    post("/mutate-workflowexecution", body, length)
}

/// A request that announces `length` bytes of body.
fn post(path: &str, body: Vec<u8>, length: usize) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nhost: webhook\r\ncontent-length: {length}\r\n\r\n");
    [head.into_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn br_we_001_no_review_is_lost_while_certificate_and_process_are_replaced() {
    let cluster = cluster().await;
    let workflow = workflow();
    let mut system = System::install(&cluster, "replaced", &[&workflow])
        .await
        .expect("installed");
    let service = system
        .start_webhook_behind_a_service()
        .await
        .expect("started");
    let api = untyped(cluster.admin(), system.namespace.name());
    let (asked, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let asking = join_all((0..8).map(async |_| {
        let mut failed = Vec::new();
        while !done.load(Ordering::Relaxed) || asked.load(Ordering::Relaxed) < 2_000 {
            failed.extend(review(&api).await.err());
            asked.fetch_add(1, Ordering::Relaxed);
        }
        failed
    }));
    // The API server keeps its connection; who connects anew sees each certificate.
    let client = system.webhook_client().expect("a client");
    let fresh = async {
        let mut connections = 0;
        while !done.load(Ordering::Relaxed) {
            let answer = client
                .say(&raw_review())
                .await
                .expect("answered")
                .expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            connections += 1;
        }
        connections
    };
    let replacing = async {
        for times in 1..=3 {
            system.renew_certificate().expect("written");
            let webhook = system.webhook.as_ref().expect("one runs");
            let read = webhook.logged("serving certificate reloaded", times, SECONDS_30);
            read.await.expect("it is noticed");
        }
        system.replace_webhook(&service).await.expect("replaced");
        done.store(true, Ordering::Relaxed);
    };
    let (failed, connections, ()) = tokio::join!(asking, fresh, replacing);
    assert!(connections >= 10, "{connections}");
    let failed: Vec<_> = failed.into_iter().flatten().collect();
    assert!(
        failed.is_empty(),
        "{} of {asked:?}: {failed:?}",
        failed.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn br_we_001_slow_silent_and_hostile_clients_keep_no_good_review_out() {
    let cluster = cluster().await;
    let workflow = workflow();
    let mut system = System::install(&cluster, "attacked", &[&workflow])
        .await
        .expect("installed");
    system.start_webhook().await.expect("started");
    let api = untyped(cluster.admin(), system.namespace.name());
    let address = system.webhook_address(0);
    let good = async |after: &str| {
        review(&api)
            .await
            .unwrap_or_else(|said| panic!("{after}: {said}"));
    };
    good("nothing").await;

    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many files as are allowed");
    // Nobody speaks: each takes a connection for as long as it may.
    let mut silent = Vec::new();
    for number in 0..5_000 {
        silent.push(TcpStream::connect(&address).await.expect("connected"));
        if number % 1_000 == 999 {
            good("connections that say nothing").await;
        }
    }
    good("5,000 connections").await;

    // Not TLS, and half of a handshake.
    let garbage = join_all((0..300).map(async |number| {
        let mut stream = TcpStream::connect(&address).await.expect("connected");
        let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        let bytes: &[u8] = if number % 2 == 0 {
            b"GET / HTTP/1.1\r\n\r\n"
        } else {
            client_hello
        };
        // It may have been closed already.
        let _ = stream.write_all(bytes).await;
        stream
    }))
    .await;
    good("garbage").await;
    drop(garbage);
    // The first ones have had to make room.
    let first = silent.first_mut().expect("5,000 of them");
    let closed = tokio::time::timeout(SECONDS_30, first.read(&mut [0])).await;
    assert!(!matches!(closed.expect("closed"), Ok(1..)));
    drop(silent);

    // TLS, then bodies that are too large, that do not come, and headers that never end.
    let client = system.webhook_client().expect("a client");
    let post = |body, length| post("/validate-workflowexecution", body, length);
    let oversize = client.say(&post(vec![b' '; 1 << 20], 64 << 20)).await;
    let oversize = oversize.expect("said").expect("an answer");
    assert!(oversize.starts_with("HTTP/1.1 413"), "{oversize}");
    let large = vec![b'['; 3 << 20];
    let answers =
        join_all((0..30).map(async |_| client.say(&post(large.clone(), large.len())).await)).await;
    let mut judged = 0;
    for answer in answers {
        // Who is turned away while still talking may not hear it.
        let Some(answer) = answer.expect("said") else {
            continue;
        };
        let known = ["HTTP/1.1 400", "HTTP/1.1 429", "HTTP/1.1 408"];
        assert!(known.iter().any(|it| answer.starts_with(it)), "{answer}");
        judged += 1;
    }
    assert!(judged > 0, "some are answered");
    good("bodies that are too large").await;
    let slow =
        join_all((0..600).map(async |_| client.open(&post(b"{".to_vec(), 3 << 20)).await)).await;
    good("bodies that do not come").await;
    // Most have had to make room before they were through.
    let slow: Vec<_> = slow.into_iter().flatten().collect();
    assert!(!slow.is_empty());
    let headers =
        join_all((0..300).map(async |_| client.open(b"POST / HTTP/1.1\r\nhost: ").await)).await;
    good("headers that do not come").await;
    drop((slow, headers));

    let webhook = system.webhook.as_ref().expect("it runs");
    let memory = webhook.peak_memory().expect("known");
    assert!(memory < MOST_MEMORY, "{memory} bytes");
    webhook
        .says(true, Duration::from_secs(5))
        .await
        .expect("ready");
}
