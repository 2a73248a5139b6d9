//! `ValidatingAdmissionPolicies`: rules that depend on the requesting user.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{Script, System, dry_run};

use crate::setup::cluster;

/// A workflow that never runs.
fn any() -> Script {
    Script::of("any", format!("r.io/any@sha256:{}", "3".repeat(64)), "")
}

/// A system, and the name and client of a user with the operator Role in its namespace.
async fn with_user(prefix: &str, user: &str) -> (System, String, Client) {
    let cluster = cluster().await;
    let installed = System::install(&cluster, prefix, &[&any()]).await;
    let system = installed.expect("installed");
    let here = system.namespace.name();
    let name = format!("{user}-{here}");
    let client = system.operator(&name, here).await.expect(user);
    (system, name, client)
}

async fn create(system: &System, client: &Client, name: &str, target: &str) -> Result<(), String> {
    let api: Api<WorkflowExecution> = Api::namespaced(client.clone(), system.namespace.name());
    let request = any().request(name, &json!({ "targetResource": target }));
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
    let (system, name, mallory) = with_user("strongest", "mallory").await;
    let here = system.namespace.name();
    let api: Api<WorkflowExecution> = Api::namespaced(mallory, here);
    let workflow = any();
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

/// Padded to the limit of etcd, a run would have no status and hold its lock for good.
#[tokio::test]
async fn padded_metadata_is_refused_at_create_and_later() {
    let (system, _, mallory) = with_user("padded", "mallory").await;
    let here = system.namespace.name();
    create(&system, &mallory, "plain", &format!("{here}/Pod/a"))
        .await
        .expect("created");
    let api: Api<WorkflowExecution> = Api::namespaced(mallory, here);
    let workflow = any();
    let many = |count: usize, value: &str| {
        let entries = (0..count).map(|number| (format!("k{number}"), json!(value)));
        Value::Object(entries.collect())
    };
    let finalizers: Vec<_> = (0..17).map(|it| format!("example.com/{it}")).collect();
    for (metadata, says) in [
        (
            json!({ "labels": many(65, "x") }),
            "metadata.labels: must have at most 64",
        ),
        (
            json!({ "annotations": many(65, "x") }),
            "metadata.annotations: must have at most 64",
        ),
        (
            json!({ "annotations": many(1, &"x".repeat(16_385)) }),
            "at most 16384 characters",
        ),
        (
            json!({ "finalizers": finalizers }),
            "metadata.finalizers: must have at most 16",
        ),
    ] {
        let text = change(&api, "plain", &metadata).await.expect_err(says);
        assert!(text.contains(says), "{text}");
        let mut padded = workflow.request(
            "padded",
            &json!({ "targetResource": format!("{here}/Pod/b") }),
        );
        let mut object = json!(padded.metadata);
        json_merge(&mut object, &metadata);
        padded.metadata = serde_json::from_value(object).expect("metadata");
        let refused = api.create(&dry_run(), &padded).await;
        let text = refused.expect_err(says).to_string();
        assert!(text.contains(says), "{text}");
    }
    // An API server may refuse owners that the user may not delete: as an administrator.
    let admin = system.namespace.api::<WorkflowExecution>();
    let owner =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "x".repeat(254), "uid": "u" });
    let metadata = json!({ "ownerReferences": [owner] });
    let text = change(&admin, "plain", &metadata)
        .await
        .expect_err("refused");
    assert!(
        text.contains("metadata.ownerReferences: must have"),
        "{text}"
    );
    let applied = "kubectl.kubernetes.io/last-applied-configuration";
    let allowed =
        json!({ "annotations": { applied: "x".repeat(200_000) }, "labels": many(64, "x") });
    change(&api, "plain", &allowed)
        .await
        .expect("within the bounds");
}

fn json_merge(object: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
}

/// Somebody with the role edit in the execution namespace forges neither a lock, nor its record, nor an
/// execution.
#[tokio::test]
async fn lock_and_execution_labels_belong_to_the_controller() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "forged", &[])
        .await
        .expect("installed");
    let execution = system.execution.name();
    let editor = system.editor(&format!("eve-{execution}")).await;
    let editor = editor.expect("an editor");
    let controller = system.controller_client().await.expect("the controller");
    let lock = json!({ "metadata": { "name": "wfe-target-0123", "annotations": { "kubernaut.ai/last-execution": "{}" } } });
    let lock: Lease = serde_json::from_value(lock).expect("a Lease");
    let by = |client: &Client| Api::<Lease>::namespaced(client.clone(), execution);
    let create = PostParams::default();
    let says = "only the controller writes the lock of a target";
    let refused = by(&editor).create(&create, &lock).await;
    let text = refused.expect_err("a forged lock").to_string();
    assert!(text.contains(says), "{text}");
    by(&controller)
        .create(&create, &lock)
        .await
        .expect("its own");
    let forged = json!({ "metadata": { "annotations": { "kubernaut.ai/last-execution": "{\"cleared\":true}" } } });
    let refused = by(&editor)
        .patch(
            "wfe-target-0123",
            &PatchParams::default(),
            &Patch::Merge(forged),
        )
        .await;
    let text = refused.expect_err("a forged record").to_string();
    assert!(text.contains(says), "{text}");
    let refused = by(&editor)
        .delete("wfe-target-0123", &DeleteParams::default())
        .await;
    let text = refused.expect_err("a lost record").to_string();
    assert!(text.contains(says), "{text}");
    let refused = by(&editor)
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await;
    let text = refused.expect_err("all records").to_string();
    assert!(text.contains(says), "{text}");
    let other = json!({ "metadata": { "generateName": "other-" } });
    let other: Lease = serde_json::from_value(other).expect("a Lease");
    by(&editor)
        .create(&create, &other)
        .await
        .expect("their own");

    let job = |labels: Value| {
        let job = json!({ "metadata": { "name": "made-by-hand", "labels": labels }, "spec": { "suspend": true, "template": { "spec": {
            "restartPolicy": "Never", "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "a", "image": "r.io/a", "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } } }],
        } } } });
        serde_json::from_value::<Job>(job).expect("a Job")
    };
    let jobs: Api<Job> = Api::namespaced(editor, execution);
    let ours = json!({ "kubernaut.ai/workflow-execution-uid": "u" });
    let says = "only the controller sets the labels kubernaut.ai/";
    let refused = jobs.create(&create, &job(ours.clone())).await;
    let text = refused.expect_err("a forged execution").to_string();
    assert!(text.contains(says), "{text}");
    jobs.create(&create, &job(json!({ "a": "b" })))
        .await
        .expect("their own");
    let label = Patch::Merge(json!({ "metadata": { "labels": ours } }));
    let refused = jobs
        .patch("made-by-hand", &PatchParams::default(), &label)
        .await;
    let text = refused.expect_err("a label later").to_string();
    assert!(text.contains(says), "{text}");
}

/// Who cancels needs the verb for it, and is named, whether or not a webhook runs.
#[tokio::test]
async fn cancellation_requires_cancel_verb_and_own_name() {
    let (mut system, name, sybil) = with_user("cancels", "sybil").await;
    let here = system.namespace.name().to_owned();
    create(&system, &sybil, "one", &format!("{here}/Pod/a"))
        .await
        .expect("created");
    let api: Api<WorkflowExecution> = Api::namespaced(sybil, &here);
    let cancel = async |reason: Value, by: Value| {
        let annotations = json!({ "kubernaut.ai/cancel": reason, "kubernaut.ai/cancelled-by": by });
        change(&api, "one", &json!({ "annotations": annotations })).await
    };
    let text = cancel(json!("stop"), json!(name))
        .await
        .expect_err("refused");
    assert!(text.contains("requires the verb cancel"), "{text}");
    let text = cancel(Value::Null, json!("alice"))
        .await
        .expect_err("refused");
    assert!(
        text.contains("changes only with kubernaut.ai/cancel"),
        "{text}"
    );
    system
        .grant_cluster_wide(&name, "cancel")
        .await
        .expect("allowed");
    for by in [json!("alice"), Value::Null] {
        let text = cancel(json!("stop"), by).await.expect_err("refused");
        let says = format!("kubernaut.ai/cancelled-by must be {name}: wfe-webhook sets it");
        assert!(text.contains(&says), "{text}");
    }
    cancel(json!("stop"), json!(name)).await.expect("own name");
    cancel(Value::Null, Value::Null).await.expect("withdrawn");

    system.start_webhook().await.expect("started");
    let text = cancel(json!(" "), Value::Null).await.expect_err("refused");
    assert!(text.contains("must not be empty: say why"), "{text}");
    cancel(json!("stop"), json!("alice"))
        .await
        .expect("stamped");
    let annotations = api.get("one").await.expect("found").metadata.annotations;
    let by = annotations.expect("annotations")["kubernaut.ai/cancelled-by"].clone();
    assert_eq!(by, name, "not the name that the user gave");
}

/// The requester is recorded; the name of another user is refused.
#[tokio::test]
async fn requester_is_recorded_and_cannot_be_another_user() {
    let (mut system, name, oscar) = with_user("asks", "oscar").await;
    let here = system.namespace.name().to_owned();
    let api: Api<WorkflowExecution> = Api::namespaced(oscar, &here);
    let create = async |by: Value| {
        let spec = json!({ "targetResource": format!("{here}/Pod/a"), "requestedBy": by });
        let created = api.create(&dry_run(), &any().request("one", &spec)).await;
        created.map_err(|error| error.to_string())
    };
    let forged = json!({ "username": "alice" });
    let text = create(forged.clone()).await.expect_err("refused");
    assert!(
        text.contains("spec.requestedBy must be the requesting user"),
        "{text}"
    );
    create(json!({ "username": name })).await.expect("own name");

    system.start_webhook().await.expect("started");
    let text = create(forged).await.expect_err("refused");
    let says = format!("spec.requestedBy: must be the requesting user \"{name}\"");
    assert!(text.contains(&says), "{text}");
    let stored = create(Value::Null).await.expect("stamped");
    let requester = stored.spec.requested_by.expect("a requester");
    assert_eq!(requester.username, name);
}

/// BR-WE-005
#[tokio::test]
async fn abandon_audit_annotation_requires_abandon_audit_verb() {
    let (system, name, eve) = with_user("abandon", "eve").await;
    let here = system.namespace.name();
    create(&system, &eve, "one", &format!("{here}/Pod/a"))
        .await
        .expect("created");
    let api: Api<WorkflowExecution> = Api::namespaced(eve.clone(), here);
    let annotate = async |key: &str, value: Value| {
        change(&api, "one", &json!({ "annotations": { key: value } })).await
    };
    let abandon = "kubernaut.ai/abandon-audit";
    let says = "requires the verb abandon-audit on workflowexecutions";
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
        .service_account(system.programs.name(), "wfe-controller")
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
    let (system, _, kim) = with_user("status", "kim").await;
    let here = system.namespace.name();
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

/// What each role for people allows, and what Kubernetes' own roles get of it.
#[tokio::test]
async fn roles_allow_what_their_names_say() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "roles", &[])
        .await
        .expect("installed");
    let verbs = [
        ("list", ""),
        ("create", ""),
        ("cancel", ""),
        ("patch", "status"),
        ("abandon-audit", ""),
        ("release", ""),
    ];
    for (role, allowed) in [
        ("kubernaut-workflow-viewer", "+-----"),
        ("kubernaut-workflow-requester", "++----"),
        ("kubernaut-workflow-operator", "++++--"),
        ("kubernaut-workflow-auditor", "+---+-"),
        ("kubernaut-workflow-breaker", "+----+"),
        ("view", "+-----"),
        ("edit", "++----"),
        ("admin", "++++--"),
    ] {
        let user = format!("{role}-of-{}", system.namespace.name());
        // The last verb that the role has: aggregation takes a moment.
        let last = allowed.rfind('+').and_then(|index| verbs.get(index));
        let (verb, subresource) = last.expect("a verb");
        let awaited = if subresource.is_empty() {
            *verb
        } else {
            "cancel"
        };
        system.bind(&user, role, awaited).await.expect("bound");
        let mut found = String::new();
        for (verb, subresource) in verbs {
            let allows = system.is_allowed(&user, verb, subresource).await;
            found.push(if allows.expect("reviewed") { '+' } else { '-' });
        }
        assert_eq!(found, allowed, "{role}: {verbs:?}");
    }
}
