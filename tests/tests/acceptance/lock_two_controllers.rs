//! BR-WE-009: the target lock alone keeps executions apart, without leader election.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::api::PostParams;
use serde_json::json;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::system::{Overlap, Script, System};
use wfe_tests::wait;

use crate::setup::cluster;

const TARGETS: usize = 20;
const PER_TARGET: usize = 10;
/// A machine with two cores starts two or three pods a second.
const ALL_WITHIN: Duration = Duration::from_mins(8);

/// BR-WE-009
#[tokio::test]
async fn two_controllers_never_run_two_executions_on_one_target() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "brief", "true", "");
    let mut system = System::install(&cluster, "two", &[&workflow])
        .await
        .expect("installed");
    // A short retention frees room for pods on the node.
    system.controller_flags = vec!["--cooldown=0s".to_owned(), "--retention=20s".to_owned()];
    system.start_controller().await.expect("started");
    system.start_another_controller().await.expect("started");
    let overlap = Overlap::watch(&system.execution);
    let api = system.namespace.api::<WorkflowExecution>();
    for number in 0..TARGETS * PER_TARGET {
        let spec = json!({
            "targetResource": format!("prod/Deployment/t{}", number % TARGETS),
            "executionConfig": { "whenBlocked": "Wait" },
        });
        let request = workflow.request(&format!("w{number}"), &spec);
        api.create(&PostParams::default(), &request)
            .await
            .expect("stored");
    }
    let ended = |wfe: &WorkflowExecution| wfe.phase().is_some_and(Phase::is_final);
    let api = &api;
    let all: FuturesUnordered<_> = (0..TARGETS * PER_TARGET)
        .map(async |number| {
            let name = format!("w{number}");
            let wfe = wait::until(api, &name, "the phase is final", ALL_WITHIN, ended).await?;
            anyhow::ensure!(
                wfe.phase() == Some(Phase::Succeeded),
                "{name}: {:?}",
                wfe.status
            );
            Ok(())
        })
        .collect();
    let results: Vec<_> = all.collect().await;
    for result in results {
        result.expect("succeeded");
    }
    assert_eq!(overlap.end(), TARGETS * PER_TARGET, "executions that ran");
}
