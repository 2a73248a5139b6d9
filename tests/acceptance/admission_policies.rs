//! What depends on who asks, held by the API server itself.

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{Script, System};

use crate::setup::cluster;

async fn create(system: &System, client: &Client, name: &str, target: &str) -> Result<(), String> {
    let api: Api<WorkflowExecution> = Api::namespaced(client.clone(), system.namespace.name());
    let workflow = Script::of("any", format!("r.io/any@sha256:{}", "3".repeat(64)), "");
    let request = workflow.request(name, &json!({ "targetResource": target }));
    let created = api.create(&PostParams::default(), &request).await;
    created.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_target_elsewhere_takes_the_right_to_create_there() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "targets", &[])
        .await
        .expect("installed");
    let other = cluster.namespace("elsewhere").await.expect("a namespace");
    let (here, there) = (system.namespace.name(), other.name());
    let (name, target) = (format!("bob-{here}"), format!("{there}/Deployment/web"));
    let bob = system.operator(&name, here).await.expect("bob");

    let own = format!("{here}/Deployment/web");
    create(&system, &bob, "own", &own)
        .await
        .expect("his own namespace");
    let said = create(&system, &bob, "other", &target)
        .await
        .expect_err("refused");
    let says = format!(
        "spec.targetResource: {target} is not in namespace {here}: to name it, {name} must be allowed to create workflowexecutions in namespace {there}"
    );
    assert!(said.contains(&says), "{said}");
    let said = create(&system, &bob, "node", "Node/worker")
        .await
        .expect_err("refused");
    assert!(
        said.contains("must be allowed to create workflowexecutions in all namespaces"),
        "{said}"
    );

    system.operator(&name, there).await.expect("bob, there too");
    create(&system, &bob, "other", &target)
        .await
        .expect("he may create there");
    create(&system, &bob, "node", "Node/worker")
        .await
        .expect_err("in no namespace");
    system
        .let_everywhere(&bob, &name, "create")
        .await
        .expect("everywhere");
    create(&system, &bob, "node", "Node/worker")
        .await
        .expect("he may create everywhere");
}

#[tokio::test]
async fn br_we_005_giving_up_the_audit_trail_takes_a_right_of_its_own() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "abandon", &[])
        .await
        .expect("installed");
    let here = system.namespace.name();
    let name = format!("eve-{here}");
    let eve = system.operator(&name, here).await.expect("eve");
    create(&system, &eve, "one", &format!("{here}/Pod/a"))
        .await
        .expect("created");
    let api: Api<WorkflowExecution> = Api::namespaced(eve.clone(), here);
    let annotate = async |key: &str, value: &str| {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { key: value } } }));
        let patched = api.patch("one", &PatchParams::default(), &patch).await;
        patched.map(drop).map_err(|error| error.to_string())
    };
    let abandon = "kubernaut.ai/abandon-audit";
    annotate("kubernaut.ai/cancel", "wrong target")
        .await
        .expect("everybody may");
    let said = annotate(abandon, "the sink is gone")
        .await
        .expect_err("refused");
    assert!(
        said.contains("takes the right to abandon-audit workflowexecutions"),
        "{said}"
    );
    system
        .let_everywhere(&eve, &name, "abandon-audit")
        .await
        .expect("allowed");
    annotate(abandon, "the sink is gone")
        .await
        .expect("she may");
}
