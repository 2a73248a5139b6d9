//! Each request of a run that changes something is lost once, or its answer is.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use itertools::iproduct;
use wfe_tests::fakes::proxy::Fault;

use crate::scenario::{Moment, Scenario, Stage, Trail};

/// More would not be faster on two cores.
const STAGES: usize = 4;

/// Later than a new controller needs to go on.
const LATE: Fault = Fault::Delay(Duration::from_secs(2));

/// One run: the fault strikes the request of this name, in the first play of this scenario.
#[derive(Clone, Debug)]
struct Case {
    number: usize,
    scenario: Scenario,
    request: String,
    fault: Fault,
}

/// What changes something in an undisturbed run, by name.
async fn mutations(stage: &Stage, scenario: Scenario) -> Vec<String> {
    let name = format!("{scenario:?}").to_lowercase();
    stage.prepare(scenario, &name).await.expect("prepared");
    stage.proxy().arm(None);
    stage
        .play(scenario, &name)
        .await
        .expect("undisturbed it comes out right");
    stage.proxy().mutations()
}

/// Plays a case; whether the fault found its request.
async fn play(stage: &Stage, case: &Case, crash: bool) -> Result<bool> {
    let name = format!("run-{}", case.number);
    stage.proxy().arm(None);
    stage.prepare(case.scenario, &name).await?;
    let strikes = stage.proxy().strikes();
    stage.proxy().arm(Some((case.request.clone(), case.fault)));
    let played = stage.play(case.scenario, &name);
    tokio::pin!(played, strikes);
    tokio::select! {
        biased;
        () = &mut strikes => {}
        result = &mut played => return result.map(|()| false),
    }
    if crash {
        stage.crash().await?;
    }
    played.await.map(|()| true)
}

/// Plays all cases, several at once; every one that came out wrong is told.
async fn play_all(stages: &[Stage], cases: VecDeque<Case>, crash: bool) {
    let count = cases.len();
    let (queue, failures, missed) = (
        Mutex::new(cases),
        Mutex::new(String::new()),
        Mutex::new(Vec::new()),
    );
    let next = || queue.lock().expect("not poisoned").pop_front();
    let workers = stages.iter().map(async |stage| {
        while let Some(case) = next() {
            let played = play(stage, &case, crash).await;
            match played.with_context(|| format!("{case:?}")) {
                Ok(true) => {}
                // How writes fall together depends on timing: once more.
                Ok(false) if case.number < count => {
                    let number = case.number + count;
                    let again = Case { number, ..case };
                    queue.lock().expect("not poisoned").push_back(again);
                }
                Ok(false) => missed.lock().expect("not poisoned").push(case),
                Err(error) => {
                    let mut failures = failures.lock().expect("not poisoned");
                    writeln!(failures, "{error:#}").expect("memory");
                }
            }
        }
    });
    join_all(workers).await;
    let missed = missed.into_inner().expect("not poisoned");
    println!(
        "{count} runs, in {} of them the request did not come: {missed:?}",
        missed.len()
    );
    let failures = failures.into_inner().expect("not poisoned");
    assert!(failures.is_empty(), "{failures}");
    assert!(missed.len() * 10 <= count, "the faults strike: {missed:?}");
}

async fn stages(prefix: &str, trail: Trail) -> Vec<Stage> {
    join_all((0..STAGES).map(|_| Stage::set(prefix, trail))).await
}

/// Every fault for every request of the scenarios.
async fn cases(stages: &[Stage], faults: &[Fault], scenarios: &[Scenario]) -> VecDeque<Case> {
    let mut cases = VecDeque::new();
    for (scenario, stage) in scenarios.iter().zip(stages.iter().cycle()) {
        let requests = mutations(stage, *scenario).await;
        for expected in scenario.changes() {
            assert!(
                requests.contains(&format!("{expected} #1")),
                "{scenario:?}: {requests:?}"
            );
        }
        for (request, fault) in iproduct!(requests, faults) {
            let (number, scenario, fault) = (cases.len(), *scenario, *fault);
            cases.push_back(Case {
                number,
                scenario,
                request,
                fault,
            });
        }
    }
    cases
}

async fn a_crash_at_any_request(prefix: &str, trail: Trail) {
    let stages = stages(prefix, trail).await;
    let faults = [Fault::Drop, Fault::DropAnswer, LATE];
    let cases = cases(&stages, &faults, &Scenario::ALL).await;
    assert!(cases.len() > 150, "only {} cases", cases.len());
    play_all(&stages, cases, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn br_we_009_br_audit_005_a_crash_at_any_request_changes_nothing_of_the_end() {
    a_crash_at_any_request("crash", Trail::File).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn br_we_009_br_audit_005_a_crash_at_any_request_changes_nothing_of_the_trail_in_data_storage()
 {
    a_crash_at_any_request("crash-http", Trail::DataStorage).await;
}

/// BR-WE-009: the create of a controller that died is committed at the worst moments.
#[tokio::test(flavor = "multi_thread")]
async fn create_committed_late_never_starts() {
    let moments = [
        (Scenario::Success, Moment::Ended),
        (Scenario::Success, Moment::Gone),
        (Scenario::Failure, Moment::Gone),
        (Scenario::Cancel, Moment::JobDeleted),
        (Scenario::Cancel, Moment::Gone),
        (Scenario::Wait, Moment::NextRuns),
    ];
    join_all(moments.map(async |(scenario, moment)| {
        let stage = Stage::set("late", Trail::File).await;
        stage.deliver_at(moment);
        let case = Case {
            number: 0,
            scenario,
            request: "create jobs #1".to_owned(),
            fault: Fault::Hold,
        };
        let struck = play(&stage, &case, true).await;
        assert!(
            struck.unwrap_or_else(|error| panic!("{scenario:?}, {moment:?}: {error:#}")),
            "{scenario:?}, {moment:?}: no create was held"
        );
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn br_we_009_a_refused_or_late_request_changes_nothing_of_the_end() {
    let stages = stages("refused", Trail::File).await;
    let faults = [
        Fault::Refuse(409),
        Fault::Refuse(429),
        Fault::Refuse(503),
        LATE,
    ];
    let cases = cases(&stages, &faults, &[Scenario::Success]).await;
    play_all(&stages, cases, false).await;
}
