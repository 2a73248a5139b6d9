//! BR-WE-001: the same story with each of the three catalogs.

use k8s_openapi::api::batch::v1::Job;
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
/// disabled while another request waits, and deleted while one waits. Its longest time holds.
#[rstest]
#[case(CatalogSource::Directory)]
#[case(CatalogSource::Objects)]
#[case(CatalogSource::DataStorage)]
#[tokio::test]
async fn workflow_is_used_as_its_catalog_says(#[case] source: CatalogSource) {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "quick", "true", "actionType: Restart\n");
    let mut nap = Script::push(&cluster, "nap", "sleep 5", "");
    nap.yaml = nap
        .yaml
        .replace("engine: job", "engine: job, maxTimeout: 2m");
    let long = Script::push(&cluster, "long", "sleep 300", "");
    let gone = Script::push(&cluster, "gone", "true", "");
    let installed = System::install_with_catalog(&cluster, "catalog", source).await;
    let mut system = installed.expect("installed");
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");

    let id = system.register(&quick, "1.0.0").await.expect("registered");
    let used = request(&quick, &id, "used", "1.0.0", &json!({}));
    admitted(&system, &used).await;
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
    let hour = json!({ "executionConfig": { "timeout": "1h" } });
    let runs = request(&nap, &nap_id, "runs", "1.0.0", &hour);
    admitted(&system, &runs).await;
    let started = system.until("runs", "ExecutionRunning", "True/ExecutionStarted");
    let started = started.await.expect("running");
    let job = started
        .status
        .and_then(|it| it.execution_ref)
        .expect("a Job");
    let job = system
        .execution
        .api::<Job>()
        .get(&job.name)
        .await
        .expect("a Job");
    let deadline = job.spec.and_then(|it| it.active_deadline_seconds);
    assert_eq!(deadline, Some(120), "the workflow may not run longer");
    let again = request(&nap, &nap_id, "again", "1.0.0", &hour);
    let warnings = create_with(&system, &again, &dry_run())
        .await
        .expect("admitted");
    let says = "spec.executionConfig.timeout 1h is cut to 2m";
    assert!(warnings.iter().any(|it| it.contains(says)), "{warnings:?}");
    system.register(&nap, "2.0.0").await.expect("registered");
    if source != CatalogSource::DataStorage {
        // There each version is an entry of its own, and older ones stay active.
        let old = request(&nap, &nap_id, "old", "1.0.0", &json!({}));
        until_refused(&system, &old, "\"1.0.0\"").await;
    }
    let runs = system.ended("runs").await.expect("ended");
    assert_eq!(runs.status.expect("a status").phase, Some(Phase::Succeeded));

    // Two requests wait for a target, whose execution is cancelled at the end.
    let long_id = system.register(&long, "1.0.0").await.expect("registered");
    let gone_id = system.register(&gone, "1.0.0").await.expect("registered");
    let busy = json!({ "targetResource": "prod/Deployment/web" });
    let wait = json!({ "targetResource": "prod/Deployment/web", "executionConfig": { "whenBlocked": "Wait" } });
    admitted(
        &system,
        &request(&long, &long_id, "blocker", "1.0.0", &busy),
    )
    .await;
    let started = system.until("blocker", "ExecutionRunning", "True/ExecutionStarted");
    started.await.expect("running");
    for (workflow, id, name) in [
        (&quick, &id, "to-be-disabled"),
        (&gone, &gone_id, "to-be-deleted"),
    ] {
        admitted(&system, &request(workflow, id, name, "1.0.0", &wait)).await;
        let waiting = system.until(name, "Blocked", "True/ResourceBusy");
        waiting.await.expect("waiting");
    }
    let disabled = system.set_workflow_status(&id, "disabled").await;
    disabled.expect("disabled");
    system.unregister(&gone_id).await.expect("deleted");
    let refused = request(&quick, &id, "refused", "1.0.0", &json!({}));
    until_refused(&system, &refused, "is disabled in the catalog").await;
    let refused = request(&gone, &gone_id, "refused", "1.0.0", &json!({}));
    until_refused(&system, &refused, "not found in the catalog").await;
    system
        .cancel("blocker", "the others wait")
        .await
        .expect("cancelled");
    for (name, reason) in [
        ("to-be-disabled", "False/WorkflowNotActive"),
        ("to-be-deleted", "False/WorkflowNotFound"),
    ] {
        let waited = system.ended_within(name, SECONDS_30).await.expect("ended");
        assert_eq!(condition(&waited, "WorkflowResolved"), reason);
        assert_eq!(waited.status.expect("a status").phase, Some(Phase::Failed));
    }
}

/// Creates a WorkflowExecution as soon as the webhook has seen its workflow.
async fn admitted(system: &System, request: &WorkflowExecution) {
    let admitted = async || Ok(create(system, request).await.is_ok());
    let admitted = until_effective("the workflow", admitted).await;
    admitted.expect("admitted");
}
