//! BR-WE-001: the CRD schema rejects invalid specs without a webhook, and so do the rules.

use futures::{StreamExt, stream};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};
use wfe_model::rules;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::TestNamespace;

use crate::schema_cases::{Spec, invalid, job, valid};
use crate::setup::cluster;

/// An API without typed spec, which sends JSON unchanged.
pub fn untyped(client: Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(
        client,
        namespace,
        &ApiResource::erase::<WorkflowExecution>(&()),
    )
}

/// A WorkflowExecution with `spec`, named by the API server.
pub fn object(spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "kubernaut.ai/v1alpha1",
        "kind": "WorkflowExecution",
        "metadata": { "generateName": "case-" },
        "spec": spec,
    }))
    .expect("an object")
}

/// Creates an object; the error is the API server's message.
async fn create(api: &Api<DynamicObject>, Spec(spec): &Spec) -> Result<DynamicObject, String> {
    api.create(&PostParams::default(), &object(spec))
        .await
        .map_err(|error| error.to_string())
}

/// The messages of all rules that a spec violates.
pub fn verdict_of_rules(Spec(spec): &Spec) -> Result<(), Vec<String>> {
    let read = rules::read(spec).map_err(|violation| vec![violation.sentence()])?;
    let checked = rules::check(&read);
    checked
        .map(drop)
        .map_err(|violations| violations.iter().map(rules::Violation::sentence).collect())
}

/// BR-WE-001
#[tokio::test]
async fn invalid_spec_is_rejected_by_schema_and_rules_naming_the_field() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("invalid").await.expect("a namespace");
    let api = untyped(cluster.admin(), namespace.name());
    let cases = invalid();
    assert!(cases.len() >= 60, "{}", cases.len());
    let wrong: Vec<_> = stream::iter(cases)
        .map(|case| {
            let api = &api;
            async move {
                let mut wrong = Vec::new();
                match create(api, &case.spec).await {
                    Ok(_) => wrong.push(format!("{}: accepted by the API server", case.what)),
                    Err(text) if !text.contains(case.field) || !text.contains(case.says) => {
                        wrong.push(format!(
                            "{}: {text:?} should name {} and say {:?}",
                            case.what, case.field, case.says
                        ));
                    }
                    Err(_) => {}
                }
                match verdict_of_rules(&case.spec) {
                    Ok(()) => wrong.push(format!("{}: accepted by the rules", case.what)),
                    Err(text) if !text.iter().any(|it| it.starts_with(case.field)) => {
                        wrong.push(format!(
                            "{}: the rules say {text:?} and should name {}",
                            case.what, case.field
                        ));
                    }
                    Err(_) => {}
                }
                wrong
            }
        })
        .buffer_unordered(8)
        .concat()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// BR-WE-001
#[tokio::test]
async fn valid_spec_is_accepted_by_schema_and_rules() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("valid").await.expect("a namespace");
    let api = untyped(cluster.admin(), namespace.name());
    let cases = valid();
    assert!(cases.len() >= 25, "{}", cases.len());
    for (what, spec) in cases {
        let stored = create(&api, &spec)
            .await
            .unwrap_or_else(|text| panic!("{what}: {text}"));
        let typed: WorkflowExecution = stored
            .try_parse()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let checked = rules::check(&typed.spec);
        assert!(checked.is_ok(), "{what}: {checked:?}");
        assert_eq!(verdict_of_rules(&spec), Ok(()), "{what}");
    }
}

/// BR-WE-001
#[tokio::test]
async fn several_violations_are_reported_together() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("several").await.expect("a namespace");
    let api = untyped(cluster.admin(), namespace.name());
    let spec = job()
        .with("targetResource", "web")
        .with("executionConfig.timeout", "soon")
        .parameter("A-B", "x");
    let text = create(&api, &spec)
        .await
        .expect_err("three things are wrong");
    for field in [
        "spec.targetResource",
        "spec.executionConfig.timeout",
        "spec.parameters",
    ] {
        assert!(text.contains(field), "{text}");
    }
    assert_eq!(
        verdict_of_rules(&spec).expect_err("the same three").len(),
        3
    );
}

async fn stored(namespace: &TestNamespace) -> (Api<WorkflowExecution>, WorkflowExecution) {
    let api = namespace.api::<WorkflowExecution>();
    let spec = job()
        .parameter("A", "1")
        .with("executionConfig.timeout", "5m")
        .with("confidence", 0.5);
    let object: WorkflowExecution = object(&spec.0).try_parse().expect("typed");
    let created = api
        .create(&PostParams::default(), &object)
        .await
        .expect("created");
    (api, created)
}

/// BR-WE-001
#[tokio::test]
async fn stored_spec_is_immutable() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("immutable").await.expect("a namespace");
    let (api, created) = stored(&namespace).await;
    let name = created.metadata.name.as_deref().expect("a name");
    let changes = [
        json!({ "executionEngine": "tekton", "workflowRef": { "containerImage": null, "bundleRef": "oci://r.io/b" } }),
        json!({ "workflowRef": { "version": "1.0.1" } }),
        json!({ "workflowRef": { "name": "added" } }),
        json!({ "targetResource": "prod/Deployment/other" }),
        json!({ "parameters": { "A": "2" } }),
        json!({ "parameters": { "B": "added" } }),
        json!({ "parameters": null }),
        json!({ "executionConfig": { "timeout": "6m" } }),
        json!({ "executionConfig": null }),
        json!({ "confidence": null }),
        json!({ "rationale": "added" }),
        json!({ "remediationRequestRef": { "name": "added" } }),
    ];
    for change in changes {
        let patch = Patch::Merge(json!({ "spec": change }));
        let text = api
            .patch(name, &PatchParams::default(), &patch)
            .await
            .expect_err("immutable")
            .to_string();
        assert!(
            text.contains(
                "spec is immutable: delete this WorkflowExecution and create a new one instead"
            ),
            "{change}: {text}"
        );
    }
    let dropped = api
        .patch(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({ "spec": null })),
        )
        .await;
    let text = dropped.expect_err("spec is required").to_string();
    assert!(text.contains("spec: Required value"), "{text}");
    let labelled = api
        .patch(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } })),
        )
        .await;
    assert_eq!(labelled.expect("metadata is mutable").spec, created.spec);
}

/// BR-WE-003
#[tokio::test]
async fn final_phase_is_immutable() {
    let cluster = cluster().await;
    let namespace = cluster.namespace("phases").await.expect("a namespace");
    for last in ["Succeeded", "Failed", "Skipped"] {
        let (api, created) = stored(&namespace).await;
        let name = created.metadata.name.as_deref().expect("a name");
        let set = async |status: Value| {
            let patch = Patch::Merge(json!({ "status": status }));
            api.patch_status(name, &PatchParams::default(), &patch)
                .await
                .map_err(|error| error.to_string())
        };
        for phase in ["Pending", "Running", "Pending", last] {
            set(json!({ "phase": phase })).await.expect("not final yet");
        }
        for status in [
            json!({ "phase": "Pending" }),
            json!({ "phase": "Running" }),
            json!({ "phase": null }),
            Value::Null,
        ] {
            let text = set(status.clone()).await.expect_err("final");
            assert!(
                text.contains("status.phase")
                    && text.contains("a final phase (Succeeded, Failed, Skipped) never changes"),
                "{status}: {text}"
            );
        }
        set(json!({ "phase": last, "duration": "2m30s" }))
            .await
            .expect("other status fields are mutable");
        let text = set(json!({ "phase": "Completed" }))
            .await
            .expect_err("unknown phase");
        assert!(text.contains("supported values"), "{text}");
    }
}
