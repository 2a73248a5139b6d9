//! BR-WE-001: the same cases as the schema's, with the webhook in front: each wrong one is refused
//! in the rules' own words, all of them, and no right one is.

use std::fmt::Write as _;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};
use wfe_model::target::Target;
use wfe_tests::system::{Script, System, dry_run};

use crate::schema_cases::{HEX, Spec, invalid, valid};
use crate::schema_verdicts::{object, untyped, verdict_of_rules};
use crate::setup::cluster;

/// Kinds that every cluster serves.
const SERVED: [&str; 6] = [
    "deployment",
    "statefulset",
    "daemonset",
    "pod",
    "node",
    "namespace",
];

/// Nothing is stored: the answer is the same.
async fn ask(api: &Api<DynamicObject>, spec: &Value) -> Result<DynamicObject, String> {
    let created = api.create(&dry_run(), &object(spec)).await;
    created.map_err(|error| error.to_string())
}

/// A catalog entry that a right spec fits: its key is made unique, unless the case is about it.
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
        image,
        yaml: yaml.to_string(),
    }
}

#[tokio::test]
async fn br_we_001_each_invalid_one_is_refused_by_the_webhook_in_the_rules_words() {
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
                match ask(api, &case.spec.0).await {
                    Ok(_) => vec![format!("{}: accepted", case.what)],
                    Err(said) => {
                        let sentences = sentences.iter().map(String::as_str);
                        let expected = sentences.chain([case.field, "admission webhook"]);
                        expected
                            .filter(|it| !said.contains(it))
                            .map(|it| format!("{}: {said:?} should say {it:?}", case.what))
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

#[tokio::test]
async fn br_we_001_no_valid_one_is_refused_by_the_webhook() {
    let cluster = cluster().await;
    let kind = |Spec(spec): &Spec| {
        let target = spec["targetResource"].as_str().and_then(Target::parse);
        target.expect("a target").kind().to_lowercase()
    };
    // Whether its engine is installed is another test's.
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
                let stored = match ask(api, &spec.0).await {
                    Ok(stored) => stored,
                    Err(said) => return Some(format!("{what}: {said}")),
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
