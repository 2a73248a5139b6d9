//! `make demo KUBECONFIG=…`: the demo in a cluster that is not ours.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use wfe_tests::chart::{EXECUTIONS, PROGRAMS, run};
use wfe_tests::wait;

use crate::load::REQUESTS;
use crate::story::Story;

const GONE_WITHIN: Duration = Duration::from_mins(1);

/// It tells its story, and leaves nothing behind.
pub async fn in_another_cluster(story: &mut Story) {
    let registry = story.cluster.registry().expect("a registry");
    let demo = [
        "-u",
        "WFE_CLUSTER",
        env!("CARGO_BIN_EXE_wfe-demo"),
        "--registry",
        registry.address(),
    ];
    let told = run("env", &demo).await.expect("the demo");
    assert!(told.contains("64Mi more are enough"), "{told}");
    let namespaces: Api<Namespace> = Api::all(story.client.clone());
    for name in [REQUESTS, EXECUTIONS, PROGRAMS] {
        let gone = wait::gone(&namespaces, name, GONE_WITHIN).await;
        gone.expect("the demo has removed its namespaces");
    }
    story.done("make demo KUBECONFIG=…: installs, tells its story, removes itself");
}
