use std::collections::{HashMap, VecDeque};

use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use serde_json::json;
use wfe_model::audit::Identity;
use wfe_peers::audit::NotRecorded;

use super::send::SUSPECT_RETRIES;
use super::*;

/// Objects that do not change.
struct FixedObjects(HashMap<ObjectRef<WorkflowExecution>, Arc<WorkflowExecution>>);

impl ObjectReader for FixedObjects {
    fn newest(&self, reference: &ObjectRef<WorkflowExecution>) -> Option<Arc<WorkflowExecution>> {
        self.0.get(reference).cloned()
    }
}

/// Fault of the next request.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Unavailable,
    /// The events are stored, and the response is lost.
    AnswerLost,
    /// The request is lost: no event is stored.
    RequestLost,
    /// The sink answers 500 although it is healthy.
    Fails,
}

/// A sink in memory. Like Data Storage it stores an event again when it is sent again.
#[derive(Default)]
struct Sink {
    stored: Mutex<Vec<Identity>>,
    faults: Mutex<VecDeque<Fault>>,
    /// Rejects events of this WorkflowExecution.
    refuses: Option<&'static str>,
    /// Answers 500 to events of this WorkflowExecution.
    fails_on: Option<&'static str>,
    asked: Mutex<usize>,
    /// Events of a dead process, and when they are committed.
    late: Mutex<Option<(Instant, Vec<Identity>)>>,
}

impl AuditSink for Sink {
    fn record<'a>(&'a self, events: &'a [AuditEvent]) -> BoxFuture<'a, Result<(), NotRecorded>> {
        async {
            let unanswered = || NotRecorded::Unanswered {
                why: "timeout".to_owned(),
                settled_after: Duration::from_secs(35),
            };
            let has = |name: Option<&str>| {
                events
                    .iter()
                    .any(|it| Some(it.resource_id.as_str()) == name)
            };
            let fault = self.faults.lock().pop_front();
            match fault {
                Some(Fault::Unavailable) => {
                    return Err(NotRecorded::Unavailable("down".to_owned()));
                }
                Some(Fault::RequestLost) => return Err(unanswered()),
                Some(Fault::Fails) => return Err(NotRecorded::Failed("500".to_owned())),
                Some(Fault::AnswerLost) | None => {}
            }
            if has(self.refuses) {
                return Err(NotRecorded::Refused("400".to_owned()));
            }
            if has(self.fails_on) {
                return Err(NotRecorded::Failed("500".to_owned()));
            }
            self.stored
                .lock()
                .extend(events.iter().map(AuditEvent::identity));
            match fault {
                Some(_) => Err(unanswered()),
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn recorded<'a>(
        &'a self,
        events: &'a [AuditEvent],
    ) -> BoxFuture<'a, Result<Vec<bool>, Unasked>> {
        *self.asked.lock() += 1;
        self.commit_late();
        let stored = self.stored.lock().clone();
        let known = events
            .iter()
            .map(|it| stored.contains(&it.identity()))
            .collect();
        futures::future::ready(Ok(known)).boxed()
    }

    fn settles_within(&self) -> Duration {
        Duration::from_secs(35)
    }

    fn is_well(&self) -> BoxFuture<'_, Result<(), Unasked>> {
        futures::future::ready(Ok(())).boxed()
    }
}

impl Sink {
    fn commit_late(&self) {
        if let Some((_, events)) = self.late.lock().take_if(|(at, _)| *at <= Instant::now()) {
            self.stored.lock().extend(events);
        }
    }
}

fn skipped(name: &str) -> Arc<WorkflowExecution> {
    wfe(
        name,
        json!({ "phase": "Skipped", "skipDetails": { "reason": "ResourceBusy", "message": "", "skippedAt": "2026-01-01T00:00:00Z" } }),
    )
}

fn failed_late(name: &str) -> Arc<WorkflowExecution> {
    let job = json!({ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "namespace": "n", "uid": "j" });
    let details = json!({ "reason": "TaskFailed", "message": "", "failedAt": "2026-01-01T00:00:00Z", "naturalLanguageSummary": "", "wasExecutionFailure": true });
    let began = json!({ "type": "ExecutionRunning", "status": "True", "reason": "ExecutionStarted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    wfe(
        name,
        json!({ "phase": "Failed", "startTime": "2026-01-01T00:00:00Z", "executionRef": job, "failureDetails": details, "conditions": [began] }),
    )
}

fn wfe(name: &str, status: serde_json::Value) -> Arc<WorkflowExecution> {
    let mut wfe = WorkflowExecution::default();
    wfe.metadata.name = Some(name.to_owned());
    wfe.metadata.namespace = Some("prod".to_owned());
    wfe.metadata.uid = Some(format!("uid-{name}"));
    wfe.status = serde_json::from_value(status).expect("a status");
    Arc::new(wfe)
}

/// Offers all events of `wfes` and delivers until no event waits.
async fn deliver(outbox: &Arc<Outbox>, wfes: &[Arc<WorkflowExecution>], new: bool) {
    let objects: HashMap<_, _> = wfes
        .iter()
        .map(|wfe| (ObjectRef::from_obj(wfe.as_ref()), wfe.clone()))
        .collect();
    for wfe in wfes {
        let fresh = if new {
            audit::types(wfe)
        } else {
            EnumSet::empty()
        };
        outbox.offer(wfe, fresh);
    }
    let emptied = async {
        // The clock is paused: a sleep ends when all other tasks are idle.
        while outbox.ledger().waiting() > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let objects = FixedObjects(objects);
    let bounded = tokio::time::timeout(Duration::from_hours(1), async {
        tokio::select! {
            () = outbox.run(&objects) => {}
            () = emptied => {}
        }
    });
    bounded.await.expect("all events are delivered or rejected");
}

fn outbox(sink: Arc<Sink>) -> (Arc<Outbox>, mpsc::Receiver<ObjectRef<WorkflowExecution>>) {
    let (requeue, requeued) = mpsc::channel(1000);
    let metrics = Metrics::new(&mut Registry::default());
    (
        Arc::new(Outbox::new(
            sink,
            metrics,
            requeue,
            CancellationToken::new(),
            Leadership::always(),
        )),
        requeued,
    )
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(test);
}

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let fault = prop_oneof![
        Just(Fault::Unavailable),
        Just(Fault::AnswerLost),
        Just(Fault::RequestLost),
        Just(Fault::Fails),
    ];
    // After more failures in a row a healthy event would count as rejected.
    let few = |faults: &Vec<Fault>| {
        let fails = faults.iter().filter(|it| matches!(it, Fault::Fails));
        fails.count() <= SUSPECT_RETRIES
    };
    proptest::collection::vec(fault, 0..12).prop_filter("few failures", few)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// BR-AUDIT-005
    #[test]
    fn delivery_with_faults_stores_each_event_once_and_in_order(
        faults in faults(), count in 1_usize..60, new in any::<bool>(), some_stored_before in any::<bool>(),
    ) {
        let wfes: Vec<_> = (0..count).map(|number| failed_late(&format!("w{number}"))).collect();
        let sink = Arc::new(Sink::default());
        if some_stored_before && !new {
            // An earlier process has delivered the first events.
            let first = audit::events(&wfes[0], EnumSet::all());
            sink.stored.lock().extend(first.iter().take(2).map(AuditEvent::identity));
        }
        sink.faults.lock().extend(faults);
        let (outbox, _requeued) = outbox(sink.clone());
        block_on(deliver(&outbox, &wfes, new));
        let stored = sink.stored.lock().clone();
        for wfe in &wfes {
            let expected = audit::events(wfe, EnumSet::all());
            let expected: Vec<_> = expected.iter().map(AuditEvent::identity).collect();
            let mine: Vec<_> = stored.iter().filter(|it| Some(&it.name) == wfe.metadata.name.as_ref()).cloned().collect();
            prop_assert_eq!(mine, expected);
            prop_assert!(outbox.delivery(wfe).waiting.is_empty());
        }
    }
}

/// BR-AUDIT-005
#[tokio::test(start_paused = true)]
async fn new_events_are_sent_without_asking_the_sink() {
    let sink = Arc::new(Sink::default());
    let (outbox, mut requeued) = outbox(sink.clone());
    deliver(&outbox, &[skipped("a")], true).await;
    assert_eq!(*sink.asked.lock(), 0);
    assert_eq!(
        requeued.next().await.map(|it| it.name),
        Some("a".to_owned())
    );
    deliver(&outbox, &[skipped("b")], false).await;
    assert_eq!(
        *sink.asked.lock(),
        1,
        "asked about events that another process may have sent"
    );
}

/// BR-AUDIT-005
#[tokio::test(start_paused = true)]
async fn rejected_events_of_one_object_do_not_stop_the_others() {
    let wfes: Vec<_> = (0..40)
        .map(|number| failed_late(&format!("w{number}")))
        .collect();
    // Also the first object: the sink has accepted no event before it.
    for (number, fails, why) in [(7, false, "400"), (0, true, "500"), (7, true, "500")] {
        let name = ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"][number];
        let (refuses, fails_on) = if fails {
            (None, Some(name))
        } else {
            (Some(name), None)
        };
        let sink = Arc::new(Sink {
            refuses,
            fails_on,
            ..Sink::default()
        });
        let (outbox, _requeued) = outbox(sink.clone());
        deliver(&outbox, &wfes, true).await;
        assert_eq!(sink.stored.lock().len(), 39 * 4);
        let rejected = outbox.delivery(&wfes[number]).rejected;
        let all = audit::types(&wfes[number]);
        assert_eq!(rejected, Some((all, why.to_owned())), "{name}");
        assert_eq!(outbox.delivery(&wfes[8]).rejected, None);
    }
}

/// BR-AUDIT-005
#[tokio::test(start_paused = true)]
async fn sink_that_fails_on_every_event_is_an_outage_without_rejections() {
    let sink = Arc::new(Sink::default());
    sink.faults.lock().extend([Fault::Fails; 200]);
    let (outbox, mut requeued) = outbox(sink.clone());
    let wfes = [skipped("a"), skipped("b")];
    deliver(&outbox, &wfes, true).await;
    assert_eq!(sink.stored.lock().len(), 2);
    for _ in 0..4 {
        requeued
            .next()
            .await
            .expect("requeued at the outage and after the delivery");
    }
    assert_eq!(
        outbox.delivery(&wfes[0]),
        Delivery {
            queued: true,
            ..Delivery::default()
        }
    );
}

/// BR-AUDIT-005
#[tokio::test(start_paused = true)]
async fn events_of_abandoned_or_missing_objects_are_dropped() {
    let sink = Arc::new(Sink::default());
    let (outbox, _requeued) = outbox(sink.clone());
    outbox.offer(&skipped("gone"), EnumSet::empty());
    let abandoned = skipped("abandoned");
    outbox.offer(&abandoned, EnumSet::empty());
    outbox.abandon(&abandoned);
    deliver(&outbox, &[skipped("a")], true).await;
    assert_eq!(sink.stored.lock().len(), 1);
}

/// BR-AUDIT-005
#[tokio::test(start_paused = true)]
async fn event_of_dead_process_that_is_committed_late_is_stored_once() {
    let sink = Arc::new(Sink::default());
    let earlier = skipped("earlier");
    let sent = audit::events(&earlier, audit::types(&earlier));
    let sent = sent.iter().map(AuditEvent::identity).collect();
    *sink.late.lock() = Some((Instant::now() + Duration::from_secs(30), sent));
    let (outbox, _requeued) = outbox(sink.clone());
    deliver(&outbox, &[earlier], false).await;
    tokio::time::advance(Duration::from_secs(35)).await;
    sink.commit_late();
    assert_eq!(sink.stored.lock().len(), 1);
}

/// An execution that was created and whose workflow has not started.
fn created(name: &str) -> Arc<WorkflowExecution> {
    let job = json!({ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "namespace": "n", "uid": "j" });
    let status =
        json!({ "phase": "Running", "startTime": "2026-01-01T00:00:00Z", "executionRef": job });
    wfe(name, status)
}

/// BR-AUDIT-005
#[tokio::test(start_paused = true)]
async fn events_before_the_start_are_held_back_and_others_sent_at_once() {
    let sink = Arc::new(Sink::default());
    let (outbox, _requeued) = outbox(sink.clone());
    let began = Instant::now();
    deliver(&outbox, &[skipped("ended"), failed_late("failed")], true).await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "the clock of the test"
    );
    let (began, before) = (Instant::now(), sink.stored.lock().len());
    deliver(&outbox, &[created("starts")], true).await;
    assert!(began.elapsed() >= HOLD);
    assert_eq!(sink.stored.lock().len(), before + 2);
    let mut deleted = created("deleted").as_ref().clone();
    deleted.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    let began = Instant::now();
    deliver(&outbox, &[Arc::new(deleted)], true).await;
    assert!(began.elapsed() < Duration::from_secs(2));
}
