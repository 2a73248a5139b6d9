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

fn failed_midway(second: i64) -> Entry {
    entry(second, Outcome::Failed, true)
}

/// The `count`-th in a row.
fn failed_before(second: i64, count: u32) -> Entry {
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

fn name(obstacle: Option<Obstacle>) -> String {
    match obstacle {
        None => "none".to_owned(),
        Some(Obstacle::PreviousExecutionFailed(entry)) => format!("previous {}", entry.name),
        Some(Obstacle::ExhaustedRetries(_, failures)) => format!("exhausted {failures}"),
        Some(Obstacle::BackoffActive(_, until)) => {
            format!("backoff {}", until.as_second() - at(0).as_second())
        }
        Some(Obstacle::RecentlyRemediated(_, until)) => {
            format!("cooldown {}", until.as_second() - at(0).as_second())
        }
    }
}

#[rstest]
#[case::nothing_happened(vec![], 0, "none")]
#[case::cooldown(vec![succeeded(0)], 299, "cooldown 300")]
#[case::cooldown_is_over(vec![succeeded(0)], 300, "none")]
#[case::block(vec![failed_midway(0)], 999_999, "previous e0")]
#[case::block_cleared(vec![cleared(failed_midway(0), 5)], 6, "none")]
#[case::block_before_cooldown(vec![succeeded(0), failed_midway(1)], 2, "previous e1")]
#[case::success_after_clearing(vec![cleared(failed_midway(0), 5), succeeded(9)], 999, "none")]
#[case::first_failure(vec![failed_before(0, 1)], 59, "backoff 60")]
#[case::first_failure_is_over(vec![failed_before(0, 1)], 60, "none")]
#[case::second_failure(vec![failed_before(0, 1), failed_before(60, 2)], 61, "backoff 180")]
#[case::third_failure(vec![failed_before(0, 1), failed_before(60, 2), failed_before(180, 3)], 181, "backoff 420")]
#[case::at_most_the_maximum(vec![failed_before(0, 4)], 1, "backoff 480")]
#[case::fifth_failure(vec![failed_before(0, 5)], 999_999, "exhausted 5")]
#[case::exhausted_cleared(vec![cleared(failed_before(0, 5), 7)], 8, "none")]
#[case::any_clearing_resets(vec![cleared(failed_before(0, 1), 70), failed_before(60, 2)], 71, "none")]
#[case::after_clearing_it_counts_anew(vec![cleared(failed_before(0, 5), 7), failed_before(9, 1)], 10, "backoff 69")]
#[case::success_resets(vec![failed_before(0, 3), succeeded(300)], 9_999, "none")]
#[case::a_failure_before_execution_lifts_no_block(vec![failed_midway(0), failed_before(5, 1)], 6, "previous e0")]
#[case::counted_where_numbers_are_missing(vec![failed_before(0, 1), failed_before(1, 1)], 2, "backoff 121")]
fn br_we_010_012_013_what_happened_decides_what_may_run(
    #[case] entries: Vec<Entry>,
    #[case] now: i64,
    #[case] expected: &str,
) {
    let history = History::of([], entries);
    assert_eq!(name(history.obstacle("w", at(now), &limits())), expected);
}

#[test]
fn br_we_010_another_workflow_may_run_during_the_cooldown() {
    let history = History::of([], [succeeded(0)]);
    assert_eq!(history.obstacle("other", at(1), &limits()), None);
}

#[test]
fn br_we_012_the_backoff_never_grows_beyond_its_maximum() {
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

#[test]
fn br_we_009_the_record_stands_in_for_an_object_that_is_behind_or_gone() {
    let running = object("u0", &serde_json::json!({ "phase": "Running" }));
    let history = History::of([&running], [failed_midway(0)]);
    assert!(history.block().is_some(), "the object as seen is behind");
    let cleared = object(
        "u0",
        &serde_json::json!({
            "phase": "Failed", "completionTime": at(0), "executionRef": { "name": "j" },
            "failureDetails": { "reason": "TaskFailed", "message": "", "failedAt": at(0), "naturalLanguageSummary": "", "wasExecutionFailure": true },
            "blockClearance": { "clearedBy": "ann", "clearedAt": at(5), "clearReason": "looked at it", "clearMethod": "KubernetesAdmissionWebhook" },
        }),
    );
    let history = History::of([&cleared], [failed_midway(0)]);
    assert!(history.block().is_none(), "the object knows better");
    assert!(
        History::of([], [failed_midway(0)]).block().is_some(),
        "gone"
    );
}

#[test]
fn br_we_012_what_a_request_carries_itself_says_nothing_about_the_target() {
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

#[test]
fn br_we_009_a_record_has_the_fields_that_are_promised() {
    let json = serde_json::to_value(failed_midway(0)).expect("JSON");
    let expected = serde_json::json!({
        "uid": "u0", "namespace": "prod", "name": "e0", "workflowId": "w", "outcome": "Failed", "wasExecutionFailure": true,
        "cleared": false, "completionTime": "2027-01-15T08:00:00Z", "consecutiveFailures": 0,
    });
    assert_eq!(json, expected);
}
