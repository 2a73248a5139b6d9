//! The API server calls no webhook for the writes of the controller.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::join_all;
use http::Request;
use serde_json::json;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::system::{Script, System, condition, install_crd};

const EXECUTIONS: u64 = 50;

/// Number of calls of a webhook, from the metrics of the API server.
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

/// BR-WE-014
#[tokio::test(flavor = "multi_thread")]
async fn controller_writes_call_no_webhook() {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await.expect("the CRD");
    let workflow = Script::of("calls", format!("r.io/calls@sha256:{}", "5".repeat(64)), "");
    let system = System::start(&cluster, "calls", &[&workflow])
        .await
        .expect("started");
    let _fake_node = FakeNode::start(&system.execution, |_| Ending::Success);
    let called = async |webhook| calls(&system, webhook).await.expect("counted");
    let before = (
        called("mutate").await,
        called("validate").await,
        called("clear-block").await,
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
        called("mutate").await - before.0,
        EXECUTIONS,
        "one for each create"
    );
    assert_eq!(
        called("validate").await - before.1,
        EXECUTIONS,
        "one for each create"
    );
    assert_eq!(
        called("clear-block").await,
        0,
        "none for the controller's status writes"
    );
    // A user's status write is counted: the metric is the right one.
    let cleared = tokio::time::timeout(Duration::from_secs(30), system.clear("run-0")).await;
    let refused = cleared
        .expect("answered")
        .expect_err("the execution succeeded")
        .to_string();
    assert!(refused.contains("there is nothing to clear"), "{refused}");
    assert_eq!(called("clear-block").await, 1);
}
