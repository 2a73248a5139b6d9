//! BR-WE-001: the webhook denies invalid requests. Without the webhook, the controller fails them
//! with the same message, and nothing runs.

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use wfe_model::workflow_execution::{FailureReason, Phase};
use wfe_tests::system::{Script, System, condition, dry_run};

use crate::schema_cases::HEX;
use crate::schema_verdicts::{object, untyped};
use crate::setup::{SECONDS_30, cluster};

/// An invalid spec, the invalid field, and text of the denial.
struct Case {
    spec: serde_json::Value,
    field: &'static str,
    says: &'static str,
    /// Type and `status/reason` of the condition that the controller sets; none if the schema
    /// rejects the spec.
    condition: Option<(&'static str, &'static str)>,
}

fn cases(plain: &Script, sealed: &Script, missing: &Script, empty: &Script) -> Vec<Case> {
    // Each case has its own target: a failure makes the next execution on the target back off.
    let spec = |workflow: &Script| {
        json!({
            "executionEngine": "job", "targetResource": format!("prod/Deployment/{}", workflow.id), "parameters": { "REPLICAS": "3" },
            "workflowRef": { "workflowId": workflow.id, "version": "1.0.0", "containerImage": workflow.image },
        })
    };
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut spec = spec(plain);
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        spec.pointer_mut(parent)
            .and_then(|it| it.as_object_mut())
            .expect("an object")
            .insert(key.to_owned(), value);
        spec
    };
    let of_sealed = |target: &str, parameters: serde_json::Value| {
        json!({
            "executionEngine": "job", "targetResource": target, "parameters": parameters,
            "workflowRef": { "workflowId": sealed.id, "version": "1.0.0", "containerImage": sealed.image },
        })
    };
    let case = |spec, field, says, condition| Case {
        spec,
        field,
        says,
        condition,
    };
    let image = "/workflowRef/containerImage";
    let tagged = plain.image.split('@').next().expect("a name").to_owned() + ":v1";
    let other = plain.image.split('@').next().expect("a name").to_owned() + "@sha256:" + HEX;
    let mut no_engine = spec(plain);
    no_engine
        .as_object_mut()
        .expect("an object")
        .remove("executionEngine");
    vec![
        case(
            no_engine,
            "spec.executionEngine",
            "required value: supported values are \"job\", \"tekton\"",
            None,
        ),
        case(
            changed("/executionEngine", json!("ansible")),
            "spec.executionEngine",
            "unsupported value \"ansible\": supported values are \"job\", \"tekton\"",
            None,
        ),
        case(
            changed(image, json!(tagged)),
            "spec.workflowRef.containerImage",
            "v1\": must be registry/repository[:tag]@sha256:<64 lower-case hex digits>",
            None,
        ),
        case(
            changed("/targetResource", json!("prod/deploy/web")),
            "spec.targetResource",
            "invalid value \"prod/deploy/web\": kind \"deploy\" not found in this cluster: use \"prod/Deployment/web\"",
            Some(("WorkflowResolved", "False/TargetInvalid")),
        ),
        case(
            changed("/targetResource", json!("prod/Deployments/web")),
            "spec.targetResource",
            "use \"prod/Deployment/web\"",
            Some(("WorkflowResolved", "False/TargetInvalid")),
        ),
        case(
            changed("/targetResource", json!("Deployment/web")),
            "spec.targetResource",
            "the kind is namespaced, so a namespace is required: use \"<namespace>/Deployment/web\"",
            Some(("WorkflowResolved", "False/TargetInvalid")),
        ),
        case(
            changed("/targetResource", json!("prod/Node/web")),
            "spec.targetResource",
            "the kind is cluster-scoped, so a namespace is forbidden: use \"Node/web\"",
            Some(("WorkflowResolved", "False/TargetInvalid")),
        ),
        case(
            changed("/targetResource", json!("prod/Gadget/web")),
            "spec.targetResource",
            "kind \"Gadget\" not found in this cluster: use a kind that kubectl api-resources lists",
            Some(("WorkflowResolved", "False/TargetInvalid")),
        ),
        case(
            changed("/targetResource", json!("prod/Binding/web")),
            "spec.targetResource",
            "a Binding cannot be read, only created",
            Some(("WorkflowResolved", "False/TargetInvalid")),
        ),
        case(
            of_sealed("prod/Service/sealed", json!({})),
            "spec.targetResource",
            "the workflow is only for Deployment.apps, StatefulSet",
            Some(("WorkflowResolved", "False/TargetInvalid")),
        ),
        case(
            of_sealed(
                "prod/Deployment/sealed-1",
                json!({ "TARGET_RESOURCE_NAMESPACE": "kube-system" }),
            ),
            "spec.parameters",
            "must be \"prod\", as in spec.targetResource: remove it, the controller sets it",
            None,
        ),
        case(
            of_sealed(
                "prod/Deployment/sealed-2",
                json!({ "TARGET_RESOURCE_API_VERSION": "v1" }),
            ),
            "spec.parameters[TARGET_RESOURCE_API_VERSION]",
            "invalid value \"v1\": must be \"apps/v1\", as in spec.targetResource",
            Some(("WorkflowResolved", "False/ParametersInvalid")),
        ),
        case(
            of_sealed(
                "prod/Deployment/sealed-3",
                json!({ "TARGET_RESOURCE_KIND": "deployment" }),
            ),
            "spec.parameters[TARGET_RESOURCE_KIND]",
            "invalid value \"deployment\": must be \"Deployment\", as in spec.targetResource",
            Some(("WorkflowResolved", "False/ParametersInvalid")),
        ),
        case(
            changed(
                "/remediationRequestRef",
                json!({ "name": "rr-1", "namespace": "kube-system" }),
            ),
            "spec.remediationRequestRef.namespace",
            "invalid value \"kube-system\": must be ",
            None,
        ),
        case(
            changed("/parameters/EXTRA", json!("x")),
            "spec.parameters[EXTRA]",
            "unknown parameter: remove it, or use a parameter that the workflow declares: REPLICAS",
            Some(("WorkflowResolved", "False/ParametersInvalid")),
        ),
        case(
            changed("/parameters/REPLICAS", json!("abc")),
            "spec.parameters[REPLICAS]",
            "invalid value \"abc\": must be of type integer: use a whole number",
            Some(("WorkflowResolved", "False/ParametersInvalid")),
        ),
        case(
            changed("/workflowRef/workflowId", json!("unknown")),
            "spec.workflowRef.workflowId",
            "workflow \"unknown\" not found in the catalog: use the id of a registered workflow",
            Some(("WorkflowResolved", "False/WorkflowNotFound")),
        ),
        case(
            changed(image, json!(other)),
            "spec.workflowRef.containerImage",
            "repository and digest must be those in the catalog: use ",
            Some(("WorkflowResolved", "False/ImageMismatch")),
        ),
        case(
            spec(missing),
            "spec.workflowRef.workflowId",
            "required Secret \"absent\" not found in namespace",
            Some(("DependenciesReady", "False/DependencyMissing")),
        ),
        case(
            spec(empty),
            "spec.workflowRef.workflowId",
            "required Secret \"hollow\" in namespace",
            Some(("DependenciesReady", "False/DependencyEmpty")),
        ),
    ]
}

/// BR-WE-001: the webhook denies the request; without the webhook the controller fails it.
#[tokio::test]
async fn invalid_request_is_denied_or_fails_with_the_same_message() {
    let cluster = cluster().await;
    let parameters = "parameters:\n- {name: REPLICAS, type: integer}\n";
    let workflow = |id, secret: &str| {
        let dependencies = if secret.is_empty() {
            String::new()
        } else {
            format!("dependencies: {{secrets: [{{name: {secret}}}]}}\n")
        };
        Script::of(
            id,
            format!("r.io/{id}@sha256:{}", "1".repeat(64)),
            &format!("{dependencies}{parameters}"),
        )
    };
    let (plain, missing, empty) = (
        workflow("plain", ""),
        workflow("missing", "absent"),
        workflow("empty", "hollow"),
    );
    let sealed = Script::of(
        "sealed",
        format!("r.io/sealed@sha256:{}", "1".repeat(64)),
        "",
    );
    let sealed = Script {
        yaml: sealed.yaml.replace(
            "execution: {",
            "execution: {targetKinds: [Deployment.apps, StatefulSet], ",
        ) + "parameters:\n- {name: TARGET_RESOURCE_API_VERSION, type: string}\n- {name: TARGET_RESOURCE_KIND, type: string, required: true}\n- {name: TARGET_RESOURCE_NAMESPACE, type: string, required: true}\n",
        ..sealed
    };
    let mut system = System::start(&cluster, "denied", &[&plain, &sealed, &missing, &empty])
        .await
        .expect("started");
    let hollow: Secret =
        serde_json::from_value(json!({ "metadata": { "name": "hollow" } })).expect("a Secret");
    system
        .execution
        .api()
        .create(&PostParams::default(), &hollow)
        .await
        .expect("created");
    let raw = untyped(cluster.admin(), system.namespace.name());

    let mut refusals = Vec::new();
    for case in cases(&plain, &sealed, &missing, &empty) {
        let refused = raw
            .create(&PostParams::default(), &object(&case.spec))
            .await
            .expect_err(case.says)
            .to_string();
        assert!(
            refused.contains(case.field) && refused.contains(case.says),
            "{refused}"
        );
        assert!(refused.contains("admission webhook"), "{refused}");
        refusals.push(refused);
    }

    system.remove_webhook().await.expect("webhook removed");
    for (case, refusal) in cases(&plain, &sealed, &missing, &empty)
        .into_iter()
        .zip(refusals)
    {
        let stored = raw
            .create(&PostParams::default(), &object(&case.spec))
            .await;
        let Some((kind, expected)) = case.condition else {
            let refused = stored.expect_err("schema rejection").to_string();
            assert!(refused.contains(case.field), "{refused}");
            continue;
        };
        let name = stored
            .expect("accepted by the schema")
            .metadata
            .name
            .expect("a name");
        let wfe = system.ended(&name).await.expect("ended");
        let status = wfe.status.as_ref().expect("a status");
        let details = status.failure_details.as_ref().expect("details");
        assert_eq!(
            (status.phase, details.reason),
            (Some(Phase::Failed), FailureReason::ConfigurationError)
        );
        assert!(
            refusal.contains(&details.message),
            "webhook and controller report different messages: {refusal} / {}",
            details.message
        );
        assert!(!details.was_execution_failure);
        assert_eq!(condition(&wfe, kind), expected);
    }
    assert_eq!(system.jobs().await.expect("listed").len(), 0);
}

/// BR-WE-001: also after the label is removed from a ServiceAccount that had it.
#[tokio::test]
async fn service_account_without_runner_label_is_denied() {
    let cluster = cluster().await;
    let plain = Script::of("plain", format!("r.io/plain@sha256:{}", "1".repeat(64)), "");
    let mut system = System::install(&cluster, "accounts", &[&plain])
        .await
        .expect("installed");
    system.start_webhook().await.expect("started");
    let accounts = system.execution.api::<ServiceAccount>();
    for (name, labels) in [
        ("stranger", json!({})),
        ("runner", json!({ "kubernaut.ai/workflow-runner": "true" })),
    ] {
        let account = json!({ "metadata": { "name": name, "labels": labels } });
        let account = serde_json::from_value(account).expect("an account");
        accounts
            .create(&PostParams::default(), &account)
            .await
            .expect("created");
    }
    let raw = untyped(cluster.admin(), system.namespace.name());
    let create = async |account: &str| {
        let spec = json!({ "executionConfig": { "serviceAccountName": account } });
        let spec = json!(plain.request("one", &spec).spec);
        let created = raw.create(&dry_run(), &object(&spec)).await;
        created.map(drop).map_err(|error| error.to_string())
    };
    for (account, place, says) in [
        (
            "absent",
            "not found in namespace",
            ": create it with the label",
        ),
        ("stranger", "in namespace", " must have the label"),
    ] {
        let text = create(account).await.expect_err(says);
        let says = format!(
            "spec.executionConfig.serviceAccountName: ServiceAccount \"{account}\" {place} {}{says}",
            system.execution.name()
        );
        assert!(text.contains(&says), "{text}");
    }
    create("runner").await.expect("allowed");
    let patch = json!({ "metadata": { "labels": { "kubernaut.ai/workflow-runner": null } } });
    accounts
        .patch("runner", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .expect("patched");
    let refused = async { while create("runner").await.is_ok() {} };
    let refused = tokio::time::timeout(SECONDS_30, refused).await;
    refused.expect("denied without the label");
}

/// BR-WE-014
#[tokio::test]
async fn missing_image_digest_is_filled_before_schema_validation() {
    let cluster = cluster().await;
    let plain = Script::of(
        "plain",
        format!("r.io/w/plain:v1@sha256:{}", "1".repeat(64)),
        "",
    );
    let mut system = System::install(&cluster, "fill", &[&plain])
        .await
        .expect("installed");
    system.webhook_flags = vec!["--image-digest=fill".to_owned()];
    system.start_webhook().await.expect("started");
    let raw = untyped(cluster.admin(), system.namespace.name());
    let create = async |image: &str| {
        let mut spec = json!(plain.request("one", &json!({})).spec);
        spec["workflowRef"]["containerImage"] = json!(image);
        let created = raw.create(&PostParams::default(), &object(&spec)).await;
        created.map_err(|error| error.to_string())
    };
    let stored = create("r.io/w/plain:v1").await.expect("completed");
    assert_eq!(
        stored.data["spec"]["workflowRef"]["containerImage"],
        plain.image
    );
    let text = create("r.io/w/other:v1").await.expect_err("another");
    assert!(
        text.contains(
            "\"r.io/w/other:v1\": repository and digest must be those in the catalog: use"
        ),
        "{text}"
    );
    let text = create("plain").await.expect_err("no reference");
    assert!(
        text.contains("must be registry/repository[:tag]@sha256:"),
        "{text}"
    );
}
