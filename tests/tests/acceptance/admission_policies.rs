//! `ValidatingAdmissionPolicies`: rules that depend on the requesting user.

use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{Script, System, dry_run};

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
async fn target_in_other_namespace_requires_create_permission_there() {
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
        .expect("in his own namespace");
    let text = create(&system, &bob, "other", &target)
        .await
        .expect_err("refused");
    let says = format!(
        "spec.targetResource: {target} is not in namespace {here}: {name} must be allowed to create workflowexecutions in namespace {there}"
    );
    assert!(text.contains(&says), "{text}");
    let text = create(&system, &bob, "node", "Node/worker")
        .await
        .expect_err("refused");
    assert!(
        text.contains("must be allowed to create workflowexecutions in all namespaces"),
        "{text}"
    );

    system.operator(&name, there).await.expect("bob, there too");
    create(&system, &bob, "other", &target)
        .await
        .expect("allowed there");
    create(&system, &bob, "node", "Node/worker")
        .await
        .expect_err("cluster-scoped target");
    system
        .grant_cluster_wide(&name, "create")
        .await
        .expect("everywhere");
    create(&system, &bob, "node", "Node/worker")
        .await
        .expect("allowed everywhere");
}

/// A requester does not pick the account with the most permissions, also while no webhook runs.
#[tokio::test]
async fn service_account_requires_use_verb() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "strongest", &[])
        .await
        .expect("installed");
    let here = system.namespace.name();
    let name = format!("mallory-{here}");
    let mallory = system.operator(&name, here).await.expect("mallory");
    let api: Api<WorkflowExecution> = Api::namespaced(mallory, here);
    let workflow = Script::of("any", format!("r.io/any@sha256:{}", "3".repeat(64)), "");
    let create = async |account: &str| {
        let spec = json!({ "targetResource": format!("{here}/Pod/a"), "executionConfig": { "serviceAccountName": account } });
        let created = api
            .create(&dry_run(), &workflow.request("one", &spec))
            .await;
        created.map(drop).map_err(|error| error.to_string())
    };
    create("kubernaut-workflow-runner")
        .await
        .expect("the default account");
    let text = create("cluster-repair").await.expect_err("refused");
    let says = format!(
        "spec.executionConfig.serviceAccountName: {name} must be allowed the verb use on ServiceAccount cluster-repair in namespace {}",
        system.execution.name()
    );
    assert!(text.contains(&says), "{text}");
    system
        .grant_account(&name, "cluster-repair")
        .await
        .expect("allowed");
    create("cluster-repair").await.expect("has the verb use");
    create("another").await.expect_err("that account only");
}

/// BR-WE-005
#[tokio::test]
async fn abandon_audit_annotation_requires_abandon_audit_verb() {
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
    let says = "requires the verb abandon-audit on workflowexecutions";
    annotate("kubernaut.ai/cancel", json!("wrong target"))
        .await
        .expect("cancel needs no extra verb");
    for value in ["the sink is gone", ""] {
        let text = annotate(abandon, json!(value)).await.expect_err("refused");
        assert!(text.contains(says), "{text}");
    }
    let mut created = api.get("one").await.expect("found");
    created.metadata = ObjectMeta {
        generate_name: Some("two-".to_owned()),
        annotations: Some([(abandon.to_owned(), "from the start".to_owned())].into()),
        ..ObjectMeta::default()
    };
    let text = api
        .create(&PostParams::default(), &created)
        .await
        .expect_err("refused")
        .to_string();
    assert!(text.contains(says), "{text}");
    let admin = system.namespace.api::<WorkflowExecution>();
    let by_admin = json!({ "annotations": { abandon: "by an administrator" } });
    change(&admin, "one", &by_admin)
        .await
        .expect("cluster-admin has every verb");
    let text = annotate(abandon, Value::Null).await.expect_err("refused");
    assert!(text.contains(says), "{text}");
    annotate("kubernaut.ai/other", json!("x"))
        .await
        .expect("other annotations need no extra verb");
    system
        .grant_cluster_wide(&name, "abandon-audit")
        .await
        .expect("allowed");
    annotate(abandon, json!("the sink is gone"))
        .await
        .expect("has the abandon-audit verb");
}

/// BR-WE-009
#[tokio::test]
async fn finalizer_removal_requires_controller_or_release_verb() {
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
    let finalizer = "kubernaut.ai/workflow-execution";
    for one in ["one", "two", "three"] {
        set(&max, one, json!([finalizer, "example.com/other"]))
            .await
            .expect("users may add finalizers");
    }
    for less in [Value::Null, json!([]), json!(["example.com/other"])] {
        let text = set(&max, "one", less).await.expect_err("refused");
        assert!(
            text.contains("only the controller removes the finalizer"),
            "{text}"
        );
    }
    set(&max, "one", json!([finalizer]))
        .await
        .expect("other finalizers may be removed");
    set(&controller, "one", Value::Null)
        .await
        .expect("the controller may remove it");
    set(&cluster.admin(), "two", Value::Null)
        .await
        .expect("cluster-admin has every verb");
    system
        .grant_cluster_wide(&name, "release")
        .await
        .expect("allowed");
    set(&max, "three", Value::Null)
        .await
        .expect("has the release verb");
}

/// BR-WE-003
#[tokio::test]
async fn status_write_by_user_is_denied_for_every_patch_type() {
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
    let mut wfe = api.get("one").await.expect("found");
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
        let text = answer.expect_err("refused").to_string();
        assert!(
            text.contains("only the controller writes the status"),
            "{text}"
        );
    }
}
