//! RemediationWorkflow objects: what is refused, and what `kubectl get` shows.

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use wfe_model::workflow::RemediationWorkflow;
use wfe_tests::system::{CatalogSource, Script, System, condition};

use crate::setup::{cluster, kubectl};

/// BR-WE-014: a bad workflow is refused when it is applied, with every problem and its path.
#[tokio::test]
async fn bad_workflow_is_refused_with_every_path_and_good_one_is_shown() {
    let cluster = cluster().await;
    let installed = System::install_with_catalog(&cluster, "objects", CatalogSource::Objects).await;
    let mut system = installed.expect("installed");
    system.start_webhook().await.expect("started");
    let directory = tempfile::tempdir().expect("a directory");
    let namespace = system.programs.name();
    let apply = async |object: &Value| {
        let file = directory.path().join("workflow.yaml");
        std::fs::write(&file, object.to_string()).expect("written");
        kubectl(&["-n", namespace, "apply", "-f", &file.to_string_lossy()]).await
    };
    let workflow = Script::of(
        "restart",
        format!("r.io/w@sha256:{}", "0".repeat(64)),
        "actionType: Restart\n",
    );
    let mut object = workflow.object("1.0.0");
    let good = object.clone();
    object["spec"]["execution"] = json!({ "engine": "ansible", "bundle": "r.io/w:v1" });
    object["spec"]["parameters"] = json!([{ "name": "A", "type": "integer", "pattern": "x" }]);
    let (applied, text) = apply(&object).await;
    assert!(!applied, "{text}");
    for says in [
        "The RemediationWorkflow \"restart\" is invalid",
        "spec.execution.engine: unsupported value \"ansible\": supported values are \"job\", \"tekton\"",
        "spec.execution.bundle: invalid value \"r.io/w:v1\": must be",
        "spec.parameters[0].pattern: must not be set for type integer",
    ] {
        assert!(text.contains(says), "{text}");
    }
    let (applied, text) = apply(&good).await;
    assert!(applied, "{text}");
    let mut changed = good.clone();
    changed["spec"]["actionType"] = json!("Scale");
    let (applied, text) = apply(&changed).await;
    let says =
        "spec.version: the spec was changed, but the version is still \"1.0.0\": change it, too";
    assert!(!applied && text.contains(says), "{text}");
    changed["spec"]["version"] = json!("1.1.0");
    let (applied, text) = apply(&changed).await;
    assert!(applied, "{text}");

    system
        .set_workflow_status("restart", "deprecated")
        .await
        .expect("deprecated");
    let (_, table) = kubectl(&["-n", namespace, "get", "rw"]).await;
    let mut lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        lines.next().expect("a head"),
        ["NAME", "ENGINE", "VERSION", "ACTION", "STATUS", "AGE"]
    );
    let row = lines.next().expect("a row");
    assert_eq!(row[..5], ["restart", "job", "1.1.0", "Scale", "Deprecated"]);
}

/// BR-WE-014: an entry that was stored without a review is not run, and its request says why.
#[tokio::test]
async fn entry_stored_without_review_is_not_run_and_is_named() {
    let cluster = cluster().await;
    let workflow = Script::of("ansible", format!("r.io/w@sha256:{}", "0".repeat(64)), "");
    let installed = System::install_with_catalog(&cluster, "objects", CatalogSource::Objects).await;
    let mut system = installed.expect("installed");
    let mut object = workflow.object("1.0.0");
    object["spec"]["execution"]["engine"] = json!("ansible");
    let object: RemediationWorkflow = serde_json::from_value(object).expect("an object");
    let apply = PatchParams::apply("tests");
    let api = system.catalog_api();
    let stored = api
        .patch(&object.name_any(), &apply, &Patch::Apply(&object))
        .await;
    stored.expect("stored");
    system.start_controller().await.expect("started");
    system
        .create(&workflow, "refused", &json!({}))
        .await
        .expect("created");
    let ended = system.ended("refused").await.expect("ended");
    assert_eq!(
        condition(&ended, "WorkflowResolved"),
        "False/WorkflowInvalid"
    );
    let says = "execution.engine: unsupported value \"ansible\"";
    let message = wfe_tests::system::message(&ended, "WorkflowResolved");
    assert!(message.contains(says), "{message}");
    let metrics = system.controller_metrics().await.expect("metrics");
    assert!(metrics.contains("catalog_rejected_entries 1"), "{metrics}");
    assert!(system.jobs().await.expect("listed").is_empty());
}
