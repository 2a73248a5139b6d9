//! The webhook's server with a real API server: replaced under load, and attacked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use kube::Api;
use kube::api::DynamicObject;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wfe_tests::cluster::WEBHOOK_CLIENT;
use wfe_tests::system::{Script, System, TlsClient, dry_run};

use crate::schema_verdicts::{object, untyped};
use crate::setup::{SECONDS_30, cluster};

/// In bytes: the memory budget of reviews, 256 connections, and the idle process.
const MAX_MEMORY: u64 = 60_000_000;

fn workflow() -> Script {
    Script::of("any", format!("r.io/any@sha256:{}", "4".repeat(64)), "")
}

/// Causes a valid review by a dry-run create. The API server denies the create if the webhook does
/// not answer within 3 s.
async fn review(api: &Api<DynamicObject>) -> Result<(), String> {
    let request = json!(workflow().request("one", &json!({})).spec);
    let created = api.create(&dry_run(), &object(&request)).await;
    created.map(drop).map_err(|error| error.to_string())
}

/// A valid review as an HTTP request.
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

/// A request with Content-Length `length`, whatever the length of `body`.
fn post(path: &str, body: Vec<u8>, length: usize) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nhost: webhook\r\ncontent-length: {length}\r\n\r\n");
    [head.into_bytes(), body].concat()
}

/// BR-WE-001
#[tokio::test(flavor = "multi_thread")]
async fn reviews_succeed_while_certificate_and_process_are_replaced() {
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
    let (reviews, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let reviewing = join_all((0..8).map(async |_| {
        let mut failed = Vec::new();
        while !done.load(Ordering::Relaxed) || reviews.load(Ordering::Relaxed) < 2_000 {
            failed.extend(review(&api).await.err());
            reviews.fetch_add(1, Ordering::Relaxed);
        }
        failed
    }));
    // The API server keeps its connection; only new connections see each certificate.
    let client = system.webhook_client().expect("a client");
    let fresh = async {
        let mut connections = 0;
        while !done.load(Ordering::Relaxed) {
            let answer = client
                .send(&raw_review())
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
            let webhook = system.webhook.as_ref().expect("running");
            let read = "serving certificate reloaded";
            let logged = webhook.wait_for_log(read, times, SECONDS_30);
            logged.await.expect("the webhook has reloaded it");
        }
        system.replace_webhook(&service).await.expect("replaced");
        done.store(true, Ordering::Relaxed);
    };
    let (failed, connections, ()) = tokio::join!(reviewing, fresh, replacing);
    assert!(connections >= 10, "{connections}");
    let failed: Vec<_> = failed.into_iter().flatten().collect();
    assert!(
        failed.is_empty(),
        "{} of {reviews:?} reviews failed: {failed:?}",
        failed.len()
    );
}

/// BR-WE-001
#[tokio::test(flavor = "multi_thread")]
async fn slow_and_malicious_clients_do_not_block_valid_reviews() {
    let cluster = cluster().await;
    let workflow = workflow();
    let mut system = System::install(&cluster, "attacked", &[&workflow])
        .await
        .expect("installed");
    system.start_webhook().await.expect("started");
    let api = untyped(cluster.admin(), system.namespace.name());
    let address = system.webhook_address(0);
    let check_review = async |after: &str| {
        review(&api)
            .await
            .unwrap_or_else(|text| panic!("{after}: {text}"));
    };
    check_review("nothing").await;

    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many files as are allowed");
    // Clients that send nothing: each occupies a connection until the handshake timeout.
    let mut silent = Vec::new();
    for number in 0..5_000 {
        silent.push(TcpStream::connect(&address).await.expect("connected"));
        if number % 1_000 == 999 {
            check_review("silent connections").await;
        }
    }
    check_review("5,000 connections").await;

    // Not TLS, and half of a handshake.
    let garbage = join_all((0..300).map(async |number| {
        let mut stream = TcpStream::connect(&address).await.expect("connected");
        let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        let bytes: &[u8] = if number % 2 == 0 {
            b"GET / HTTP/1.1\r\n\r\n"
        } else {
            client_hello
        };
        // The webhook may have closed the connection already.
        let _ = stream.write_all(bytes).await;
        stream
    }))
    .await;
    check_review("garbage").await;
    drop(garbage);
    // The webhook has closed the oldest connections to accept newer ones.
    let first = silent.first_mut().expect("5,000 of them");
    let closed = tokio::time::timeout(SECONDS_30, first.read(&mut [0])).await;
    assert!(!matches!(closed.expect("closed"), Ok(1..)));
    drop(silent);

    // TLS, then bodies that are too large, incomplete bodies, and incomplete headers.
    let client = system.webhook_client().expect("a client");
    let post = |body, length| post("/validate-workflowexecution", body, length);
    let oversize = client.send(&post(vec![b' '; 1 << 20], 64 << 20)).await;
    let oversize = oversize.expect("sent").expect("an answer");
    assert!(oversize.starts_with("HTTP/1.1 413"), "{oversize}");
    let large = vec![b'['; 3 << 20];
    let answers =
        join_all((0..30).map(async |_| client.send(&post(large.clone(), large.len())).await)).await;
    let mut answered = 0;
    for answer in answers {
        // A client that is rejected while it is sending may not receive the response.
        let Some(answer) = answer.expect("sent") else {
            continue;
        };
        let expected = ["HTTP/1.1 400", "HTTP/1.1 429", "HTTP/1.1 408"];
        assert!(expected.iter().any(|it| answer.starts_with(it)), "{answer}");
        answered += 1;
    }
    assert!(answered > 0, "no response was received");
    check_review("bodies that are too large").await;
    let slow =
        join_all((0..600).map(async |_| client.open(&post(b"{".to_vec(), 3 << 20)).await)).await;
    check_review("incomplete bodies").await;
    // The webhook has closed most of them to accept newer connections.
    let slow: Vec<_> = slow.into_iter().flatten().collect();
    assert!(!slow.is_empty());
    let headers =
        join_all((0..300).map(async |_| client.open(b"POST / HTTP/1.1\r\nhost: ").await)).await;
    check_review("incomplete headers").await;
    drop((slow, headers));

    let webhook = system.webhook.as_ref().expect("running");
    let memory = webhook.peak_memory().expect("known");
    assert!(memory < MAX_MEMORY, "{memory} bytes");
    webhook
        .wait_for_readiness(true, Duration::from_secs(5))
        .await
        .expect("ready");
}

/// BR-WE-001: with `--client-ca` only the API server is answered, also while others try.
#[tokio::test(flavor = "multi_thread")]
async fn clients_without_the_certificate_of_the_api_server_are_not_answered() {
    let cluster = cluster().await;
    let workflow = workflow();
    let mut system = System::install(&cluster, "known", &[&workflow])
        .await
        .expect("installed");
    let authority = cluster.client_authority().display();
    system.webhook_flags = vec![
        format!("--client-ca={authority}"),
        format!("--client-name={WEBHOOK_CLIENT}"),
    ];
    system
        .start_webhook()
        .await
        .expect("the API server is known");
    let api = untyped(cluster.admin(), system.namespace.name());
    let request = raw_review();
    let answer = async |client: TlsClient| client.send(&request).await.ok().flatten();
    let known = system.webhook_client_of(Some(WEBHOOK_CLIENT));
    let known = answer(known.expect("a client")).await.expect("an answer");
    assert!(known.starts_with("HTTP/1.1 200"), "{known}");
    let other_name = system.webhook_client_of(Some("mallory"));
    let other_authority = system.webhook_client_of(None).expect("a client");
    for client in [
        system.webhook_client().expect("a client"),
        other_name.expect("a client"),
        other_authority.clone(),
    ] {
        assert_eq!(answer(client).await, None);
    }

    // Forged reviews as fast as they can be sent, and connections that send nothing.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many files as are allowed");
    let (done, forged) = (AtomicBool::new(false), AtomicUsize::new(0));
    let flood = join_all((0..64).map(async |_| {
        while !done.load(Ordering::Relaxed) {
            let _ = other_authority.send(&request).await;
            forged.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let reviews = async {
        let mut silent = Vec::new();
        for _ in 0..50 {
            for _ in 0..100 {
                let address = system.webhook_address(0);
                silent.push(TcpStream::connect(address).await.expect("connected"));
            }
            let reviewed = review(&api).await;
            reviewed.unwrap_or_else(|text| panic!("{} connections: {text}", silent.len()));
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(flood, reviews);
    let forged = forged.into_inner();
    println!("{forged} forged reviews beside 50 real ones");
    let webhook = system.webhook.as_ref().expect("running");
    let memory = webhook.peak_memory().expect("known");
    assert!(memory < MAX_MEMORY, "{memory} bytes");
}
