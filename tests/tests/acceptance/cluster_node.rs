//! The test node runs images from the test registry.

use k8s_openapi::api::batch::v1::Job;
use kube::api::PostParams;
use kube::runtime::wait::Condition;
use kube::runtime::wait::conditions::is_job_completed;
use serde_json::json;
use wfe_tests::{Cluster, Image, wait};

use crate::setup::{SECONDS_30, pod_and_log};

#[tokio::test]
async fn job_with_pushed_image_runs_and_its_log_is_readable() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("node").await.expect("a namespace");
    let script =
        "#!/bin/sh\necho \"$GREETING from a pushed image\"\necho ended >/dev/termination-log\n";
    let image = Image::from("busybox:1")
        .text("run.sh", script)
        .entrypoint(&["/bin/sh", "/run.sh"]);
    let reference = cluster
        .registry()
        .expect("a registry")
        .push("tests/greeting:1", &image)
        .expect("pushed");
    assert!(
        wfe_model::image::ImageReference::parse(&reference).is_some(),
        "{reference}"
    );

    let job: Job = serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "greeting" },
        "spec": { "backoffLimit": 0, "template": { "spec": {
            "restartPolicy": "Never",
            "containers": [{ "name": "main", "image": reference, "env": [{ "name": "GREETING", "value": "hello" }] }],
        } } },
    }))
    .expect("a Job");
    let jobs = namespace.api::<Job>();
    jobs.create(&PostParams::default(), &job)
        .await
        .expect("created");
    let complete = |job: &Job| is_job_completed().matches_object(Some(job));
    wait::until(
        &jobs,
        "greeting",
        "the Job is complete",
        SECONDS_30,
        complete,
    )
    .await
    .expect("complete");

    let (pod, log) = pod_and_log(&namespace).await;
    assert_eq!(log, "hello from a pushed image\n");
    let containers = pod
        .status
        .and_then(|status| status.container_statuses)
        .expect("statuses");
    let ended = containers[0]
        .state
        .as_ref()
        .and_then(|state| state.terminated.as_ref())
        .expect("terminated");
    assert_eq!(
        (ended.exit_code, ended.message.as_deref()),
        (0, Some("ended\n"))
    );
}

#[tokio::test]
async fn images_with_same_content_have_same_digest() {
    let registry = Cluster::connect().await.registry().expect("a registry");
    let image = || Image::scratch().text("a", "content").entrypoint(&["/a"]);
    let first = registry.push("tests/same:1", &image()).expect("pushed");
    assert_eq!(
        first,
        registry.push("tests/same:2", &image()).expect("pushed")
    );
    assert_ne!(
        first,
        registry
            .push("tests/same:1", &image().text("b", "more"))
            .expect("pushed")
    );
}
