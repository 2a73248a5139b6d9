//! `wfe-controller why` on a real cluster: each answer names the cause, the object and the command.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::system::{Script, System, condition};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster};

/// Longer than the time from a failure to its explanation.
const FLAGS: [&str; 3] = [
    "--backoff-base=20s",
    "--max-consecutive-failures=2",
    "--cooldown=5m",
];

/// The answer, as an administrator gets it.
async fn why(system: &System, subject: &str, namespace: &str) -> String {
    let execution = format!("--execution-namespace={}", system.execution.name());
    let namespace = format!("--namespace={namespace}");
    let mut arguments = vec!["why", subject, &namespace, &execution];
    arguments.extend(FLAGS);
    let (success, text) = system.admin_command(&arguments).await.expect("run");
    assert!(success, "{text}");
    text
}

fn check(answer: &str, cause: &str, object: &str, command: &str) {
    let line = |key: &str| {
        let line = answer.lines().find_map(|it| it.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key} in {answer}"))
            .trim()
            .to_owned()
    };
    assert!(line("cause:").contains(cause), "{cause}: {answer}");
    assert!(line("object:").starts_with(object), "{object}: {answer}");
    assert!(line("command:").contains(command), "{command}: {answer}");
}

fn on(target: &str, when_blocked: &str) -> Value {
    json!({
        "targetResource": format!("prod/Deployment/{target}"),
        "executionConfig": { "whenBlocked": when_blocked },
    })
}

/// Creates WorkflowExecutions until the controller notices that the catalog is gone: it looks once
/// in a second.
async fn first_unresolved(system: &System, workflow: &Script) -> String {
    let api = system.namespace.api::<WorkflowExecution>();
    for number in 0..100 {
        let name = format!("uncatalogued-{number}");
        let spec = on(&name, "Wait");
        system.create(workflow, &name, &spec).await.expect("stored");
        let looked = |wfe: &WorkflowExecution| condition(wfe, "WorkflowResolved") != "absent";
        let wfe = wait::until(&api, &name, "the catalog was asked", SECONDS_30, looked).await;
        let found = condition(&wfe.expect("asked"), "WorkflowResolved");
        if found == "Unknown/CatalogUnavailable" {
            return name;
        }
    }
    panic!("the catalog is still available");
}

/// BR-WE-013
#[tokio::test]
async fn why_names_cause_object_and_command_in_ten_situations() {
    let cluster = cluster().await;
    let sleeps = Script::push(
        &cluster,
        "why-sleeps",
        "trap 'exit 0' TERM; sleep 300 & wait",
        "",
    );
    let quick = Script::push(&cluster, "why-quick", "true", "");
    let fails = Script::push(&cluster, "why-fails", "exit 1", "");
    let declared = "dependencies: {secrets: [{name: absent}]}\n";
    let needy = Script::push(&cluster, "why-needy", "true", declared);
    let workflows = [&sleeps, &quick, &fails, &needy];
    let mut system = System::install(&cluster, "why", &workflows)
        .await
        .expect("installed");
    system.controller_flags.extend(FLAGS.map(str::to_owned));
    system.start_controller().await.expect("started");
    let create = async |workflow: &Script, name: &str, target: &str, when: &str| {
        system
            .create(workflow, name, &on(target, when))
            .await
            .expect("stored");
    };
    let (own, execution) = (system.namespace.name(), system.execution.name());

    // The second failure follows after the backoff; the other situations are shown meanwhile.
    create(&needy, "exhausts-1", "exhausted", "Skip").await;
    system.ended("exhausts-1").await.expect("ended");
    create(&needy, "exhausts-2", "exhausted", "Wait").await;

    create(&needy, "needy", "backoff", "Skip").await;
    system.ended("needy").await.expect("ended");
    let clear = format!("kubectl -n {own} patch workflowexecution ");
    let object = format!("WorkflowExecution {own}/needy");
    let answer = why(&system, "prod/Deployment/backoff", own).await;
    check(&answer, "is backing off", &object, &clear);
    let answer = why(&system, "needy", own).await;
    let secrets = format!("kubectl -n {execution} get secrets");
    check(&answer, "absent", "Secrets and ConfigMaps", &secrets);

    create(&sleeps, "holder", "busy", "Skip").await;
    system
        .until("holder", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("runs");
    create(&quick, "waiter", "busy", "Wait").await;
    system
        .until("waiter", "Blocked", "True/ResourceBusy")
        .await
        .expect("waits");
    let (lease, cancel) = (
        format!("Lease {execution}/wfe-target-"),
        "kubernaut.ai/cancel=",
    );
    let answer = why(&system, "waiter", own).await;
    check(&answer, "is busy: WorkflowExecution", &lease, cancel);

    create(&quick, "restart-1", "cooling", "Skip").await;
    system.ended("restart-1").await.expect("ended");
    create(&quick, "restart-2", "cooling", "Wait").await;
    system
        .until("restart-2", "Blocked", "True/RecentlyRemediated")
        .await
        .expect("waits");
    let object = format!("WorkflowExecution {own}/restart-1");
    let answer = why(&system, "restart-2", own).await;
    check(&answer, "is cooling down", &object, "kubectl");

    create(&fails, "breaks", "blocked", "Skip").await;
    system.ended("breaks").await.expect("ended");
    let object = format!("WorkflowExecution {own}/breaks");
    let answer = why(&system, "prod/Deployment/blocked", own).await;
    check(&answer, "is blocked", &object, &clear);

    let other = cluster.namespace("why-other").await.expect("a namespace");
    let api = other.api::<WorkflowExecution>();
    let unseen = quick.request("unseen", &json!({}));
    api.create(&PostParams::default(), &unseen)
        .await
        .expect("stored");
    let object = format!("WorkflowExecution {}/unseen", other.name());
    let answer = why(&system, "unseen", other.name()).await;
    check(
        &answer,
        "no controller has seen it",
        &object,
        "kubectl get pods",
    );

    let leases = system.execution.api::<Lease>();
    create(&quick, "locks", "by-hand", "Skip").await;
    system.ended("locks").await.expect("ended");
    let locks = system
        .namespace
        .api::<WorkflowExecution>()
        .get("locks")
        .await
        .expect("found");
    let name = lock_of(&locks);
    let by_hand = Patch::Merge(json!({ "spec": { "holderIdentity": "ops" } }));
    let taken = leases.patch(&name, &PatchParams::default(), &by_hand).await;
    taken.expect("taken");
    let answer = why(&system, "prod/Deployment/by-hand", own).await;
    let (lease, free) = (format!("Lease {execution}/{name}"), "patch lease");
    check(&answer, "is locked by hand", &lease, free);

    system.ended("exhausts-2").await.expect("ended");
    let object = format!("WorkflowExecution {own}/exhausts-2");
    let answer = why(&system, "prod/Deployment/exhausted", own).await;
    check(&answer, "2 executions in a row failed", &object, &clear);

    system.hide_catalog().expect("hidden");
    let uncatalogued = first_unresolved(&system, &quick).await;
    let answer = why(&system, &uncatalogued, own).await;
    check(
        &answer,
        "the workflow catalog is unavailable",
        "the workflow catalog",
        "kubectl logs",
    );

    let namespaces: Api<Namespace> = Api::all(cluster.admin());
    let paused = json!({ "metadata": { "annotations": { "kubernaut.ai/paused": "true" } } });
    let paused = Patch::Merge(paused);
    namespaces
        .patch(execution, &PatchParams::default(), &paused)
        .await
        .expect("paused");
    let answer = why(&system, "prod/Deployment/any", own).await;
    let object = format!("Namespace {execution}");
    check(&answer, "is paused", &object, "kubectl annotate namespace");
}

fn lock_of(wfe: &WorkflowExecution) -> String {
    let target = wfe_model::target::Target::parse(&wfe.spec.target_resource);
    wfe_core::names::lock_name(&wfe_core::names::TargetHash::of(&target.expect("a target")))
}
