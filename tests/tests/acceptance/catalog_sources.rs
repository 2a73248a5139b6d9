//! BR-WE-001: the same story with each of the three catalogs.

use kube::api::PostParams;
use kube::client::Body;
use kube::core::Request;
use rstest::rstest;
use serde_json::{Value, json};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::system::{CatalogSource, Script, System, condition, dry_run, until_effective};

use crate::setup::{SECONDS_30, cluster};

/// A request of `workflow` under its id in the catalog.
fn request(
    workflow: &Script,
    id: &str,
    name: &str,
    version: &str,
    more: &Value,
) -> WorkflowExecution {
    let mut request = workflow.request(name, more);
    id.clone_into(&mut request.spec.workflow_ref.workflow_id);
    version.clone_into(&mut request.spec.workflow_ref.version);
    request
}

/// Creates a WorkflowExecution; returns the warnings, or the message of the refusal.
async fn create(system: &System, request: &WorkflowExecution) -> Result<Vec<String>, String> {
    create_with(system, request, &PostParams::default()).await
}

/// As [`create`].
async fn create_with(
    system: &System,
    request: &WorkflowExecution,
    parameters: &PostParams,
) -> Result<Vec<String>, String> {
    let api = system.namespace.api::<WorkflowExecution>();
    let body = serde_json::to_vec(request).expect("JSON");
    let create = Request::new(api.resource_url());
    let create = create.create(parameters, body).expect("a request");
    let sent = system.cluster.admin().send(create.map(Body::from)).await;
    let response = sent.expect("a response");
    let headers = response.headers().get_all("warning").iter();
    let warnings = headers.map(|it| it.to_str().expect("text").to_owned());
    let (warnings, created) = (warnings.collect(), response.status().is_success());
    let body = response.into_body().collect_bytes().await.expect("a body");
    if created {
        return Ok(warnings);
    }
    let status: Value = serde_json::from_slice(&body).expect("JSON");
    Err(status["message"].as_str().unwrap_or_default().to_owned())
}

/// Repeats a dry run until its result is as expected: the webhook looks at its catalog again after
/// some seconds.
async fn until_refused(system: &System, request: &WorkflowExecution, says: &str) {
    let api = system.namespace.api::<WorkflowExecution>();
    let refused = async || {
        let created = api.create(&dry_run(), request).await;
        Ok(created.is_err_and(|error| error.to_string().contains(says)))
    };
    let effective = until_effective(says, refused).await;
    effective.expect("refused");
}

/// BR-WE-001, TR-6: a workflow is applied, used, deprecated, replaced by a new version while it runs,
/// disabled while another request waits, and deleted while one waits.
#[rstest]
#[case(CatalogSource::Directory)]
#[case(CatalogSource::Objects)]
#[case(CatalogSource::DataStorage)]
#[tokio::test]
async fn workflow_is_used_as_its_catalog_says(#[case] source: CatalogSource) {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "quick", "true", "actionType: Restart\n");
    let nap = Script::push(&cluster, "nap", "sleep 8", "actionType: Restart\n");
    let mut system = System::install(&cluster, "catalog", &[])
        .await
        .expect("installed");
    if source == CatalogSource::DataStorage {
        system.start_data_storage().await.expect("started");
    }
    system.use_catalog(source).await.expect("a catalog");
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");

    let id = system.register(&quick, "1.0.0").await.expect("registered");
    let used = request(&quick, &id, "used", "1.0.0", &json!({}));
    let admitted = async || Ok(create(&system, &used).await == Ok(Vec::new()));
    until_effective("the workflow", admitted)
        .await
        .expect("admitted");
    let ended = system.ended("used").await.expect("ended");
    assert_eq!(
        ended.status.expect("a status").phase,
        Some(Phase::Succeeded)
    );

    system
        .set_workflow_status(&id, "deprecated")
        .await
        .expect("deprecated");
    let late = request(&quick, &id, "deprecated", "1.0.0", &json!({}));
    let warned = async || {
        let created = create_with(&system, &late, &dry_run()).await;
        Ok(created.is_ok_and(|warnings| !warnings.is_empty()))
    };
    let what = "a warning about the deprecated workflow";
    until_effective(what, warned).await.expect("warned");
    let warnings = create(&system, &late).await.expect("admitted");
    assert!(
        warnings[0].contains("is deprecated: ask its maintainers"),
        "{warnings:?}"
    );
    let ended = system.ended("deprecated").await.expect("ended");
    assert_eq!(
        ended.status.expect("a status").phase,
        Some(Phase::Succeeded)
    );

    // A request that runs goes on with the version it was started with.
    let nap_id = system.register(&nap, "1.0.0").await.expect("registered");
    let busy = json!({ "targetResource": "prod/Deployment/web" });
    let wait = json!({ "targetResource": "prod/Deployment/web", "executionConfig": { "whenBlocked": "Wait" } });
    let runs = request(&nap, &nap_id, "runs", "1.0.0", &busy);
    let admitted = async || Ok(create(&system, &runs).await.is_ok());
    until_effective("the workflow", admitted)
        .await
        .expect("admitted");
    system
        .until("runs", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("running");
    create(
        &system,
        &request(&quick, &id, "to-be-disabled", "1.0.0", &wait),
    )
    .await
    .expect("admitted");
    system
        .until("to-be-disabled", "Blocked", "True/ResourceBusy")
        .await
        .expect("waiting");
    system.register(&nap, "2.0.0").await.expect("registered");
    if source != CatalogSource::DataStorage {
        // There each version is an entry of its own, and older ones stay active.
        let old = request(&nap, &nap_id, "old", "1.0.0", &json!({}));
        until_refused(&system, &old, "\"1.0.0\"").await;
    }
    system
        .set_workflow_status(&id, "disabled")
        .await
        .expect("disabled");
    let refused = request(&quick, &id, "refused", "1.0.0", &json!({}));
    until_refused(&system, &refused, "is disabled in the catalog").await;
    let runs = system.ended("runs").await.expect("ended");
    assert_eq!(runs.status.expect("a status").phase, Some(Phase::Succeeded));
    let waited = system.ended("to-be-disabled").await.expect("ended");
    assert_eq!(
        condition(&waited, "WorkflowResolved"),
        "False/WorkflowNotActive"
    );
    assert_eq!(waited.status.expect("a status").phase, Some(Phase::Failed));

    let third = Script::push(&cluster, "third", "sleep 8", "");
    let third_id = system.register(&third, "1.0.0").await.expect("registered");
    let runs = request(&third, &third_id, "runs-too", "1.0.0", &busy);
    let admitted = async || Ok(create(&system, &runs).await.is_ok());
    until_effective("the workflow", admitted)
        .await
        .expect("admitted");
    system
        .until("runs-too", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("running");
    system
        .set_workflow_status(&id, "active")
        .await
        .expect("active");
    let waits = request(&quick, &id, "to-be-deleted", "1.0.0", &wait);
    let admitted = async || Ok(create(&system, &waits).await.is_ok());
    until_effective("an active workflow", admitted)
        .await
        .expect("admitted");
    system
        .until("to-be-deleted", "Blocked", "True/ResourceBusy")
        .await
        .expect("waiting");
    system.unregister(&id).await.expect("deleted");
    let waited = system.ended("to-be-deleted").await.expect("ended");
    assert_eq!(
        condition(&waited, "WorkflowResolved"),
        "False/WorkflowNotFound"
    );
    let runs = system
        .ended_within("runs-too", SECONDS_30)
        .await
        .expect("ended");
    assert_eq!(runs.status.expect("a status").phase, Some(Phase::Succeeded));
    until_refused(&system, &refused, "not found in the catalog").await;

    if let Some(storage) = &system.data_storage {
        // The webhook's and the controller's, for each of the executions at most one.
        let (admitted, dry_runs) = (6, 60);
        assert!(
            storage.lookups() <= 2 * admitted + dry_runs,
            "{}",
            storage.lookups()
        );
    }
}
