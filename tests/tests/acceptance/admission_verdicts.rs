//! BR-WE-001: the schema cases with the webhook installed: it denies each invalid spec with the
//! messages of all rules the spec violates, and allows each valid spec.

use std::fmt::Write as _;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};
use wfe_model::engine::Engine;
use wfe_model::target::Target;
use wfe_tests::system::{Script, System, dry_run};

use crate::schema_cases::{HEX, Spec, invalid, valid};
use crate::schema_verdicts::{object, untyped, verdict_of_rules};
use crate::setup::cluster;

/// Target kinds that every cluster serves.
const SERVED: [&str; 6] = [
    "deployment",
    "statefulset",
    "daemonset",
    "pod",
    "node",
    "namespace",
];

/// Creates by dry run: admission is the same, and nothing is stored.
async fn try_create(api: &Api<DynamicObject>, spec: &Value) -> Result<DynamicObject, String> {
    let created = api.create(&dry_run(), &object(spec)).await;
    created.map_err(|error| error.to_string())
}

/// A catalog entry that matches a valid spec. The workflow id is made unique, unless the case tests
/// the workflow id.
fn workflow_for(number: usize, Spec(spec): &mut Spec) -> Script {
    if spec["workflowRef"]["workflowId"] == "restart-deployment" {
        spec["workflowRef"]["workflowId"] = json!(format!("case-{number}"));
    }
    let reference = &spec["workflowRef"];
    let image = reference["containerImage"].as_str();
    let bundle = reference["bundleRef"]
        .as_str()
        .and_then(|it| it.strip_prefix("oci://"));
    let mut image = image.or(bundle).expect("an image or a bundle").to_owned();
    if !image.contains('@') {
        write!(image, "@sha256:{HEX}").expect("text");
    }
    let (id, version) = (&reference["workflowId"], &reference["version"]);
    let parameters = spec["parameters"].as_object().into_iter().flatten();
    let parameters: Vec<_> = parameters
        .map(|(name, _)| json!({ "name": name, "type": "string" }))
        .collect();
    let yaml = json!({
        "metadata": { "workflowId": id, "version": version },
        "execution": { "engine": spec["executionEngine"], "bundle": image },
        "parameters": parameters,
    });
    Script {
        id: format!("case-{number}").leak(),
        engine: Engine::Job,
        image,
        yaml: yaml.to_string(),
    }
}

/// BR-WE-001
#[tokio::test]
async fn invalid_spec_is_denied_with_every_rule_violation() {
    let cluster = cluster().await;
    let mut system = System::install(&cluster, "refused", &[])
        .await
        .expect("installed");
    system.start_webhook().await.expect("started");
    let api = untyped(cluster.admin(), system.namespace.name());
    let cases = invalid();
    assert!(cases.len() >= 100, "{}", cases.len());
    let wrong: Vec<String> = stream::iter(cases)
        .map(|case| {
            let api = &api;
            async move {
                let sentences = verdict_of_rules(&case.spec).expect_err(case.what);
                match try_create(api, &case.spec.0).await {
                    Ok(_) => vec![format!("{}: accepted", case.what)],
                    Err(text) => {
                        let sentences = sentences.iter().map(String::as_str);
                        let expected = sentences.chain([case.field, "admission webhook"]);
                        expected
                            .filter(|it| !text.contains(it))
                            .map(|it| format!("{}: {text:?} should say {it:?}", case.what))
                            .collect()
                    }
                }
            }
        })
        .buffer_unordered(8)
        .concat()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// BR-WE-001
#[tokio::test]
async fn valid_spec_is_allowed_and_gets_finalizer() {
    let cluster = cluster().await;
    let kind = |Spec(spec): &Spec| {
        let target = spec["targetResource"].as_str().and_then(Target::parse);
        target.expect("a target").kind().to_lowercase()
    };
    // Other tests check for the tekton engine, which is not installed here.
    let cases = valid().into_iter().filter(|(_, spec)| {
        SERVED.contains(&kind(spec).as_str()) && spec.0["executionEngine"] == "job"
    });
    let mut cases: Vec<_> = cases.collect();
    assert!(cases.len() >= 40, "{}", cases.len());
    let workflows = cases.iter_mut().enumerate();
    let workflows: Vec<_> = workflows
        .map(|(number, (_, spec))| workflow_for(number, spec))
        .collect();
    let workflows: Vec<_> = workflows.iter().collect();
    let mut system = System::install(&cluster, "accepted", &workflows)
        .await
        .expect("installed");
    let runner: ServiceAccount = serde_json::from_value(json!({ "metadata": {
        "name": "team-a.runner", "labels": { "kubernaut.ai/workflow-runner": "true" },
    } }))
    .expect("an account");
    let accounts = system.execution.api();
    accounts
        .create(&PostParams::default(), &runner)
        .await
        .expect("created");
    system.start_webhook().await.expect("started");
    let api = untyped(cluster.admin(), system.namespace.name());
    let wrong: Vec<String> = stream::iter(cases)
        .map(|(what, spec)| {
            let api = &api;
            async move {
                let stored = match try_create(api, &spec.0).await {
                    Ok(stored) => stored,
                    Err(text) => return Some(format!("{what}: {text}")),
                };
                let finalizers = stored.metadata.finalizers.unwrap_or_default();
                let complete = finalizers == ["kubernaut.ai/workflow-execution"];
                (!complete).then(|| format!("{what}: has the finalizers {finalizers:?}"))
            }
        })
        .buffer_unordered(8)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
