//! Loses, rejects or delays each mutating request of a scenario once, or loses the response.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use itertools::iproduct;
use wfe_tests::fakes::proxy::Fault;

use crate::scenario::{AuditTarget, Moment, Scenario, Setup};

/// More setups are not faster on two cores.
const SETUPS: usize = 4;

/// Delivers the request after a restarted controller has continued.
const LATE: Fault = Fault::Delay(Duration::from_secs(2));

/// One run of a scenario, with a fault for the request of this name.
#[derive(Clone, Debug)]
struct Case {
    number: usize,
    scenario: Scenario,
    request: String,
    fault: Fault,
}

/// Names of the mutating requests in a run without a fault.
async fn mutations(setup: &Setup, scenario: Scenario) -> Vec<String> {
    let name = format!("{scenario:?}").to_lowercase();
    setup.prepare(scenario, &name).await.expect("prepared");
    setup.proxy().arm(None);
    setup
        .run(scenario, &name)
        .await
        .expect("success without a fault");
    setup.proxy().mutations()
}

/// Runs a case; returns whether the request came to which the fault applies.
async fn run(setup: &Setup, case: &Case, crash: bool) -> Result<bool> {
    let name = format!("run-{}", case.number);
    setup.proxy().arm(None);
    setup.prepare(case.scenario, &name).await?;
    let fault = setup.proxy().next_fault();
    setup.proxy().arm(Some((case.request.clone(), case.fault)));
    let running = setup.run(case.scenario, &name);
    tokio::pin!(running, fault);
    tokio::select! {
        biased;
        () = &mut fault => {}
        result = &mut running => return result.map(|()| false),
    }
    if crash {
        setup.crash().await?;
    }
    running.await.map(|()| true)
}

/// Runs all cases, one at a time in each setup; the failure message lists every failed case.
async fn run_all(setups: &[Setup], cases: VecDeque<Case>, crash: bool) {
    let count = cases.len();
    let (queue, failures, missed) = (
        Mutex::new(cases),
        Mutex::new(String::new()),
        Mutex::new(Vec::new()),
    );
    let next = || queue.lock().pop_front();
    let workers = setups.iter().map(async |setup| {
        while let Some(case) = next() {
            let result = run(setup, &case, crash).await;
            match result.with_context(|| format!("{case:?}")) {
                Ok(true) => {}
                // Which writes are coalesced depends on timing: retries the case once.
                Ok(false) if case.number < count => {
                    let number = case.number + count;
                    let retry = Case { number, ..case };
                    queue.lock().push_back(retry);
                }
                Ok(false) => missed.lock().push(case),
                Err(error) => {
                    let mut failures = failures.lock();
                    writeln!(failures, "{error:#}").expect("memory");
                }
            }
        }
    });
    join_all(workers).await;
    let missed = missed.into_inner();
    println!(
        "{count} cases; the request of the fault did not come in {}: {missed:?}",
        missed.len()
    );
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "{failures}");
    assert!(missed.len() * 10 <= count, "requests missed: {missed:?}");
}

async fn setups(prefix: &str, audit_target: AuditTarget) -> Vec<Setup> {
    join_all((0..SETUPS).map(|_| Setup::start(prefix, audit_target))).await
}

/// A case for each fault and each mutating request of the scenarios.
async fn cases(setups: &[Setup], faults: &[Fault], scenarios: &[Scenario]) -> VecDeque<Case> {
    let mut cases = VecDeque::new();
    for (scenario, setup) in scenarios.iter().zip(setups.iter().cycle()) {
        let requests = mutations(setup, *scenario).await;
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

async fn check_crash_at_each_request(prefix: &str, audit_target: AuditTarget) {
    let setups = setups(prefix, audit_target).await;
    let faults = [Fault::Drop, Fault::DropAnswer, LATE];
    let cases = cases(&setups, &faults, &Scenario::ALL).await;
    assert!(cases.len() > 150, "only {} cases", cases.len());
    run_all(&setups, cases, true).await;
}

/// BR-WE-009, BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn controller_crash_at_any_request_keeps_outcome() {
    check_crash_at_each_request("crash", AuditTarget::File).await;
}

/// BR-WE-009, BR-AUDIT-005
#[tokio::test(flavor = "multi_thread")]
async fn controller_crash_at_any_request_keeps_trail_in_data_storage() {
    check_crash_at_each_request("crash-http", AuditTarget::DataStorage).await;
}

/// BR-WE-009: the create of a controller that died is committed at the worst moments.
#[tokio::test(flavor = "multi_thread")]
async fn job_create_committed_late_never_starts() {
    let moments = [
        (Scenario::Success, Moment::Ended),
        (Scenario::Success, Moment::Gone),
        (Scenario::Failure, Moment::Gone),
        (Scenario::Cancel, Moment::JobDeleted),
        (Scenario::Cancel, Moment::Gone),
        (Scenario::Wait, Moment::NextRuns),
    ];
    join_all(moments.map(async |(scenario, moment)| {
        let setup = Setup::start("late", AuditTarget::File).await;
        setup.deliver_at(moment);
        let case = Case {
            number: 0,
            scenario,
            request: "create jobs #1".to_owned(),
            fault: Fault::Hold,
        };
        let held = run(&setup, &case, true).await;
        assert!(
            held.unwrap_or_else(|error| panic!("{scenario:?}, {moment:?}: {error:#}")),
            "{scenario:?}, {moment:?}: no create was held back"
        );
    }))
    .await;
}

/// BR-WE-009
#[tokio::test(flavor = "multi_thread")]
async fn rejected_or_delayed_request_keeps_outcome() {
    let setups = setups("refused", AuditTarget::File).await;
    let faults = [
        Fault::Refuse(409),
        Fault::Refuse(429),
        Fault::Refuse(503),
        LATE,
    ];
    let cases = cases(&setups, &faults, &[Scenario::Success]).await;
    run_all(&setups, cases, false).await;
}
