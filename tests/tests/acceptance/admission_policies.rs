//! What depends on who asks, held by the API server itself.

use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
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

async fn change(api: &Api<WorkflowExecution>, name: &str, metadata: &Value) -> Result<(), String> {
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    let patched = api.patch(name, &PatchParams::default(), &patch).await;
    patched.map(drop).map_err(|error| error.to_string())
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
        .let_everywhere(&name, "create")
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
    let annotate = async |key: &str, value: Value| {
        change(&api, "one", &json!({ "annotations": { key: value } })).await
    };
    let abandon = "kubernaut.ai/abandon-audit";
    let says = "takes the right to abandon-audit workflowexecutions";
    annotate("kubernaut.ai/cancel", json!("wrong target"))
        .await
        .expect("everybody may");
    for value in ["the sink is gone", ""] {
        let said = annotate(abandon, json!(value)).await.expect_err("refused");
        assert!(said.contains(says), "{said}");
    }
    let mut created = api.get("one").await.expect("there");
    created.metadata = ObjectMeta {
        generate_name: Some("two-".to_owned()),
        annotations: Some([(abandon.to_owned(), "from the start".to_owned())].into()),
        ..ObjectMeta::default()
    };
    let said = api
        .create(&PostParams::default(), &created)
        .await
        .expect_err("refused")
        .to_string();
    assert!(said.contains(says), "{said}");
    let admin = system.namespace.api::<WorkflowExecution>();
    let by_admin = json!({ "annotations": { abandon: "by an administrator" } });
    change(&admin, "one", &by_admin)
        .await
        .expect("who may do all may");
    let said = annotate(abandon, Value::Null).await.expect_err("refused");
    assert!(said.contains(says), "{said}");
    annotate("kubernaut.ai/other", json!("x"))
        .await
        .expect("the rest is free");
    system
        .let_everywhere(&name, "abandon-audit")
        .await
        .expect("allowed");
    annotate(abandon, json!("the sink is gone"))
        .await
        .expect("she may");
}

#[tokio::test]
async fn br_we_009_the_finalizer_is_the_controllers_to_take_off() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "finalizer", &[])
        .await
        .expect("installed");
    let here = system.namespace.name();
    let name = format!("max-{here}");
    let max = system.operator(&name, here).await.expect("max");
    let controller = cluster
        .service_account(system.execution.name(), "wfe-controller")
        .await;
    let controller = controller.expect("the controller");
    for one in ["one", "two", "three"] {
        create(&system, &max, one, &format!("{here}/Pod/a"))
            .await
            .expect("created");
    }
    let set = async |client: &Client, one: &str, finalizers: Value| {
        let api: Api<WorkflowExecution> = Api::namespaced(client.clone(), here);
        change(&api, one, &json!({ "finalizers": finalizers })).await
    };
    let ours = "kubernaut.ai/workflow-execution";
    for one in ["one", "two", "three"] {
        set(&max, one, json!([ours, "example.com/other"]))
            .await
            .expect("to add it is free");
    }
    for less in [Value::Null, json!([]), json!(["example.com/other"])] {
        let said = set(&max, "one", less).await.expect_err("refused");
        assert!(said.contains("is the controller's to take off"), "{said}");
    }
    set(&max, "one", json!([ours]))
        .await
        .expect("the other one is not ours");
    set(&controller, "one", Value::Null)
        .await
        .expect("the controller");
    set(&cluster.admin(), "two", Value::Null)
        .await
        .expect("who may do all");
    system
        .let_everywhere(&name, "release")
        .await
        .expect("allowed");
    set(&max, "three", Value::Null)
        .await
        .expect("who may release");
}

#[tokio::test]
async fn br_we_003_nobody_but_the_controller_writes_a_status_in_whatever_way() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "status", &[])
        .await
        .expect("installed");
    let here = system.namespace.name();
    let kim = system
        .operator(&format!("kim-{here}"), here)
        .await
        .expect("kim");
    create(&system, &kim, "one", &format!("{here}/Pod/a"))
        .await
        .expect("created");
    let api: Api<WorkflowExecution> = Api::namespaced(kim.clone(), here);
    let mut wfe = api.get("one").await.expect("there");
    let status = json!({ "phase": "Failed" });
    let path = "/status";
    let operations = json!([{ "op": "add", "path": path, "value": status }]);
    let operations = serde_json::from_value(operations).expect("a patch");
    let whole = json!({ "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution", "status": status });
    let (merge, apply) = (PatchParams::default(), PatchParams::apply("kim").force());
    let patches: [(_, Patch<Value>); 3] = [
        (&merge, Patch::Merge(json!({ "status": status }))),
        (&merge, Patch::Json(operations)),
        (&apply, Patch::Apply(whole)),
    ];
    let mut answers = Vec::new();
    for (parameters, patch) in &patches {
        answers.push(api.patch_status("one", parameters, patch).await);
    }
    wfe.status = serde_json::from_value(status).expect("a status");
    answers.push(
        api.replace_status("one", &PostParams::default(), &wfe)
            .await,
    );
    for answer in answers {
        let said = answer.expect_err("refused").to_string();
        assert!(
            said.contains("only the controller writes the status"),
            "{said}"
        );
    }
}
