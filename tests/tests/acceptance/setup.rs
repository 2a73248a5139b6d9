//! The cluster; kubectl and pod logs.

use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{ListParams, LogParams};
use wfe_tests::TestNamespace;

pub use wfe_tests::system::cluster;

pub const SECONDS_30: Duration = Duration::from_secs(30);

/// Runs kubectl; returns whether it succeeded, and stdout with stderr.
pub async fn kubectl(arguments: &[&str]) -> (bool, String) {
    let output = tokio::process::Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("kubectl is on the PATH inside the cluster");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(text).expect("text"),
    )
}

/// The only pod of a namespace, and its log.
pub async fn pod_and_log(namespace: &TestNamespace) -> (Pod, String) {
    let pods = namespace.api::<Pod>();
    let listed = pods.list(&ListParams::default()).await.expect("listed");
    let [pod] = listed.items.as_slice() else {
        panic!("one pod, not {:?}", listed.items);
    };
    let log = pods.logs(&pod.name_any(), &LogParams::default()).await;
    (pod.clone(), log.expect("a log"))
}
