//! The contract of every audit sink, and how the HTTP sink maps faults to errors.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use rstest::rstest;
use tempfile::TempDir;
use wfe_model::audit::{AuditEvent, EventType};
use wfe_model::audit::{EventData, Outcome};
use wfe_peers::audit::{
    AuditSink, HttpSink, JsonlSink, NotRecorded, TrailEvent, read_file, verify,
};
use wfe_peers::data_storage::DataStorage as Client;
use wfe_peers::service::{PlainHttp, ServiceOptions};
use wfe_peers::token::BearerToken;
use wfe_platform::authorizer::Authorizer;
use wfe_platform::data_storage::{DataStorage, Fault};
use wfe_tests::fakes;

use crate::events::{event, failed};

const TOKEN: &str = "the token of this hour";

/// A fake Data Storage, and a directory with the CA and token files of its client.
pub struct StorageServer {
    pub storage: DataStorage,
    pub directory: TempDir,
}

impl StorageServer {
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorizer = Authorizer::Tokens(HashSet::from([TOKEN.to_owned()]));
        let started = fakes::data_storage("127.0.0.1", authorizer).await;
        let (storage, ca) = started.expect("started");
        let server = Self {
            storage,
            directory: tempfile::tempdir().expect("a directory"),
        };
        std::fs::write(server.path("ca.pem"), ca).expect("written");
        // Editors end files with a newline: the sink must trim it.
        std::fs::write(server.path("token"), format!("{TOKEN}\n")).expect("written");
        server
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn sink(&self, deadline: Duration) -> HttpSink {
        HttpSink::new(self.client(), deadline)
    }

    /// A connection.
    pub fn client(&self) -> Arc<Client> {
        let client = Client::new(ServiceOptions {
            url: self.storage.url().parse().expect("a URL"),
            ca: Some(self.path("ca.pem")),
            token: Some(BearerToken::File(self.path("token"))),
            plain_http: PlainHttp::Needs("--data-storage-plain-http"),
        });
        Arc::new(client.expect("a connection"))
    }
}

/// Deadline that only requests with a deliberate delay exceed.
pub const DEADLINE: Duration = Duration::from_secs(20);

async fn check_contract(
    open: impl Fn() -> Box<dyn AuditSink>,
    stored: impl Fn() -> Vec<TrailEvent>,
) {
    let sink = open();
    let (first, second) = (failed("one"), failed("two"));
    let both = [first.clone(), second.clone()].concat();
    sink.is_well().await.expect("well");
    assert_eq!(sink.recorded(&both).await.expect("queried"), [false; 8]);
    sink.record(&first).await.expect("recorded");
    let half = [[true; 4], [false; 4]].concat();
    assert_eq!(sink.recorded(&both).await.expect("queried"), half);
    // A new sink, as after a restart, finds the same events.
    drop(sink);
    let sink = open();
    assert_eq!(sink.recorded(&both).await.expect("queried"), half);
    sink.record(&second).await.expect("recorded");
    assert_eq!(sink.recorded(&both).await.expect("queried"), [true; 8]);
    let types = |name: &str| {
        let stored = stored().into_iter().filter(|it| it.resource_id == name);
        stored.map(|it| it.event_type).collect::<Vec<_>>()
    };
    let sent: Vec<_> = first.iter().map(|it| it.event_type.as_str()).collect();
    assert_eq!(
        (types("one"), types("two")),
        (
            sent.iter().map(ToString::to_string).collect(),
            sent.iter().map(ToString::to_string).collect()
        )
    );
    // An event of a WorkflowExecution with the same name, in the same second, is another event.
    let mut namesake = first[0].clone();
    namesake.event_timestamp += SignedDuration::from_micros(7);
    assert_eq!(sink.recorded(&[namesake]).await.expect("queried"), [false]);
    sink.record(&first[..1]).await.expect("recorded");
    assert_eq!(
        stored().len(),
        9,
        "sinks do not deduplicate: the caller checks `recorded` first"
    );
}

/// BR-AUDIT-005
#[tokio::test]
async fn jsonl_sink_fulfills_audit_sink_contract() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    let open = || -> Box<dyn AuditSink> { Box::new(JsonlSink::open(&path).expect("opened")) };
    check_contract(open, || read_file(&path, "rr-1").expect("read")).await;
}

/// BR-AUDIT-005
#[tokio::test]
async fn http_sink_fulfills_audit_sink_contract() {
    let server = StorageServer::start().await;
    let open = || -> Box<dyn AuditSink> { Box::new(server.sink(DEADLINE)) };
    check_contract(open, || server.storage.events().expect("read")).await;
}

/// BR-AUDIT-005: the error variant, and whether Data Storage has stored the events.
#[rstest]
#[case(Fault::Answer(401), "unavailable", false)]
#[case(Fault::Answer(403), "unavailable", false)]
#[case(Fault::Answer(404), "unavailable", false)]
#[case(Fault::Answer(429), "unavailable", false)]
#[case(Fault::Answer(503), "unavailable", false)]
#[case(Fault::Answer(502), "unanswered", false)]
#[case(Fault::Answer(202), "unanswered", false)]
#[case(Fault::Answer(500), "failed", false)]
#[case(Fault::DatabaseDown, "unanswered", false)]
#[case(Fault::LoseAnswer, "unanswered", true)]
#[case(Fault::Slow(Duration::from_mins(1)), "unanswered", false)]
#[case(Fault::CommitLate(Duration::from_mins(1)), "unanswered", false)]
#[tokio::test]
async fn http_sink_fault_maps_to_error_variant(
    #[case] fault: Fault,
    #[case] expected: &str,
    #[case] stored: bool,
) {
    let server = StorageServer::start().await;
    server.storage.set_fault(fault);
    let late = matches!(fault, Fault::Slow(_) | Fault::CommitLate(_));
    let sink = server.sink(if late {
        Duration::from_secs(1)
    } else {
        DEADLINE
    });
    let events = failed("one");
    let error = sink.record(&events).await.expect_err("a fault");
    assert_eq!(kind(&error), expected, "{error}");
    assert_eq!(!server.storage.events().expect("read").is_empty(), stored);
    server.storage.clear_fault();
    if matches!(fault, Fault::Answer(429)) {
        // The pause that was asked for.
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
    }
    assert_eq!(sink.recorded(&events).await.expect("queried"), [stored; 4]);
}

fn kind(error: &NotRecorded) -> &'static str {
    match error {
        NotRecorded::Unavailable(_) => "unavailable",
        NotRecorded::Unanswered { .. } => "unanswered",
        NotRecorded::Refused(_) => "refused",
        NotRecorded::Failed(_) => "failed",
    }
}

/// BR-AUDIT-005
#[tokio::test]
async fn unanswered_send_is_settled_after_server_deadline() {
    let server = StorageServer::start().await;
    server.storage.set_fault(Fault::LoseAnswer);
    let sink = server.sink(DEADLINE);
    let error = sink.record(&failed("one")).await.expect_err("a fault");
    let NotRecorded::Unanswered { settled_after, .. } = error else {
        panic!("{error:?}")
    };
    assert!(
        settled_after > DEADLINE / 2 && settled_after <= DEADLINE,
        "{settled_after:?}"
    );
}

/// BR-AUDIT-005: somebody who can write to the sink stores an event that is to come, in other words.
#[tokio::test]
async fn event_with_other_content_is_not_taken_for_the_recorded_one() {
    let server = StorageServer::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = JsonlSink::open(&directory.path().join("audit.jsonl")).expect("opened");
    let (http, real) = (server.sink(DEADLINE), failed("one"));
    let sinks: [&dyn AuditSink; 2] = [&http, &file];
    for sink in sinks {
        let mut forged = real.clone();
        let last = forged.last_mut().expect("an event");
        last.event_outcome = Outcome::Success;
        let EventData::Execution(data) = &mut forged[0].event_data else {
            panic!("{forged:?}")
        };
        data.container_image = format!("r.io/other@sha256:{}", "0".repeat(64));
        sink.record(&forged).await.expect("recorded");
        let found = sink.recorded(&real).await.expect("queried");
        assert_eq!(found, [false, true, true, false]);
        sink.record(&real).await.expect("recorded");
        assert_eq!(sink.recorded(&real).await.expect("queried"), [true; 4]);
    }
}

/// BR-AUDIT-005: an event that is too large for a proxy is not lost.
#[tokio::test]
async fn event_that_is_too_large_is_stored_with_hashed_parameters() {
    let server = StorageServer::start().await;
    let sink = server.sink(DEADLINE);
    let mut events = failed("one");
    let EventData::Execution(data) = &mut events[0].event_data else {
        panic!("{events:?}")
    };
    data.parameters
        .insert("SCRIPT".to_owned(), "x".repeat(60_000));
    server.storage.set_fault(Fault::Limit(50_000));
    let error = sink.record(&events).await.expect_err("too large");
    assert_eq!(
        kind(&error),
        "refused",
        "{error}: the caller halves the batch"
    );
    sink.record(&events[1..]).await.expect("recorded");
    sink.record(&events[..1]).await.expect("recorded");
    assert_eq!(sink.recorded(&events).await.expect("queried"), [true; 4]);
    let stored = server.storage.events().expect("read");
    let hashed = stored
        .iter()
        .find_map(|it| it.event_data["parameters"]["SCRIPT"].as_str());
    // sha256sum of 60,000 times x.
    assert_eq!(
        hashed,
        Some("sha256:4a719560eed2a077730e5b00badc8242768967e045a74f3c6c6c2b5186759212")
    );
}

/// BR-AUDIT-005: who changes, removes or adds a line is found.
#[tokio::test]
async fn changed_audit_file_fails_verification() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    let sink = JsonlSink::open(&path).expect("opened");
    sink.record(&failed("one")).await.expect("recorded");
    drop(sink);
    let sink = JsonlSink::open(&path).expect("opened again");
    sink.record(&failed("two")).await.expect("recorded");
    drop(sink);
    let verified = verify(&path, None).expect("unbroken");
    let last = verified.last.expect("a line").to_string();
    verify(&path, Some(&last)).expect("found");
    assert_eq!((verified.lines, verified.files), (8, 1));
    let text = std::fs::read_to_string(&path).expect("read");
    let lines: Vec<_> = text.lines().collect();
    let changed = lines[2].replace("prod", "test");
    for (what, lines, says) in [
        (
            "changed",
            [&lines[..2], &[&changed], &lines[3..]].concat(),
            "line 4",
        ),
        ("removed", [&lines[..2], &lines[3..]].concat(), "line 3"),
        ("added", [&lines[..3], &lines[2..]].concat(), "line 4"),
        (
            "moved",
            [&lines[..2], &[lines[3], lines[2]], &lines[4..]].concat(),
            "line 3",
        ),
    ] {
        std::fs::write(&path, lines.join("\n") + "\n").expect("written");
        let error = verify(&path, None).expect_err(what).to_string();
        assert!(error.starts_with(says), "{what}: {error}");
    }
    std::fs::write(&path, lines[..7].join("\n") + "\n").expect("written");
    verify(&path, None).expect("unbroken");
    let error = verify(&path, Some(&last)).expect_err("removed from the end");
    assert!(
        error.to_string().contains("no line has the hash"),
        "{error}"
    );
    let older = lines[0]
        .split_once(",\"prev\"")
        .expect("chained")
        .0
        .to_owned()
        + "}";
    std::fs::write(&path, older + "\n").expect("written");
    let sink = JsonlSink::open(&path).expect("opened");
    sink.record(&failed("three")).await.expect("recorded");
    let verified = verify(&path, None).expect("unbroken");
    assert_eq!((verified.lines, verified.unchained), (5, 1));
}

/// BR-AUDIT-005
#[tokio::test]
async fn stopped_sink_is_unavailable_until_it_resumes() {
    let server = StorageServer::start().await;
    let sink = server.sink(DEADLINE);
    server.storage.stop().await;
    let error = sink.record(&failed("one")).await.expect_err("down");
    assert_eq!(kind(&error), "unavailable", "{error}");
    sink.is_well().await.expect_err("down");
    sink.recorded(&failed("one")).await.expect_err("down");
    server.storage.resume().await.expect("resumed");
    sink.is_well().await.expect("well");
    sink.record(&failed("one")).await.expect("recorded");
}

/// BR-AUDIT-005
#[tokio::test]
async fn token_file_is_read_for_each_request() {
    let server = StorageServer::start().await;
    let sink = server.sink(DEADLINE);
    std::fs::write(server.path("token"), "the token of the last hour").expect("written");
    let error = sink.record(&failed("one")).await.expect_err("refused");
    assert_eq!(kind(&error), "unavailable");
    let text = error.to_string();
    assert!(
        text.contains("401") && text.contains("not authenticated"),
        "{text}"
    );
    assert!(!text.contains("last hour"), "{text}");
    std::fs::write(server.path("token"), TOKEN).expect("written");
    sink.record(&failed("one")).await.expect("recorded");
    std::fs::remove_file(server.path("token")).expect("removed");
    let error = sink.record(&failed("two")).await.expect_err("no token");
    assert!(error.to_string().contains("read "), "{error}");
}

/// BR-AUDIT-005
#[tokio::test]
async fn server_with_untrusted_certificate_gets_no_request() {
    let (server, other) = (StorageServer::start().await, StorageServer::start().await);
    let other_ca = std::fs::read(other.path("ca.pem")).expect("read");
    std::fs::write(server.path("ca.pem"), other_ca).expect("written");
    let sink = server.sink(DEADLINE);
    let error = sink.record(&failed("one")).await.expect_err("not trusted");
    assert_eq!(kind(&error), "unavailable", "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(server.storage.requests(), (0, 0));
}

/// BR-AUDIT-005
#[tokio::test]
async fn values_exceeding_columns_are_truncated_before_sending() {
    let server = StorageServer::start().await;
    let mut cleared = event("one", EventType::BlockCleared);
    cleared.actor_id = format!("jane\0{}", "x".repeat(300));
    let sink = server.sink(DEADLINE);
    let events = [cleared, event("two", EventType::WorkflowFailed)];
    sink.record(&events).await.expect("recorded");
    let stored = server.storage.events().expect("read");
    let actor = stored
        .iter()
        .find(|it| it.resource_id == "one")
        .map(|it| &it.actor_id);
    let actor = actor.expect("there");
    assert_eq!(actor.chars().count(), 255);
    assert!(actor.starts_with("janexx"), "{actor}");
    assert_eq!(sink.recorded(&events).await.expect("queried"), [true; 2]);
}

/// BR-AUDIT-005
#[tokio::test]
async fn rejection_names_field_and_omits_values() {
    let server = StorageServer::start().await;
    let mut bad = event("one", EventType::WorkflowFailed);
    bad.correlation_id = String::new();
    let sink = server.sink(DEADLINE);
    let batch = [event("two", EventType::WorkflowStarted), bad];
    let error = sink.record(&batch).await.expect_err("refused");
    assert_eq!(kind(&error), "refused");
    assert!(error.to_string().contains("/1/correlation_id"), "{error}");
    assert!(
        server.storage.events().expect("read").is_empty(),
        "a batch is stored as a whole"
    );
}

/// BR-AUDIT-005
#[tokio::test]
async fn recorded_events_are_found_across_pages() {
    let server = StorageServer::start().await;
    let sink = server.sink(DEADLINE);
    let events: Vec<AuditEvent> = (0..1200)
        .map(|number| event(&format!("w{number}"), EventType::WorkflowStarted))
        .collect();
    for batch in events.chunks(400) {
        sink.record(batch).await.expect("recorded");
    }
    let (_, before) = server.storage.requests();
    let has = sink.recorded(&events).await.expect("queried");
    assert!(has.iter().all(|it| *it));
    assert_eq!(
        server.storage.requests().1 - before,
        12,
        "pages of one correlation"
    );
    assert_eq!(sink.trail("rr-1").await.expect("read").len(), 1200);
}

#[test]
fn invalid_connection_options_are_rejected() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = |url: &str, ca: Option<&Path>, plain_http: bool| {
        Client::new(ServiceOptions {
            url: url.parse().expect("a URL"),
            ca: ca.map(Path::to_owned),
            token: Some(BearerToken::File("token".into())),
            plain_http: PlainHttp::flag("--data-storage-plain-http", plain_http),
        })
    };
    client("ftp://storage", None, false).expect_err("not HTTP");
    client("https://storage", Some(Path::new("/nowhere.pem")), false).expect_err("no file");
    let error = client("http://storage", None, false).expect_err("a token in the clear");
    assert!(error.to_string().contains("--data-storage-plain-http"));
    client("http://storage/prefix", None, true).expect("plain HTTP");
}
