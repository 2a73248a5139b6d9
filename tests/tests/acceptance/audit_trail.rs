//! BR-AUDIT-005: the trail of a remediation, as an operator reads it.

use serde_json::json;
use wfe_tests::system::{Script, System};

use crate::setup::cluster;

/// Ten executions of one remediation, on real pods, reported to Data Storage.
#[tokio::test]
async fn br_audit_005_the_trail_of_ten_executions_reads_as_a_story() {
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
    system.put_data_storage_beside().await.expect("beside");
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let run = async |workflow: &Script, name: &str, target: &str| {
        let spec = json!({
            "targetResource": format!("prod/Deployment/{target}"),
            "remediationRequestRef": { "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationRequest", "name": "rr-web-1", "namespace": "prod", "uid": "1" },
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
        .expect("told");
    run(&good, "restart-db-again", "db").await;
    run(&slow, "drain-1", "node").await;
    system
        .until("drain-1", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("it runs");
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

    let url = system.storage().expect("beside").url();
    let ca = format!("--data-storage-ca={}", system.data_storage_ca().display());
    let token = format!(
        "--data-storage-token-file={}",
        system.data_storage_token().display()
    );
    let arguments = ["audit", &url, "--correlation-id=rr-web-1", &ca, &token];
    let (content, text) = system
        .controller_command(&arguments)
        .await
        .expect("it runs");
    assert!(content, "{text}");
    println!("{text}");
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0]
            .split_whitespace()
            .eq(["TIME", "WORKFLOWEXECUTION", "WHAT", "DETAILS"]),
        "{text}"
    );
    let namespace = system.namespace.name();
    let story = |name: &str| -> Vec<String> {
        let name = format!("{namespace}/{name}");
        let words = lines
            .iter()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = words.filter(|words| words[2] == name);
        ours.map(|words| words[3..].join(" ")).collect()
    };
    let begins = |name: &str, expected: &[&str]| {
        let story = story(name);
        assert_eq!(story.len(), expected.len(), "{name}: {story:?}");
        for (line, expected) in story.iter().zip(expected) {
            assert!(
                line.starts_with(expected),
                "{name}: {line:?}, not {expected:?}"
            );
        }
    };
    for number in 1..=6 {
        let selected = format!("selected restart 1.0.0 for prod/Deployment/web-{number} (job)");
        let name = format!("restart-{number}");
        let created = format!("created {name}-");
        begins(&name, &[&selected, &created, "running", "succeeded after "]);
    }
    begins(
        "resize-1",
        &[
            "selected resize 1.0.0 for prod/Deployment/db (job)",
            "created resize-1-",
            "running",
            "failed after ",
            "cleared by ",
        ],
    );
    let failed = &story("resize-1")[3];
    assert!(
        failed.ends_with("TaskFailed: the container ended with exit code 3: no room left"),
        "{failed}"
    );
    assert!(story("resize-1")[4].ends_with(": looked at the target, it is fine"));
    begins(
        "restart-db",
        &["skipped PreviousExecutionFailed: the last execution on prod/Deployment/db, "],
    );
    begins(
        "restart-db-again",
        &["selected", "created", "running", "succeeded"],
    );
    begins(
        "drain-1",
        &["selected", "created", "running", "failed after "],
    );
    assert!(story("drain-1")[3].contains("Cancelled: cancelled on request: wrong node"));
    assert_eq!(lines.len(), 1 + 6 * 4 + 5 + 1 + 4 + 4, "{text}");

    let (content, said) = system
        .controller_command(&["audit", &url, "--correlation-id=nobody", &ca, &token])
        .await
        .expect("it runs");
    assert!(
        !content && said.contains("nothing is known of nobody"),
        "{said}"
    );
}
