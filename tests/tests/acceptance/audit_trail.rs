//! BR-AUDIT-005: the audit trail of a remediation as `wfe-controller audit` prints it.

use serde_json::json;
use wfe_tests::system::{Script, System};

use crate::setup::cluster;

/// BR-AUDIT-005: executions of one remediation, on real pods, reported to Data Storage.
#[tokio::test]
async fn audit_command_lists_events_of_ten_executions() {
    let cluster = cluster().await;
    let good = Script::push(&cluster, "restart", "true", "");
    let bad = Script::push(
        &cluster,
        "resize",
        "echo no room left >/dev/termination-log; exit 3",
        "",
    );
    let slow = Script::push(
        &cluster,
        "drain",
        "trap 'exit 0' TERM; sleep 300 & wait",
        "",
    );
    let workflows = [&good, &bad, &slow];
    let mut system = System::install(&cluster, "story", &workflows)
        .await
        .expect("installed");
    system.start_data_storage().await.expect("started");
    // A clearance soon after a start is delivered after this time.
    let timeout = "--data-storage-timeout=5s".to_owned();
    system.controller_flags.push(timeout);
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let run = async |workflow: &Script, name: &str, target: &str| {
        let spec = json!({
            "targetResource": format!("prod/Deployment/{target}"),
            "remediationRequestRef": { "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationRequest", "name": "rr-web-1", "namespace": system.namespace.name(), "uid": "1" },
        });
        system
            .create(workflow, name, &spec)
            .await
            .expect("admitted");
    };
    for number in 1..=6 {
        run(
            &good,
            &format!("restart-{number}"),
            &format!("web-{number}"),
        )
        .await;
    }
    run(&bad, "resize-1", "db").await;
    system.ended("resize-1").await.expect("ended");
    run(&good, "restart-db", "db").await;
    system.ended("restart-db").await.expect("ended");
    system.clear("resize-1").await.expect("cleared");
    system
        .until("resize-1", "ClearanceRecorded", "True/AuditSucceeded")
        .await
        .expect("clearance audited");
    run(&good, "restart-db-again", "db").await;
    run(&slow, "drain-1", "node").await;
    system
        .until("drain-1", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("running");
    system
        .cancel("drain-1", "wrong node")
        .await
        .expect("cancelled");
    for name in [
        "restart-1",
        "restart-2",
        "restart-3",
        "restart-4",
        "restart-5",
        "restart-6",
        "restart-db-again",
        "drain-1",
    ] {
        system.ended(name).await.expect("ended");
    }

    let url = system.storage().expect("started").url();
    let ca = format!("--data-storage-ca={}", system.data_storage_ca().display());
    let token = format!(
        "--data-storage-token-file={}",
        system.data_storage_token().display()
    );
    let arguments = ["audit", &url, "--correlation-id=rr-web-1", &ca, &token];
    let (success, text) = system
        .controller_command(&arguments)
        .await
        .expect("executed");
    assert!(success, "{text}");
    println!("{text}");
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0]
            .split_whitespace()
            .eq(["TIME", "WORKFLOWEXECUTION", "WHAT", "DETAILS"]),
        "{text}"
    );
    let namespace = system.namespace.name();
    let events_of = |name: &str| -> Vec<String> {
        let name = format!("{namespace}/{name}");
        let words = lines
            .iter()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let matching = words.filter(|words| words[2] == name);
        matching.map(|words| words[3..].join(" ")).collect()
    };
    let check = |name: &str, expected: &[&str]| {
        let events = events_of(name);
        assert_eq!(events.len(), expected.len(), "{name}: {events:?}");
        for (line, expected) in events.iter().zip(expected) {
            assert!(
                line.starts_with(expected),
                "{name}: {line:?}, not {expected:?}"
            );
        }
    };
    for number in 1..=6 {
        let selected = format!("selected restart 1.0.0 for prod/Deployment/web-{number} (job)");
        let name = format!("restart-{number}");
        let created = format!("created Job/{}/{name}-", system.execution.name());
        check(&name, &[&selected, &created, "running", "succeeded after "]);
    }
    check(
        "resize-1",
        &[
            "selected resize 1.0.0 for prod/Deployment/db (job)",
            &format!("created Job/{}/resize-1-", system.execution.name()),
            "running",
            "failed after ",
            "cleared by ",
        ],
    );
    let failed = &events_of("resize-1")[3];
    assert!(
        failed.ends_with("TaskFailed: the container ended with exit code 3: no room left"),
        "{failed}"
    );
    assert!(events_of("resize-1")[4].ends_with(": looked at the target, it is fine"));
    check(
        "restart-db",
        &["skipped PreviousExecutionFailed: the last execution on prod/Deployment/db, "],
    );
    check(
        "restart-db-again",
        &["selected", "created", "running", "succeeded"],
    );
    check(
        "drain-1",
        &["selected", "created", "running", "failed after "],
    );
    assert!(events_of("drain-1")[3].contains("Cancelled: cancelled on request of "));
    assert!(events_of("drain-1")[3].contains(": wrong node"));
    assert!(events_of("drain-1")[0].contains("(job), requested by "));
    assert_eq!(lines.len(), 1 + 6 * 4 + 5 + 1 + 4 + 4, "{text}");

    let (success, text) = system
        .controller_command(&["audit", &url, "--correlation-id=nobody", &ca, &token])
        .await
        .expect("executed");
    assert!(
        !success && text.contains("no audit events with correlation id \"nobody\""),
        "{text}"
    );
}
