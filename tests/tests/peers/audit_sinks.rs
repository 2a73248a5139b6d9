//! What every audit sink holds to, and what the one over HTTP makes of each trouble.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use rstest::rstest;
use tempfile::TempDir;
use wfe_model::audit::{AuditEvent, EventType};
use wfe_peers::audit::{
    AuditSink, HttpSink, HttpSinkOptions, JsonlSink, NotRecorded, TrailEvent, read_file,
};
use wfe_tests::fakes::data_storage::{DataStorage, Door, Fault};

use crate::events::{event, failed};

const TOKEN: &str = "the token of this hour";

/// A Data Storage, and who may write to it.
pub struct Beside {
    pub storage: DataStorage,
    pub directory: TempDir,
}

impl Beside {
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let door = Door::Tokens(HashSet::from([TOKEN.to_owned()]));
        let storage = DataStorage::start_with_tls("127.0.0.1", door);
        let beside = Self {
            storage: storage.await.expect("started"),
            directory: tempfile::tempdir().expect("a directory"),
        };
        let ca = beside.storage.ca.clone().expect("it has one");
        std::fs::write(beside.path("ca.pem"), ca).expect("written");
        // As an editor leaves it.
        std::fs::write(beside.path("token"), format!("{TOKEN}\n")).expect("written");
        beside
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn sink(&self, deadline: Duration) -> HttpSink {
        HttpSink::new(HttpSinkOptions {
            url: self.storage.url().parse().expect("a URL"),
            ca: Some(self.path("ca.pem")),
            token_file: Some(self.path("token")),
            deadline: Some(deadline),
        })
        .expect("a sink")
    }
}

/// Longer than anything takes that is not late on purpose.
pub const PATIENT: Duration = Duration::from_secs(20);

async fn holds_to_the_contract(
    open: impl Fn() -> Box<dyn AuditSink>,
    stored: impl Fn() -> Vec<TrailEvent>,
) {
    let sink = open();
    let (first, second) = (failed("one"), failed("two"));
    let both = [first.clone(), second.clone()].concat();
    sink.is_well().await.expect("well");
    assert_eq!(sink.recorded(&both).await.expect("asked"), [false; 8]);
    sink.record(&first).await.expect("recorded");
    let half = [[true; 4], [false; 4]].concat();
    assert_eq!(sink.recorded(&both).await.expect("asked"), half);
    // By another process, too.
    drop(sink);
    let sink = open();
    assert_eq!(sink.recorded(&both).await.expect("asked"), half);
    sink.record(&second).await.expect("recorded");
    assert_eq!(sink.recorded(&both).await.expect("asked"), [true; 8]);
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
    // One of the same name, in the same second.
    let mut namesake = first[0].clone();
    namesake.event_timestamp += SignedDuration::from_micros(7);
    assert_eq!(sink.recorded(&[namesake]).await.expect("asked"), [false]);
    sink.record(&first[..1]).await.expect("recorded");
    assert_eq!(
        stored().len(),
        9,
        "who sends twice has it twice: asking is the caller's"
    );
}

#[tokio::test]
async fn br_audit_005_a_file_holds_to_the_contract() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    let open = || -> Box<dyn AuditSink> { Box::new(JsonlSink::open(&path).expect("opened")) };
    holds_to_the_contract(open, || read_file(&path, "rr-1").expect("read")).await;
}

#[tokio::test]
async fn br_audit_005_data_storage_holds_to_the_contract() {
    let beside = Beside::start().await;
    let open = || -> Box<dyn AuditSink> { Box::new(beside.sink(PATIENT)) };
    holds_to_the_contract(open, || beside.storage.events().expect("read")).await;
}

/// What an answer, or none, is taken for: the variant, and whether the events are there.
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
async fn br_audit_005_each_trouble_is_taken_for_what_it_is(
    #[case] fault: Fault,
    #[case] expected: &str,
    #[case] stored: bool,
) {
    let beside = Beside::start().await;
    beside.storage.break_with(fault);
    let late = matches!(fault, Fault::Slow(_) | Fault::CommitLate(_));
    let sink = beside.sink(if late {
        Duration::from_secs(1)
    } else {
        PATIENT
    });
    let events = failed("one");
    let error = sink.record(&events).await.expect_err("a fault");
    assert_eq!(kind(&error), expected, "{error}");
    assert_eq!(!beside.storage.events().expect("read").is_empty(), stored);
    beside.storage.mend();
    assert_eq!(sink.recorded(&events).await.expect("asked"), [stored; 4]);
}

fn kind(error: &NotRecorded) -> &'static str {
    match error {
        NotRecorded::Unavailable(_) => "unavailable",
        NotRecorded::Unanswered { .. } => "unanswered",
        NotRecorded::Refused(_) => "refused",
        NotRecorded::Failed(_) => "failed",
    }
}

#[tokio::test]
async fn br_audit_005_an_unanswered_send_is_settled_when_the_servers_own_deadline_is_over() {
    let beside = Beside::start().await;
    beside.storage.break_with(Fault::LoseAnswer);
    let sink = beside.sink(PATIENT);
    let error = sink.record(&failed("one")).await.expect_err("a fault");
    let NotRecorded::Unanswered { settled_after, .. } = error else {
        panic!("{error:?}")
    };
    assert!(
        settled_after > PATIENT / 2 && settled_after <= PATIENT,
        "{settled_after:?}"
    );
}

#[tokio::test]
async fn br_audit_005_a_sink_that_is_down_has_nothing_and_its_return_is_seen() {
    let beside = Beside::start().await;
    let sink = beside.sink(PATIENT);
    beside.storage.stop().await;
    let error = sink.record(&failed("one")).await.expect_err("down");
    assert_eq!(kind(&error), "unavailable", "{error}");
    sink.is_well().await.expect_err("down");
    sink.recorded(&failed("one")).await.expect_err("down");
    beside.storage.resume().await.expect("up again");
    sink.is_well().await.expect("well");
    sink.record(&failed("one")).await.expect("recorded");
}

#[tokio::test]
async fn br_audit_005_the_token_is_read_again_for_each_request() {
    let beside = Beside::start().await;
    let sink = beside.sink(PATIENT);
    std::fs::write(beside.path("token"), "the token of the last hour").expect("written");
    let error = sink.record(&failed("one")).await.expect_err("refused");
    assert_eq!(kind(&error), "unavailable");
    let said = error.to_string();
    assert!(
        said.contains("401") && said.contains("not authenticated"),
        "{said}"
    );
    assert!(!said.contains("last hour"), "{said}");
    std::fs::write(beside.path("token"), TOKEN).expect("written");
    sink.record(&failed("one")).await.expect("recorded");
    std::fs::remove_file(beside.path("token")).expect("removed");
    let error = sink.record(&failed("two")).await.expect_err("no token");
    assert!(error.to_string().contains("read "), "{error}");
}

#[tokio::test]
async fn br_audit_005_a_server_that_nobody_vouches_for_gets_nothing() {
    let (beside, other) = (Beside::start().await, Beside::start().await);
    let theirs = std::fs::read(other.path("ca.pem")).expect("read");
    std::fs::write(beside.path("ca.pem"), theirs).expect("written");
    let sink = beside.sink(PATIENT);
    let error = sink.record(&failed("one")).await.expect_err("not trusted");
    assert_eq!(kind(&error), "unavailable", "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(beside.storage.requests(), (0, 0));
}

#[tokio::test]
async fn br_audit_005_what_the_columns_cannot_hold_is_cut_before_it_is_sent() {
    let beside = Beside::start().await;
    let mut cleared = event("one", EventType::BlockCleared);
    cleared.actor_id = format!("jane\0{}", "x".repeat(300));
    let sink = beside.sink(PATIENT);
    let events = [cleared, event("two", EventType::WorkflowFailed)];
    sink.record(&events).await.expect("recorded");
    let stored = beside.storage.events().expect("read");
    let actor = stored
        .iter()
        .find(|it| it.resource_id == "one")
        .map(|it| &it.actor_id);
    let actor = actor.expect("there");
    assert_eq!(actor.chars().count(), 255);
    assert!(actor.starts_with("janexx"), "{actor}");
    assert_eq!(sink.recorded(&events).await.expect("asked"), [true; 2]);
}

#[tokio::test]
async fn br_audit_005_a_refusal_names_the_place_and_repeats_no_values() {
    let beside = Beside::start().await;
    let mut bad = event("one", EventType::WorkflowFailed);
    bad.correlation_id = String::new();
    let sink = beside.sink(PATIENT);
    let batch = [event("two", EventType::WorkflowStarted), bad];
    let error = sink.record(&batch).await.expect_err("refused");
    assert_eq!(kind(&error), "refused");
    assert!(error.to_string().contains("/1/correlation_id"), "{error}");
    assert!(
        beside.storage.events().expect("read").is_empty(),
        "all or nothing"
    );
}

#[tokio::test]
async fn br_audit_005_everything_is_found_however_many_pages_it_has() {
    let beside = Beside::start().await;
    let sink = beside.sink(PATIENT);
    let events: Vec<AuditEvent> = (0..1200)
        .map(|number| event(&format!("w{number}"), EventType::WorkflowStarted))
        .collect();
    for batch in events.chunks(400) {
        sink.record(batch).await.expect("recorded");
    }
    let (_, before) = beside.storage.requests();
    let has = sink.recorded(&events).await.expect("asked");
    assert!(has.iter().all(|it| *it));
    assert_eq!(
        beside.storage.requests().1 - before,
        12,
        "pages of one correlation"
    );
    assert_eq!(sink.trail("rr-1").await.expect("read").len(), 1200);
}

#[test]
fn a_place_that_cannot_be_is_refused_at_once() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sink = |url: &str, ca: Option<&Path>| {
        HttpSink::new(HttpSinkOptions {
            url: url.parse().expect("a URL"),
            ca: ca.map(Path::to_owned),
            token_file: None,
            deadline: None,
        })
    };
    sink("ftp://storage", None).expect_err("no http");
    sink("https://storage", Some(Path::new("/nowhere.pem"))).expect_err("no file");
    sink("http://storage/prefix", None).expect("without authorities");
}
