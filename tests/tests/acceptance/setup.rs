//! Connects to the cluster, with the chart's CRD installed once; kubectl and pod logs.

use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{ListParams, LogParams};
use tokio::sync::OnceCell;
use wfe_tests::system::install_crd;
use wfe_tests::{Cluster, TestNamespace};

pub const SECONDS_30: Duration = Duration::from_secs(30);

static INSTALLED: OnceCell<()> = OnceCell::const_new();

/// The cluster, with the chart's CRD.
pub async fn cluster() -> Cluster {
    let cluster = Cluster::connect().await;
    INSTALLED
        .get_or_init(async || install_crd(&cluster).await.expect("the CRD"))
        .await;
    cluster
}

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
