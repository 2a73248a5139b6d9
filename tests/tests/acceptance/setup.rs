//! The cluster; kubectl and pod logs.

use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota};
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use wfe_tests::system::System;
use wfe_tests::{TestNamespace, wait};

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

/// Limits a resource of the execution namespace to none, and waits until the quota counts.
pub async fn quota(system: &System, resource: &str) {
    let quota: ResourceQuota = serde_json::from_value(json!({
        "metadata": { "name": "none" }, "spec": { "hard": { resource: "0" } },
    }))
    .expect("a quota");
    let quotas = system.execution.api::<ResourceQuota>();
    quotas
        .create(&PostParams::default(), &quota)
        .await
        .expect("created");
    let known = |quota: &ResourceQuota| {
        let hard = quota.status.as_ref().and_then(|it| it.hard.as_ref());
        hard.is_some_and(|it| it.contains_key(resource))
    };
    wait::until(&quotas, "none", "the quota has a status", SECONDS_30, known)
        .await
        .expect("has a status");
}

/// Removes the quota.
pub async fn no_quota(system: &System) {
    let quotas = system.execution.api::<ResourceQuota>();
    quotas
        .delete("none", &DeleteParams::default())
        .await
        .expect("deleted");
}

/// Sets the annotation that stops new executions, or removes it.
pub async fn pause(system: &System, paused: Value) {
    let namespaces: Api<Namespace> = Api::all(system.cluster.admin());
    let patch =
        Patch::Merge(json!({ "metadata": { "annotations": { "kubernaut.ai/paused": paused } } }));
    let patched = namespaces
        .patch(system.execution.name(), &PatchParams::default(), &patch)
        .await;
    patched.expect("annotated");
}
