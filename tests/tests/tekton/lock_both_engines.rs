//! BR-WE-009: one lock, one history for both engines.

use serde_json::{Value, json};
use wfe_model::workflow_execution::{Phase, SkipReason, WorkflowExecutionStatus};
use wfe_tests::Cluster;
use wfe_tests::system::{Overlap, Script, System, Task, pipeline};

use crate::setup::cluster;

const TARGETS: usize = 10;
const JOBS: usize = 60;
const PIPELINES: usize = 20;

fn nap(cluster: &Cluster, id: &'static str) -> Script {
    let task = Task::of("nap", cluster, &["sleep 4"]);
    pipeline(cluster, id, &[task], &json!({}), "")
}

async fn ended(system: &System, name: &str) -> WorkflowExecutionStatus {
    let wfe = system.ended(name).await.expect("ended");
    wfe.status.expect("a status")
}

fn skipped(status: &WorkflowExecutionStatus) -> Option<SkipReason> {
    status.skip_details.as_ref().map(|it| it.reason)
}

/// BR-WE-009: in either order, also with two controllers and after a restart.
#[tokio::test]
async fn job_and_pipeline_never_run_together_on_one_target() {
    let cluster = cluster().await;
    let job = Script::push(&cluster, "nap-job", "sleep 4", "");
    let pipeline = nap(&cluster, "nap-pipeline");
    let mut system = System::install(&cluster, "tkn-lock", &[&job, &pipeline])
        .await
        .expect("installed");
    system.controller_flags = vec!["--cooldown=0s".to_owned()];
    let overlap = Overlap::watch(&system.execution);
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    system.start_another_controller().await.expect("started");
    for (target, first, second) in [("a", &job, &pipeline), ("b", &pipeline, &job)] {
        let on = |wait: &str| json!({ "targetResource": format!("prod/Deployment/{target}"), "executionConfig": { "whenBlocked": wait } });
        system
            .create(first, &format!("{target}-first"), &on("Skip"))
            .await
            .expect("admitted");
        system
            .until(
                &format!("{target}-first"),
                "ExecutionRunning",
                "True/ExecutionStarted",
            )
            .await
            .expect("running");
        system
            .create(second, &format!("{target}-skipped"), &on("Skip"))
            .await
            .expect("admitted");
        system
            .create(second, &format!("{target}-waiting"), &on("Wait"))
            .await
            .expect("admitted");
        assert_eq!(
            skipped(&ended(&system, &format!("{target}-skipped")).await),
            Some(SkipReason::ResourceBusy)
        );
    }
    system.kill_controller().await.expect("killed");
    system.start_controller().await.expect("started");
    for name in ["a-first", "a-waiting", "b-first", "b-waiting"] {
        assert_eq!(
            ended(&system, name).await.phase,
            Some(Phase::Succeeded),
            "{name}"
        );
    }
    assert_eq!(overlap.end(), 4);
}

/// BR-WE-012, BR-WE-013: what one engine did restricts the other.
#[tokio::test]
async fn block_and_backoff_apply_across_engines() {
    let cluster = cluster().await;
    let job = Script::push(&cluster, "good-job", "true", "");
    let bad = pipeline(
        &cluster,
        "bad-pipeline",
        &[Task::of("bad", &cluster, &["exit 3"])],
        &json!({}),
        "",
    );
    let absent = format!(
        "{}/absent@sha256:{}",
        cluster.registry().expect("a registry").address(),
        "0".repeat(64)
    );
    let absent = Script::pipeline("absent", absent, "");
    let mut system = System::install(&cluster, "tkn-history", &[&job, &bad, &absent])
        .await
        .expect("installed");
    system.controller_flags = vec!["--cooldown=0s".to_owned()];
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let run = async |workflow: &Script, name: &str, target: &str| {
        let spec: Value = json!({ "targetResource": format!("prod/Deployment/{target}") });
        system
            .create(workflow, name, &spec)
            .await
            .expect("admitted");
        ended(&system, name).await
    };
    assert_eq!(run(&bad, "broken", "web").await.phase, Some(Phase::Failed));
    assert_eq!(
        skipped(&run(&job, "blocked", "web").await),
        Some(SkipReason::PreviousExecutionFailed)
    );
    system.clear("broken").await.expect("cleared");
    assert_eq!(run(&job, "free", "web").await.phase, Some(Phase::Succeeded));

    assert_eq!(
        run(&absent, "absent", "db").await.consecutive_failures,
        Some(1)
    );
    assert_eq!(
        skipped(&run(&job, "backing-off", "db").await),
        Some(SkipReason::BackoffActive)
    );
}

/// BR-WE-009: a mixed load on few targets.
#[tokio::test]
async fn mixed_load_never_overlaps_on_a_target() {
    let cluster = cluster().await;
    let job = Script::push(&cluster, "load-job", "true", "");
    let task = Task::of("only", &cluster, &["true"]);
    let pipeline = pipeline(&cluster, "load-pipeline", &[task], &json!({}), "");
    let mut system = System::install(&cluster, "tkn-load", &[&job, &pipeline])
        .await
        .expect("installed");
    system.controller_flags = vec!["--cooldown=0s".to_owned()];
    let overlap = Overlap::watch(&system.execution);
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let mut names = Vec::new();
    for index in 0..JOBS + PIPELINES {
        let workflow = if index % 4 == 3 { &pipeline } else { &job };
        let name = format!("{}-{index}", workflow.id);
        let spec = json!({
            "targetResource": format!("prod/Deployment/t{}", index % TARGETS),
            "executionConfig": { "whenBlocked": "Wait" },
        });
        system
            .create(workflow, &name, &spec)
            .await
            .expect("admitted");
        names.push(name);
    }
    for name in &names {
        let status = system
            .ended_within(name, std::time::Duration::from_mins(5))
            .await
            .expect("ended")
            .status;
        assert_eq!(
            status.expect("a status").phase,
            Some(Phase::Succeeded),
            "{name}"
        );
    }
    assert_eq!(overlap.end(), JOBS + PIPELINES);
}
