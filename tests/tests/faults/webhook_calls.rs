//! What the webhook costs while workflows run: nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use http::Request;
use serde_json::json;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, StandIn};
use wfe_tests::system::{Script, System, condition, install_crd};

const EXECUTIONS: u64 = 50;

/// How often the API server has asked a webhook, by its own count.
async fn calls(system: &System, webhook: &str) -> Result<u64> {
    let request = Request::get("/metrics").body(Vec::new())?;
    let text = system.cluster.admin().request_text(request).await?;
    let name = format!("name=\"{}\"", system.webhook_name(webhook));
    let counts = text.lines().filter(|line| {
        line.starts_with("apiserver_admission_webhook_admission_duration_seconds_count{")
            && line.contains(&name)
    });
    let counts = counts.map(|line| {
        let (_, count) = line.rsplit_once(' ').context("a count")?;
        Ok(count.parse::<u64>()?)
    });
    counts.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn br_we_014_the_controller_causes_no_webhook_call() {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let workflow = Script::of("calls", format!("r.io/calls@sha256:{}", "5".repeat(64)), "");
    let system = System::start(&cluster, "calls", &[&workflow])
        .await
        .expect("started");
    let _stand_in = StandIn::start(&system.execution, |_| Ending::Success);
    let asked = async |webhook| calls(&system, webhook).await.expect("counted");
    let before = (
        asked("mutate").await,
        asked("validate").await,
        asked("clear-block").await,
    );
    assert_eq!(before.2, 0);
    join_all((0..EXECUTIONS).map(async |number| {
        let name = format!("run-{number}");
        system
            .create(&workflow, &name, &json!({}))
            .await
            .expect("admitted");
        let wfe = system.ended(&name).await.expect("ended");
        assert_eq!(condition(&wfe, "Ready"), "True/Ready");
    }))
    .await;
    assert_eq!(
        asked("mutate").await - before.0,
        EXECUTIONS,
        "one for each create"
    );
    assert_eq!(
        asked("validate").await - before.1,
        EXECUTIONS,
        "one for each create"
    );
    assert_eq!(
        asked("clear-block").await,
        0,
        "none for the controller's status writes"
    );
    // The count counts.
    let broken = tokio::time::timeout(Duration::from_secs(30), system.clear("run-0")).await;
    let refused = broken
        .expect("answered")
        .expect_err("it succeeded")
        .to_string();
    assert!(refused.contains("there is nothing to clear"), "{refused}");
    assert_eq!(asked("clear-block").await, 1);
}
