//! The floor: the writes that an execution needs, by a client that decides nothing.

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{Script, System};

/// Starts per second of `number` executions, `concurrency` at a time.
#[expect(clippy::cast_precision_loss, reason = "rounded for display")]
pub async fn starts_per_second(system: &System, number: usize, concurrency: usize) -> Result<f64> {
    let client = system.cluster.admin();
    // A namespace that no controller watches.
    let namespace = system.cluster.namespace("bench-floor").await?;
    let began = Instant::now();
    let all = (0..number).map(|index| one(system, client.clone(), namespace.name(), index));
    let all = stream::iter(all).map(anyhow::Ok);
    all.try_for_each_concurrent(concurrency, |it| it).await?;
    Ok(number as f64 / began.elapsed().as_secs_f64())
}

async fn one(system: &System, client: kube::Client, namespace: &str, index: usize) -> Result<()> {
    let name = format!("floor-{index}");
    let execution = system.execution.name();
    let (post, patch) = (PostParams::default(), PatchParams::default());
    let wfes: Api<WorkflowExecution> = Api::namespaced(system.cluster.admin(), namespace);
    let workflow = Script::of("floor", format!("r.io/floor@sha256:{}", "7".repeat(64)), "");
    wfes.create(&post, &workflow.request(&name, &json!({})))
        .await?;

    let wfes: Api<WorkflowExecution> = Api::namespaced(client.clone(), namespace);
    let store = async |phase: &str| {
        let status = json!({ "status": { "phase": phase, "startTime": "2026-01-01T00:00:00Z" } });
        wfes.patch_status(&name, &patch, &Patch::Merge(status))
            .await
            .map(drop)
    };
    let leases: Api<Lease> = Api::namespaced(client.clone(), execution);
    let lease = |holder: Option<&str>| -> Result<Lease> {
        let spec = json!({ "holderIdentity": holder, "leaseTransitions": 1 });
        Ok(serde_json::from_value(
            json!({ "metadata": { "name": name }, "spec": spec }),
        )?)
    };
    leases.create(&post, &lease(Some("floor"))?).await?;
    let jobs: Api<Job> = Api::namespaced(client.clone(), execution);
    let job: Job = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "suspend": true, "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "workflow", "image": "r.io/floor" }],
        } } },
    }))?;
    jobs.create(&post, &job).await?;
    store("Running").await?;
    let start = json!({ "spec": { "suspend": false } });
    jobs.patch(&name, &patch, &Patch::Merge(start)).await?;
    let events: Api<Event> = Api::namespaced(client, namespace);
    for reason in ["ExecutionCreated", "ExecutionSucceeded"] {
        let event: Event = serde_json::from_value(json!({
            "metadata": { "name": format!("{name}.{}", reason.to_lowercase()) }, "reason": reason,
            "action": "Reconcile", "type": "Normal", "note": reason, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "floor", "reportingInstance": "floor",
            "regarding": { "kind": "WorkflowExecution", "name": name, "namespace": namespace },
        }))?;
        events.create(&post, &event).await?;
    }
    store("Running").await?;
    leases
        .patch(
            &name,
            &patch,
            &Patch::Merge(json!({ "spec": { "holderIdentity": null } })),
        )
        .await?;
    Ok(())
}
