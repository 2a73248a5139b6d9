use rstest::rstest;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a timestamp")
}

fn limits() -> Limits {
    Limits {
        cooldown: Duration::from_mins(5),
        backoff_base: Duration::from_mins(1),
        backoff_max: Duration::from_mins(10),
        max_consecutive_failures: 5,
    }
}

fn entry(second: i64, outcome: Outcome, ran: bool) -> Entry {
    Entry {
        uid: format!("u{second}"),
        namespace: "prod".to_owned(),
        name: format!("e{second}"),
        workflow_id: "w".to_owned(),
        outcome,
        was_execution_failure: ran && outcome == Outcome::Failed,
        cleared: false,
        completion_time: at(second),
        consecutive_failures: 0,
        cleared_at: None,
    }
}

fn succeeded(second: i64) -> Entry {
    entry(second, Outcome::Succeeded, true)
}

fn failed_after_start(second: i64) -> Entry {
    entry(second, Outcome::Failed, true)
}

/// The `count`-th failure in a row before a container started.
fn failed_before_start(second: i64, count: u32) -> Entry {
    Entry {
        consecutive_failures: count,
        ..entry(second, Outcome::Failed, false)
    }
}

fn cleared(entry: Entry, second: i64) -> Entry {
    Entry {
        cleared: true,
        cleared_at: Some(at(second)),
        ..entry
    }
}

fn name(restriction: Option<Restriction>) -> String {
    match restriction {
        None => "none".to_owned(),
        Some(Restriction::PreviousExecutionFailed(entry)) => format!("previous {}", entry.name),
        Some(Restriction::ExhaustedRetries(_, failures)) => format!("exhausted {failures}"),
        Some(Restriction::BackoffActive(_, until)) => {
            format!("backoff {}", until.as_second() - at(0).as_second())
        }
        Some(Restriction::RecentlyRemediated(_, until)) => {
            format!("cooldown {}", until.as_second() - at(0).as_second())
        }
    }
}

/// BR-WE-010, BR-WE-012, BR-WE-013
#[rstest]
#[case::no_entries(vec![], 0, "none")]
#[case::cooldown(vec![succeeded(0)], 299, "cooldown 300")]
#[case::cooldown_is_over(vec![succeeded(0)], 300, "none")]
#[case::block(vec![failed_after_start(0)], 999_999, "previous e0")]
#[case::block_cleared(vec![cleared(failed_after_start(0), 5)], 6, "none")]
#[case::block_before_cooldown(vec![succeeded(0), failed_after_start(1)], 2, "previous e1")]
#[case::success_after_clearing(vec![cleared(failed_after_start(0), 5), succeeded(9)], 999, "none")]
#[case::first_failure(vec![failed_before_start(0, 1)], 59, "backoff 60")]
#[case::first_failure_is_over(vec![failed_before_start(0, 1)], 60, "none")]
#[case::second_failure(vec![failed_before_start(0, 1), failed_before_start(60, 2)], 61, "backoff 180")]
#[case::third_failure(vec![failed_before_start(0, 1), failed_before_start(60, 2), failed_before_start(180, 3)], 181, "backoff 420")]
#[case::fourth_failure(vec![failed_before_start(0, 4)], 1, "backoff 480")]
#[case::fifth_failure(vec![failed_before_start(0, 5)], 999_999, "exhausted 5")]
#[case::exhausted_cleared(vec![cleared(failed_before_start(0, 5), 7)], 8, "none")]
#[case::clearing_any_failure_resets_count(vec![cleared(failed_before_start(0, 1), 70), failed_before_start(60, 2)], 71, "none")]
#[case::failure_after_clearing_counts_from_one(vec![cleared(failed_before_start(0, 5), 7), failed_before_start(9, 1)], 10, "backoff 69")]
#[case::success_resets_count(vec![failed_before_start(0, 3), succeeded(300)], 9_999, "none")]
#[case::failure_before_start_keeps_block(vec![failed_after_start(0), failed_before_start(5, 1)], 6, "previous e0")]
#[case::equal_stored_counts_are_counted(vec![failed_before_start(0, 1), failed_before_start(1, 1)], 2, "backoff 121")]
fn restriction_follows_from_entries(
    #[case] entries: Vec<Entry>,
    #[case] now: i64,
    #[case] expected: &str,
) {
    let history = History::of([], entries);
    assert_eq!(name(history.restriction("w", at(now), &limits())), expected);
}

/// BR-WE-010
#[test]
fn cooldown_does_not_restrict_other_workflow() {
    let history = History::of([], [succeeded(0)]);
    assert_eq!(history.restriction("other", at(1), &limits()), None);
}

/// BR-WE-012
#[test]
fn next_allowed_doubles_up_to_maximum() {
    for (failures, seconds) in [(1, 60), (2, 120), (3, 240), (4, 480), (5, 600), (99, 600)] {
        assert_eq!(next_allowed(at(0), failures, &limits()), at(seconds));
    }
}

fn object(uid: &str, status: &serde_json::Value) -> WorkflowExecution {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
        "metadata": { "name": "a", "namespace": "prod", "uid": uid },
        "spec": { "executionEngine": "job", "targetResource": "prod/Deployment/web", "workflowRef": { "workflowId": "w", "version": "1" } },
        "status": status,
    }))
    .expect("a WorkflowExecution")
}

/// BR-WE-009
#[test]
fn record_replaces_stale_or_deleted_object() {
    let running = object("u0", &serde_json::json!({ "phase": "Running" }));
    let history = History::of([&running], [failed_after_start(0)]);
    assert!(history.block().is_some(), "the object is stale");
    let cleared = object(
        "u0",
        &serde_json::json!({
            "phase": "Failed", "completionTime": at(0), "executionRef": { "name": "j" },
            "failureDetails": { "reason": "TaskFailed", "message": "", "failedAt": at(0), "naturalLanguageSummary": "", "wasExecutionFailure": true },
            "blockClearance": { "clearedBy": "ann", "clearedAt": at(5), "clearReason": "looked at it", "clearMethod": "KubernetesAdmissionWebhook" },
        }),
    );
    let history = History::of([&cleared], [failed_after_start(0)]);
    assert!(
        history.block().is_none(),
        "the object is newer than the record"
    );
    assert!(
        History::of([], [failed_after_start(0)]).block().is_some(),
        "the object is deleted"
    );
}

/// BR-WE-012: whoever can write the Lease of a target can write any record.
#[test]
fn record_lifts_no_block_of_an_object() {
    let failed = |ran: bool, failures: u32| {
        let status = serde_json::json!({
            "phase": "Failed", "completionTime": at(0), "executionRef": { "name": "j" }, "consecutiveFailures": failures,
            "failureDetails": { "reason": "TaskFailed", "message": "", "failedAt": at(0), "naturalLanguageSummary": "", "wasExecutionFailure": ran },
        });
        object("u0", &status)
    };
    for (object, expected) in [
        (failed(true, 0), "previous a"),
        (failed(false, 5), "exhausted 5"),
    ] {
        let clearance = Entry::of(&object).map(|entry| cleared(entry, 5));
        for record in [clearance.expect("an entry"), succeeded(9)] {
            let history = History::of([&object], [record]);
            let found = history.restriction("other", at(9_999), &limits());
            assert_eq!(name(found), expected);
        }
    }
}

/// BR-WE-012
#[test]
fn entry_of_failure_caused_by_request_is_none() {
    let details = |reason: &str| serde_json::json!({ "reason": reason, "message": "", "failedAt": at(0), "naturalLanguageSummary": "", "wasExecutionFailure": false });
    let own = object(
        "u",
        &serde_json::json!({ "phase": "Failed", "completionTime": at(0), "failureDetails": details("ConfigurationError") }),
    );
    assert_eq!(Entry::of(&own), None);
    let counted = object(
        "u",
        &serde_json::json!({ "phase": "Failed", "completionTime": at(0), "consecutiveFailures": 2, "failureDetails": details("ImagePullBackOff") }),
    );
    assert_eq!(
        Entry::of(&counted).map(|it| it.consecutive_failures),
        Some(2)
    );
    assert_eq!(
        Entry::of(&object("u", &serde_json::json!({ "phase": "Skipped" }))),
        None
    );
}

/// BR-WE-009
#[test]
fn entry_json_has_documented_fields() {
    let json = serde_json::to_value(failed_after_start(0)).expect("JSON");
    let expected = serde_json::json!({
        "uid": "u0", "namespace": "prod", "name": "e0", "workflowId": "w", "outcome": "Failed", "wasExecutionFailure": true,
        "cleared": false, "completionTime": "2027-01-15T08:00:00Z", "consecutiveFailures": 0,
    });
    assert_eq!(json, expected);
}
