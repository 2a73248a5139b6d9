use serde_json::{Value, json};
use wfe_model::workflow_execution::WorkflowExecutionStatus;

use super::*;
use crate::decide::tests::ready;
use crate::execution::Source;
use crate::status::time;

fn at(clock: &str) -> Timestamp {
    format!("2026-01-01T{clock}Z").parse().expect("a timestamp")
}

/// A request on the target that waits for it: workflow `w`, created at `clock`.
fn request(name: &str, clock: &str, status: &Value) -> WorkflowExecution {
    let mut wfe = WorkflowExecution::clone(&ready().wfe);
    wfe.metadata.name = Some(name.to_owned());
    wfe.metadata.uid = Some(name.to_owned());
    wfe.metadata.creation_timestamp = Some(time(at(clock)));
    wfe.spec.execution_config.when_blocked = Some("Wait".to_owned());
    let status: Option<WorkflowExecutionStatus> =
        serde_json::from_value(status.clone()).expect("a status");
    wfe.status = status;
    wfe
}

fn ended(name: &str, phase: &str, ran: bool) -> WorkflowExecution {
    let mut status = json!({
        "phase": phase, "completionTime": "2026-01-01T11:59:00Z",
        "executionRef": { "apiVersion": "batch/v1", "kind": "Job", "name": "j", "namespace": "n", "uid": "j" },
    });
    if phase == "Failed" {
        status["failureDetails"] = json!({ "reason": "TaskFailed", "message": "", "failedAt": "2026-01-01T11:59:00Z", "naturalLanguageSummary": "", "wasExecutionFailure": ran });
    }
    request(name, "11:50:00", &status)
}

fn held_by(name: &str) -> TargetLock {
    let mut lock = TargetLock::default();
    lock.holder = Some(Holder::Execution(Source {
        namespace: "prod".to_owned(),
        name: name.to_owned(),
        uid: name.to_owned(),
    }));
    lock
}

/// Names of those that a change of the target concerns at noon.
fn concerned(requests: &[WorkflowExecution], failing: &[&str], lock: &TargetLock) -> Vec<String> {
    let history = History::of(requests, lock.records().cloned());
    let failing = failing.iter().map(|it| (*it).to_owned()).collect();
    let line = Line {
        requests: requests.iter().collect(),
        history: &history,
        failing: &failing,
        settings: &ready().settings,
        now: at("12:00:00"),
    };
    let concerned = line.concerned(lock).into_iter();
    concerned
        .filter_map(|it| it.metadata.name.clone())
        .collect()
}

/// BR-WE-009: of many that wait only one is woken.
#[test]
fn concerned_of_free_target_is_the_oldest_that_may_run() {
    let free = TargetLock::default();
    let line = [
        request("third", "11:58:00", &json!({ "phase": "Pending" })),
        request("first", "11:56:00", &json!({ "phase": "Pending" })),
        request("second", "11:57:00", &json!(null)),
    ];
    assert_eq!(concerned(&line, &[], &free), ["first"]);
    assert_eq!(concerned(&line, &["first"], &free), ["second"]);
    let mut cancelled = line.clone();
    let why = [(wfe_model::CANCEL.to_owned(), "not needed".to_owned())];
    cancelled[1].metadata.annotations = Some(why.into());
    assert_eq!(concerned(&cancelled, &[], &free), ["second"]);
    let mut late = line.clone();
    late[1].metadata.creation_timestamp = Some(time(at("11:00:00")));
    assert_eq!(
        concerned(&late, &[], &free),
        ["second"],
        "after its deadline"
    );
}

/// BR-WE-009
#[test]
fn concerned_of_used_target_are_its_users_and_the_next() {
    let running = json!({ "phase": "Running" });
    let line = [
        ended("holder", "Succeeded", true),
        request("lost its lock", "11:55:00", &running),
        request("other", "11:56:00", &json!({ "phase": "Pending" })),
    ];
    let names = concerned(&line, &[], &held_by("holder"));
    assert_eq!(names, ["holder", "lost its lock", "other"]);
}

/// BR-WE-009, BR-WE-010: a request runs when its restriction ends.
#[test]
fn concerned_of_restricted_line_is_the_one_whose_restriction_ends_first() {
    let free = TargetLock::default();
    let pending = json!({ "phase": "Pending" });
    let mut line = vec![
        ended("before", "Succeeded", true),
        request("first", "11:56:00", &pending),
        request("second", "11:57:00", &pending),
    ];
    assert_eq!(concerned(&line, &[], &free), ["first"], "in its cooldown");
    line[2].spec.workflow_ref.workflow_id = "another".to_owned();
    assert_eq!(concerned(&line, &[], &free), ["second"], "it may run now");
    line[0] = ended("before", "Failed", true);
    assert_eq!(
        concerned(&line, &[], &free),
        ["first"],
        "it ends because of the block, then the second one is next"
    );
}
