use std::sync::Arc;

use rstest::rstest;
use serde_json::{Value, json};

use super::super::decide;
use super::super::tests::{name, now, other, other_alive, ready, stores, wfe};
use super::*;
use crate::lock::{self, TargetLock};
use crate::observed::Gate;
use crate::status::holds;
use k8s_openapi::api::coordination::v1::Lease;

/// Another WorkflowExecution on the same target.
fn neighbour(uid: &str, created: &str, status: Value) -> Arc<WorkflowExecution> {
    let mut wfe = wfe(status);
    wfe.metadata.name = Some(uid.to_owned());
    wfe.metadata.uid = Some(uid.to_owned());
    wfe.metadata.creation_timestamp = Some(time(created.parse().expect("a timestamp")));
    Arc::new(wfe)
}

fn ended(ending: &Value) -> Arc<WorkflowExecution> {
    let mut status = json!({
        "completionTime": "2026-01-01T11:59:00Z",
        "executionRef": { "apiVersion": "batch/v1", "kind": "Job", "name": "j", "namespace": "n", "uid": "j" },
    });
    for (key, value) in ending.as_object().expect("an object") {
        status[key] = value.clone();
    }
    neighbour("before", "2026-01-01T11:50:00Z", status)
}

fn failed(ran: bool, failures: Option<i32>) -> Arc<WorkflowExecution> {
    ended(&json!({
        "phase": "Failed", "consecutiveFailures": failures,
        "failureDetails": { "reason": "TaskFailed", "message": "", "failedAt": "2026-01-01T11:59:00Z", "naturalLanguageSummary": "", "wasExecutionFailure": ran },
    }))
}

/// A request whose next step is to take the lock; `waits`: with `whenBlocked: Wait`.
fn before(waits: bool, change: impl FnOnce(&mut Observed)) -> Observed {
    let mut observed = ready();
    (observed.lock, observed.answers.lock_taken) = (Lock::Free, false);
    if waits {
        let config = &mut Arc::make_mut(&mut observed.wfe).spec.execution_config;
        config.when_blocked = Some("Wait".to_owned());
    }
    change(&mut observed);
    observed
}

/// BR-WE-009, BR-WE-010, BR-WE-012, BR-WE-013
#[rstest]
#[case::busy(|it: &mut Observed| it.lock = Lock::Held(other()), SkipReason::ResourceBusy, None)]
#[case::other_pod_alive(|it: &mut Observed| it.others_alive = Some(other_alive()), SkipReason::ResourceBusy, None)]
#[case::runs_without_lease(|it: &mut Observed| it.neighbours = vec![neighbour("before", "2026-01-01T11:50:00Z", json!({ "phase": "Running" }))], SkipReason::ResourceBusy, None)]
#[case::failed_after_start(|it: &mut Observed| it.neighbours = vec![failed(true, None)], SkipReason::PreviousExecutionFailed, None)]
#[case::retries_exhausted(|it: &mut Observed| it.neighbours = vec![failed(false, Some(5))], SkipReason::ExhaustedRetries, None)]
#[case::backoff_active(|it: &mut Observed| it.neighbours = vec![failed(false, Some(2))], SkipReason::BackoffActive, Some("2026-01-01T12:01:00Z"))]
#[case::cooldown_active(|it: &mut Observed| it.neighbours = vec![ended(&json!({ "phase": "Succeeded" }))], SkipReason::RecentlyRemediated, Some("2026-01-01T12:04:00Z"))]
fn obstacle_is_stored_with_cause_and_retry_time(
    #[case] obstacle: impl Fn(&mut Observed),
    #[case] reason: SkipReason,
    #[case] until: Option<&str>,
) {
    let skipped = stores(&before(false, &obstacle));
    let details = skipped
        .status
        .and_then(|status| status.skip_details)
        .expect("details");
    assert_eq!(details.reason, reason);
    assert_eq!(
        details.retry_at.map(|it| it.0.to_string()).as_deref(),
        until
    );
    let cause = details.conflicting_workflow.map(|it| it.name);
    let cause = cause
        .or(details.recent_remediation.map(|it| it.name))
        .expect("a name");
    assert!(["before", "other"].contains(&cause.as_str()), "{cause}");

    let cleared_by_user = [
        SkipReason::PreviousExecutionFailed,
        SkipReason::ExhaustedRetries,
    ];
    let mut waits = before(true, &obstacle);
    let first = stores(&waits);
    if cleared_by_user.contains(&reason) {
        assert_eq!(
            first.phase(),
            Some(Phase::Skipped),
            "only a clearance ends the block"
        );
        return;
    }
    assert_eq!(first.phase(), Some(Phase::Pending));
    assert_eq!(
        stored(&first, ConditionType::Blocked).map(|it| it.reason.as_str()),
        Some(Reason::from(reason).as_str())
    );
    waits.wfe = Arc::new(first);
    let wait = format!("wait until {}", until.unwrap_or("2026-01-01T12:28:00Z"));
    assert_eq!(name(&decide(&waits)), wait, "stored once");
}

/// BR-WE-009
#[test]
fn closed_execution_namespace_keeps_every_request_pending() {
    for (waits, gate) in [
        (false, Gate::Paused),
        (true, Gate::Paused),
        (false, Gate::Ending),
        (false, Gate::Missing),
    ] {
        let paused = stores(&before(waits, |it| it.gate = gate));
        assert_eq!(paused.phase(), Some(Phase::Pending));
        assert_eq!(
            stored(&paused, ConditionType::Blocked).map(|it| it.reason.as_str()),
            Some("Paused")
        );
    }
}

/// BR-WE-009: the execution namespace may be paused although no watch says so.
#[test]
fn gate_that_may_be_outdated_is_read_before_each_write_of_a_start() {
    let doubtful = before(false, |it| it.gate_doubtful = true);
    assert_eq!(name(&decide(&doubtful)), "ask Gate");
    let mut read = doubtful.clone();
    read.answers.gate = Some(Gate::Open);
    assert_eq!(name(&decide(&read)), "take lock");
    let mut locked = ready();
    locked.gate_doubtful = true;
    assert_eq!(name(&decide(&locked)), "ask Gate");
    locked.answers.gate = Some(Gate::Open);
    locked.answers.drop_uncached_reads();
    assert_eq!(name(&decide(&locked)), "ask Gate", "a write takes time");
}

/// BR-WE-009
#[test]
fn request_without_a_slot_waits_or_is_skipped() {
    for (full, says) in [
        (
            Full::Cluster(7),
            "7 executions run, as many as may at the same time (--max-running)",
        ),
        (
            Full::Namespace(2),
            "2 executions of namespace prod run, as many as may at the same time (--max-running-per-namespace)",
        ),
    ] {
        let waiting = stores(&before(true, |it| it.answers.full = Some(full)));
        assert_eq!(waiting.phase(), Some(Phase::Pending));
        let blocked = stored(&waiting, ConditionType::Blocked).expect("a condition");
        assert_eq!(blocked.reason, "ResourceBusy");
        assert!(blocked.message.starts_with(says), "{}", blocked.message);
        let skipped = stores(&before(false, |it| it.answers.full = Some(full)));
        let details = skipped.status.and_then(|it| it.skip_details);
        let details = details.expect("skip details");
        assert_eq!(details.reason, SkipReason::ResourceBusy);
        assert!(details.message.starts_with(says), "{}", details.message);
    }
}

/// BR-WE-009
#[test]
fn request_beyond_the_waiting_limit_is_skipped_with_that_reason() {
    let pending = json!({ "phase": "Pending" });
    let line = |number: usize| {
        let created = |index| format!("2026-01-01T11:57:{index:02}Z");
        let older = (0..number).map(|index| {
            let mut wfe = neighbour(&format!("w{index}"), &created(index), pending.clone());
            let config = &mut Arc::make_mut(&mut wfe).spec.execution_config;
            config.when_blocked = Some("Wait".to_owned());
            wfe
        });
        before(true, |it| {
            (it.lock, it.neighbours) = (Lock::Held(other()), older.collect());
            Arc::make_mut(&mut it.settings).max_waiting_per_target = 3;
        })
    };
    assert_eq!(stores(&line(2)).phase(), Some(Phase::Pending));
    let skipped = stores(&line(3));
    let details = skipped.status.clone().and_then(|it| it.skip_details);
    let details = details.expect("skip details");
    assert_eq!(details.reason, SkipReason::ResourceBusy);
    let says =
        "3 older WorkflowExecutions wait for it, as many as may wait (--max-waiting-per-target)";
    assert!(details.message.contains(says), "{}", details.message);
    let mut waits = line(3);
    waits.wfe = Arc::new(stores(&line(2)));
    assert_ne!(
        name(&decide(&waits)),
        "store status",
        "who waits already stays"
    );
    let mut unlimited = line(3);
    Arc::make_mut(&mut unlimited.settings).max_waiting_per_target = 0;
    assert_eq!(stores(&unlimited).phase(), Some(Phase::Pending));
}

/// BR-WE-009
#[test]
fn waiting_requests_oldest_that_may_run_starts_first() {
    let blocked = json!({ "phase": "Pending", "conditions": [{ "type": "Blocked", "status": "True", "reason": "ResourceBusy", "message": "", "lastTransitionTime": "2026-01-01T11:57:00Z" }] });
    // The observed request was created at 11:58.
    let with = |neighbours: &[Arc<WorkflowExecution>], waits| {
        let neighbours = neighbours.to_vec();
        name(&decide(&before(waits, |it| it.neighbours = neighbours)))
    };
    let older = neighbour("older", "2026-01-01T11:57:00Z", blocked.clone());
    let younger = neighbour("younger", "2026-01-01T11:59:00Z", blocked.clone());
    assert_eq!(with(std::slice::from_ref(&younger), true), "take lock");
    assert_eq!(
        with(&[younger, older.clone()], true),
        "store status",
        "the older request starts first"
    );
    let younger = stores(&before(false, |it| it.neighbours = vec![older.clone()]));
    assert_eq!(
        younger.phase(),
        Some(Phase::Skipped),
        "a request with whenBlocked Skip does not wait behind an older one"
    );

    // An older request that cannot run does not delay younger ones.
    let mut unreadable = blocked.clone();
    unreadable["conditions"].as_array_mut().expect("a list").push(json!({ "type": "DependenciesReady", "status": "Unknown", "reason": "ReadFailed", "message": "", "lastTransitionTime": "2026-01-01T11:57:00Z" }));
    assert_eq!(
        with(
            &[neighbour("older", "2026-01-01T11:57:00Z", unreadable)],
            true
        ),
        "take lock"
    );
    let cooling_down = vec![older, ended(&json!({ "phase": "Succeeded" }))];
    let mut another = before(true, |it| it.neighbours = cooling_down);
    Arc::make_mut(&mut another.neighbours[1])
        .spec
        .workflow_ref
        .workflow_id = "x".to_owned();
    Arc::make_mut(&mut another.neighbours[0])
        .spec
        .workflow_ref
        .workflow_id = "x".to_owned();
    assert_eq!(
        name(&decide(&another)),
        "take lock",
        "the cooldown restricts the older request"
    );
}

/// BR-WE-009
#[test]
fn taken_lock_with_blocking_record_is_freed() {
    let record = Entry::of(&failed(true, None)).expect("an entry");
    let mut observed = ready();
    let lease = lock::taken(lock::new("n", &"abc".into()), &observed.source, now());
    let freed = lock::freed(lease, Some(&record), now());
    let held = lock::taken(freed, &observed.source, now());
    observed.target_lock = TargetLock::from(Some(Arc::new(held)));
    assert_eq!(
        name(&decide(&observed)),
        "free lock",
        "taken in this pass: no execution was created"
    );
    observed.answers.lock_taken = false;
    observed.answers.execution = Some(None);
    assert_eq!(
        name(&decide(&observed)),
        "free lock",
        "an execution of an earlier attempt is held and never starts"
    );
}

/// BR-WE-009
#[test]
fn pending_past_own_timeout_is_skipped() {
    let mut observed = before(true, |it| it.lock = Lock::Held(other()));
    observed.wfe = Arc::new(stores(&observed));
    observed.now = now() + std::time::Duration::from_mins(28);
    let skipped = stores(&observed);
    let details = skipped
        .status
        .as_ref()
        .and_then(|status| status.skip_details.clone());
    let details = details.expect("details");
    assert_eq!(details.reason, SkipReason::StartDeadlineExceeded);
    assert!(
        details.message.contains("was busy at"),
        "{}",
        details.message
    );
    assert!(holds(&skipped, ConditionType::Stalled));
    assert!(!holds(&skipped, ConditionType::Blocked));
    let summary = skipped.status.and_then(|it| it.execution_status);
    assert_eq!(
        summary.and_then(|it| it.reason).as_deref(),
        Some("StartDeadlineExceeded"),
        "the obstacle is no longer the reason"
    );
}

/// BR-WE-009
#[rstest]
#[case::holder(Lock::Held(other()), "WorkflowExecution prod/other holds its lock")]
#[case::by_hand(Lock::ByHand("ops".to_owned()), "has the holder \"ops\"; remove spec.holderIdentity")]
fn busy_message_names_holder_and_lease(#[case] lock: Lock, #[case] says: &str) {
    for waits in [false, true] {
        let busy = stores(&before(waits, |it| it.lock = lock.clone()));
        let status = busy.status.expect("a status");
        let message = status.skip_details.map(|it| it.message);
        let waiting = status.execution_status.and_then(|it| it.message);
        let message = message.or(waiting).expect("a message");
        assert!(message.contains(says), "{message}");
    }
}

/// BR-WE-009: a pod that has not ended is no holder of a Lease.
#[test]
fn busy_message_names_object_that_has_not_ended() {
    let skipped = stores(&before(false, |it| it.others_alive = Some(other_alive())));
    let details = skipped.status.and_then(|it| it.skip_details);
    let message = details.expect("details").message;
    let says = "pod kubernaut-workflows/other-1 of WorkflowExecution prod/other has not ended";
    assert!(message.contains(says), "{message}");
    assert!(!message.contains("Lease"), "{message}");
}

/// BR-WE-009: the request and the holder may spell the target differently.
#[test]
fn busy_names_target_as_the_holder_spells_it() {
    let skipped = stores(&before(false, |it| {
        let mut holder = neighbour(
            "other",
            "2026-01-01T11:57:00Z",
            json!({ "phase": "Running" }),
        );
        let holder = Arc::make_mut(&mut holder);
        holder.spec.target_resource = "prod/deployment/web".to_owned();
        it.lock = Lock::Held(Source::of(holder));
        it.neighbours = vec![Arc::new(holder.clone())];
    }));
    let details = skipped.status.and_then(|it| it.skip_details);
    let conflicting = details.and_then(|it| it.conflicting_workflow);
    let target = conflicting.map(|it| it.target_resource);
    assert_eq!(target.as_deref(), Some("prod/deployment/web"));
}

/// BR-WE-009: otherwise no watch would show when the Lease is free.
#[test]
fn lease_without_labels_is_labelled() {
    let mut lease = lock::taken(lock::new("n", &"abc".into()), &other(), now());
    let read = |lease: &Lease| {
        let lease = Some(Arc::new(lease.clone()));
        name(&decide(&before(true, |it| {
            it.lock = Lock::Held(other());
            it.answers.lease = Some(lease);
        })))
    };
    assert_eq!(read(&lease), "store status");
    lease.metadata.labels = None;
    assert_eq!(read(&lease), "label lock");
}

/// BR-WE-009: an elder that cannot proceed must not block the target for everybody.
#[rstest]
#[case::may_run(|_: &mut Observed| (), "store status")]
#[case::pass_fails(|it: &mut Observed| { it.failing.insert("older".to_owned()); }, "take lock")]
#[case::past_its_deadline(|it: &mut Observed| {
    let older = Arc::make_mut(&mut it.neighbours[0]);
    older.spec.execution_config.timeout = Some("1m".to_owned());
}, "take lock")]
fn older_waiter_that_cannot_proceed_is_passed_over(
    #[case] change: impl FnOnce(&mut Observed),
    #[case] step: &str,
) {
    let waits = json!({ "phase": "Pending", "conditions": [{ "type": "Blocked", "status": "True", "reason": "ResourceBusy", "message": "", "lastTransitionTime": "2026-01-01T11:57:00Z" }] });
    let older = neighbour("older", "2026-01-01T11:57:00Z", waits);
    let decided = decide(&before(true, |it| {
        it.neighbours = vec![older];
        change(it);
    }));
    assert_eq!(name(&decided), step);
}

/// BR-WE-009, BR-WE-012: it may run, or have failed.
#[test]
fn target_of_unread_execution_is_in_use() {
    let unread = Unread {
        source: other(),
        error: "unknown variant `Exploded`".to_owned(),
    };
    let skipped = stores(&before(false, |it| it.unread = Some(unread)));
    let details = skipped
        .status
        .and_then(|it| it.skip_details)
        .expect("details");
    assert_eq!(details.reason, SkipReason::ResourceBusy);
    let says = "WorkflowExecution prod/other cannot be read";
    assert!(details.message.contains(says), "{}", details.message);
}
