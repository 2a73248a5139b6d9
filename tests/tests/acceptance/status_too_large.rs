//! A WorkflowExecution so large that its status cannot be stored: nothing runs, and it is told.

use std::collections::BTreeMap;

use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{Script, System, condition, dry_run, until_effective};

use crate::setup::cluster;

/// More labels than etcd accepts in one object.
const TOO_MANY: usize = 16_384;

fn with_labels(request: &WorkflowExecution, count: usize) -> WorkflowExecution {
    let mut large = request.clone();
    let labels = (0..count).map(|number| (format!("label-{number:050}"), "v".repeat(60)));
    large.metadata.labels = Some(labels.collect::<BTreeMap<_, _>>());
    large
}

/// BR-WE-008
#[tokio::test]
async fn execution_whose_status_cannot_be_stored_is_told_and_runs_nothing() {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "large", "true", "");
    let mut system = System::install(&cluster, "large", &[&quick])
        .await
        .expect("installed");
    let api = system.namespace.api::<WorkflowExecution>();
    let mut request = quick.request("large", &json!({}));
    request.metadata.finalizers = Some(vec![wfe_model::FINALIZER.to_owned()]);
    // As an object that is older than the bounds of metadata.
    system
        .remove_policy("workflowexecution-metadata")
        .await
        .expect("removed");
    let padded = with_labels(&request, 65);
    let unbounded = async || Ok(api.create(&dry_run(), &padded).await.is_ok());
    until_effective("the removal of the policy", unbounded)
        .await
        .expect("unbounded");
    // The largest object that can be stored, found by bisection, has no room for a status.
    let (mut fits, mut too_large) = (0, TOO_MANY);
    while too_large - fits > 1 {
        let middle = usize::midpoint(fits, too_large);
        let mut probe = with_labels(&request, middle);
        probe.metadata.finalizers = None;
        match api.create(&PostParams::default(), &probe).await {
            Ok(_) => {
                fits = middle;
                api.delete("large", &DeleteParams::default())
                    .await
                    .expect("deleted");
            }
            Err(_) => too_large = middle,
        }
    }
    // The finalizer takes the place of some labels.
    let stored = with_labels(&request, fits - 3);
    api.create(&PostParams::default(), &stored)
        .await
        .expect("stored");
    system.start_controller().await.expect("started");
    let events = system.namespace.api::<Event>();
    let told = async || {
        let listed = events.list(&kube::api::ListParams::default()).await?;
        let mut reasons = listed.iter().filter_map(|it| it.reason.as_deref());
        anyhow::Ok(reasons.any(|it| it == "ReconcileFails"))
    };
    until_effective("the Event", told).await.expect("told");
    let metrics = system.controller_metrics().await.expect("metrics");
    let notice =
        "workflowexecution_notice_total{execution_engine=\"job\",reason=\"ReconcileFails\"} 1";
    assert!(metrics.contains(notice), "{metrics}");
    let pods = system.live_pods().await.expect("listed");
    let pods: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
    assert!(pods.is_empty(), "{pods:?}");
    // It gives up the lock that it has taken.
    let same_target = json!({
        "targetResource": "prod/Deployment/large", "executionConfig": { "whenBlocked": "Wait" },
    });
    system
        .create(&quick, "next", &same_target)
        .await
        .expect("stored");
    let next = system.ended("next").await.expect("ended");
    assert_eq!(condition(&next, "Ready"), "True/Ready");
    system.kill_controller().await.expect("killed");
    let namespace = system.namespace.name().to_owned();
    let released = system
        .admin_command(&["release", "--namespace", &namespace])
        .await;
    let (success, text) = released.expect("run");
    assert!(success, "{text}");
}
