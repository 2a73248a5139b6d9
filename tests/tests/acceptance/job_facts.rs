//! BR-WE-012: the status reports why a workflow does not run, from pod statuses, conditions and
//! Events of a real node and API server: while it waits, after a restart, and at the end.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{LimitRange, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, EvictParams, ListParams, PostParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use wfe_model::workflow_execution::{FailureDetails, FailureReason, WorkflowExecution};
use wfe_tests::system::{Script, System, condition, dry_run, message, until_effective};
use wfe_tests::{Cluster, Image};

use crate::setup::{SECONDS_30, cluster, no_quota, quota};

/// Exits non-zero on SIGTERM, so that an eviction is a failure.
const SLEEP: &str = "trap 'exit 143' TERM; sleep 300 & wait";
/// Longer than the delay after which the controller lists Events.
const START_TIMEOUT: &str = "--start-timeout=25s";

/// Expected failure.
struct Expected {
    reason: FailureReason,
    ran: bool,
    /// Text in the message.
    says: &'static str,
}

fn never_ran(reason: FailureReason, says: &'static str) -> Expected {
    Expected {
        reason,
        ran: false,
        says,
    }
}

/// Starts a system without a webhook, with the controller flag `--start-timeout`.
async fn start_with(cluster: &Cluster, prefix: &str, workflows: &[&Script], flag: &str) -> System {
    let system = System::install(cluster, prefix, workflows).await;
    let mut system = system.expect("installed");
    system.controller_flags = vec![flag.to_owned()];
    system.start_controller().await.expect("started");
    system
}

async fn check_failure(system: &System, name: &str, expected: &Expected) -> FailureDetails {
    let wfe = system.ended(name).await.expect("ended");
    let details = wfe
        .status
        .and_then(|it| it.failure_details)
        .expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (expected.reason, expected.ran),
        "{name}: {details:?}"
    );
    assert!(
        details.message.contains(expected.says),
        "{name}: {}",
        details.message
    );
    let summary = &details.natural_language_summary;
    assert_eq!(
        summary.contains("look at the target"),
        expected.ran,
        "{name}: {summary}"
    );
    details
}

/// Message of the condition `ExecutionRunning`, once its reason is `Waiting`.
async fn waiting_message(system: &System, name: &str) -> String {
    let wfe = system.until(name, "ExecutionRunning", "False/Waiting");
    message(&wfe.await.expect("waiting"), "ExecutionRunning")
}

fn without_a_command(cluster: &Cluster) -> Script {
    let image = Image::from("busybox:1").entrypoint(&["/there/is/no/such/file"]);
    let registry = cluster.registry().expect("a registry");
    let image = registry.push("workflows/no-command:1", &image);
    Script::of("no-command", image.expect("pushed"), "")
}

/// BR-WE-012
#[tokio::test]
async fn pod_status_is_reported_while_waiting_and_on_failure() {
    let cluster = cluster().await;
    let sleeps = Script::push(&cluster, "sleeps", SLEEP, "");
    let hungry = Script {
        id: "hungry",
        engine: sleeps.engine,
        image: sleeps.image.clone(),
        yaml: sleeps
            .yaml
            .replace("workflowId: sleeps", "workflowId: hungry")
            .replace(
                "engine: job,",
                "engine: job, resources: {requests: {cpu: 999}, limits: {cpu: 999}},",
            ),
    };
    let no_command = without_a_command(&cluster);
    let workflows = [&sleeps, &hungry, &no_command];
    // Long enough for the pod of `sleeps` to start on a slow machine.
    let mut system = start_with(&cluster, "facts", &workflows, "--start-timeout=40s").await;
    for workflow in workflows {
        system
            .create(workflow, workflow.id, &json!({}))
            .await
            .expect("stored");
    }
    // The eviction API deletes the running pod.
    system
        .until("sleeps", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("running");
    let pods = system.execution.api::<Pod>();
    let selector = ListParams::default().labels("kubernaut.ai/workflow-execution=sleeps");
    let pod = pods
        .list(&selector)
        .await
        .expect("listed")
        .items
        .remove(0)
        .name_any();
    pods.evict(&pod, &EvictParams::default())
        .await
        .expect("evicted");
    let evicted = Expected {
        reason: FailureReason::ResourceExhausted,
        ran: true,
        says: "EvictionByEvictionAPI",
    };
    check_failure(&system, "sleeps", &evicted).await;

    let text = waiting_message(&system, "hungry").await;
    assert!(
        text.starts_with("Unschedulable: ") && text.contains("Insufficient cpu"),
        "{text}"
    );
    system.kill_controller().await.expect("killed");
    system.start_controller().await.expect("started again");
    let unschedulable = never_ran(
        FailureReason::ResourceExhausted,
        "no container started within 40s: Unschedulable: 0/1 nodes are available",
    );
    check_failure(&system, "hungry", &unschedulable).await;
    let details = check_failure(
        &system,
        "no-command",
        &never_ran(FailureReason::ConfigurationError, "/there/is/no/such/file"),
    )
    .await;
    assert_eq!(details.exit_code, Some(128));
}

/// Adds a policy that mutates pods to reference a missing Secret: the controller itself creates no
/// pods with such a reference.
async fn add_a_missing_secret(cluster: &Cluster, namespace: &str) -> String {
    let name = format!("adds-env-{namespace}");
    let rule = json!({ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] });
    let adds = r#"[JSONPatch{op: "add", path: "/spec/containers/0/envFrom", value: [{"secretRef": {"name": "injected"}}]}]"#;
    let policy = json!({ "metadata": { "name": name }, "spec": {
        "matchConstraints": { "resourceRules": [rule] }, "failurePolicy": "Fail", "reinvocationPolicy": "Never",
        "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression": adds } }],
    } });
    let selector = json!({ "matchLabels": { "kubernetes.io/metadata.name": namespace } });
    let binding = json!({ "metadata": { "name": name }, "spec": {
        "policyName": name, "matchResources": { "namespaceSelector": selector },
    } });
    for (kind, object) in [(POLICY, policy), (BINDING, binding)] {
        let object: DynamicObject = serde_json::from_value(object).expect("an object");
        let api = mutating(cluster, kind);
        api.create(&PostParams::default(), &object)
            .await
            .expect("created");
    }
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "probe" },
        "spec": {
            "containers": [{ "name": "workflow", "image": "r.io/a", "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } } }],
            "securityContext": { "runAsNonRoot": true, "runAsUser": 1, "seccompProfile": { "type": "RuntimeDefault" } },
        },
    }))
    .expect("a pod");
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), namespace);
    until_effective("the mutating policy", async || {
        let made = pods.create(&dry_run(), &pod).await?;
        let containers = made.spec.map(|it| it.containers).unwrap_or_default();
        Ok(containers.iter().any(|it| it.env_from.is_some()))
    })
    .await
    .expect("in effect");
    name
}

const POLICY: &str = "MutatingAdmissionPolicy";
const BINDING: &str = "MutatingAdmissionPolicyBinding";

fn mutating(cluster: &Cluster, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    let plural = ApiResource::from_gvk(&kind);
    Api::all_with(cluster.admin(), &plural)
}

/// BR-WE-012
#[tokio::test]
async fn pod_mutated_or_rejected_by_admission_is_reported() {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "quick", "true", "");
    let system = start_with(&cluster, "pods", &[&quick], START_TIMEOUT).await;
    let policy = add_a_missing_secret(&cluster, system.execution.name()).await;
    system
        .create(&quick, "env", &json!({}))
        .await
        .expect("stored");
    let text = waiting_message(&system, "env").await;
    assert!(text.starts_with("CreateContainerConfigError: "), "{text}");
    check_failure(
        &system,
        "env",
        &never_ran(
            FailureReason::ConfigurationError,
            "secret \"injected\" not found",
        ),
    )
    .await;
    for kind in [BINDING, POLICY] {
        let api = mutating(&cluster, kind);
        api.delete(&policy, &DeleteParams::default())
            .await
            .expect("deleted");
    }

    let limits: LimitRange = serde_json::from_value(json!({
        "metadata": { "name": "small" }, "spec": { "limits": [{ "type": "Container", "max": { "memory": "32Mi" } }] },
    }))
    .expect("limits");
    let ranges = system.execution.api::<LimitRange>();
    ranges
        .create(&PostParams::default(), &limits)
        .await
        .expect("created");
    system
        .create(&quick, "large", &json!({}))
        .await
        .expect("stored");
    let text = waiting_message(&system, "large").await;
    assert!(text.starts_with("FailedCreate: "), "{text}");
    check_failure(
        &system,
        "large",
        &never_ran(
            FailureReason::Forbidden,
            "maximum memory usage per Container is 32Mi",
        ),
    )
    .await;
}

/// BR-WE-012
#[tokio::test]
async fn pod_blocked_by_quota_or_missing_secret_is_reported_from_events() {
    let cluster = cluster().await;
    let needs = Script::push(
        &cluster,
        "needs",
        "true",
        "dependencies: {secrets: [{name: key}]}\n",
    );
    let system = start_with(&cluster, "mount", &[&needs], "--start-timeout=45s").await;
    let secret: Secret = serde_json::from_value(
        json!({ "metadata": { "name": "key" }, "stringData": { "a": "b" } }),
    )
    .expect("a Secret");
    let secrets = system.execution.api::<Secret>();
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .expect("created");
    quota(&system, "pods").await;
    for name in ["over", "mounts"] {
        system
            .create(&needs, name, &json!({}))
            .await
            .expect("stored");
        let text = waiting_message(&system, name).await;
        assert!(
            text.starts_with("QuotaExceeded: ") && text.contains("exceeded quota: none"),
            "{text}"
        );
        if name == "over" {
            system
                .cancel("over", "seen enough")
                .await
                .expect("cancelled");
            system.ended("over").await.expect("ended");
        }
    }
    // The Secret is deleted while the quota blocks the pod, so that mounting it fails.
    secrets
        .delete("key", &DeleteParams::default())
        .await
        .expect("deleted");
    no_quota(&system).await;
    check_failure(
        &system,
        "mounts",
        &never_ran(
            FailureReason::ConfigurationError,
            "secret \"key\" not found",
        ),
    )
    .await;
}

/// BR-WE-012: quota, RBAC, admission policy.
#[tokio::test]
async fn rejected_job_is_reported_by_rejecting_admission_step() {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "quick", "true", "");
    let mut system = System::install(&cluster, "refused", &[&quick])
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    let refused = async |name: &str, reason: &str, expected: &Expected| {
        system
            .create(&quick, name, &json!({}))
            .await
            .expect("stored");
        let details = check_failure(&system, name, expected).await;
        // A definite refusal leaves nothing that could still run.
        system
            .unlocked_within(name, SECONDS_30)
            .await
            .expect("unlocked");
        let wfe = system
            .namespace
            .api::<WorkflowExecution>()
            .get(name)
            .await
            .expect("found");
        assert_eq!(
            condition(&wfe, "ExecutionCreated"),
            format!("False/{reason}"),
            "{details:?}"
        );
    };
    quota(&system, "count/jobs.batch").await;
    refused(
        "quota",
        "QuotaExceeded",
        &never_ran(FailureReason::ResourceExhausted, "exceeded quota: none"),
    )
    .await;
    no_quota(&system).await;

    system.allow_jobs(false).await.expect("revoked");
    refused(
        "rights",
        "RBACDenied",
        &never_ran(FailureReason::Forbidden, "cannot create resource \"jobs\""),
    )
    .await;
    system.allow_jobs(true).await.expect("granted");

    let policy = forbid_jobs(&cluster, system.execution.name()).await;
    // Also for the longest name there is an Event.
    let longest = "n".repeat(253);
    refused(
        &longest,
        "ExecutionCreationFailed",
        &never_ran(FailureReason::Forbidden, "no Jobs on Sundays"),
    )
    .await;
    let (policies, bindings): (
        Api<ValidatingAdmissionPolicy>,
        Api<ValidatingAdmissionPolicyBinding>,
    ) = (Api::all(cluster.admin()), Api::all(cluster.admin()));
    bindings
        .delete(&policy, &DeleteParams::default())
        .await
        .expect("deleted");
    policies
        .delete(&policy, &DeleteParams::default())
        .await
        .expect("deleted");
    assert!(system.jobs().await.expect("listed").is_empty());
    let events: Vec<Event> = system
        .namespace
        .api::<Event>()
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items;
    let forbidden = events
        .iter()
        .filter(|it| it.reason.as_deref() == Some("Forbidden"));
    let names: Vec<_> = forbidden
        .filter_map(|it| it.regarding.as_ref()?.name.clone())
        .collect();
    assert!(
        ["rights".to_owned(), longest]
            .iter()
            .all(|it| names.contains(it)),
        "{events:?}"
    );
}

/// Adds a policy that denies Jobs in a namespace, and waits until it is in effect.
async fn forbid_jobs(cluster: &Cluster, namespace: &str) -> String {
    let name = format!("no-jobs-{namespace}");
    let rule = json!({ "apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"] });
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "matchConstraints": { "resourceRules": [rule] },
            "validations": [{ "expression": "false", "message": "no Jobs on Sundays", "reason": "Forbidden" }],
        },
    }))
    .expect("a policy");
    let selector = json!({ "matchLabels": { "kubernetes.io/metadata.name": namespace } });
    let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "policyName": name, "validationActions": ["Deny"], "matchResources": { "namespaceSelector": selector } },
    }))
    .expect("a binding");
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(cluster.admin());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(cluster.admin());
    policies
        .create(&PostParams::default(), &policy)
        .await
        .expect("created");
    bindings
        .create(&PostParams::default(), &binding)
        .await
        .expect("created");
    let probe: Job = serde_json::from_value(probe_job()).expect("a Job");
    let jobs: Api<Job> = Api::namespaced(cluster.admin(), namespace);
    until_effective("the policy", async || {
        Ok(jobs.create(&dry_run(), &probe).await.is_err())
    })
    .await
    .expect("in effect");
    name
}

fn probe_job() -> Value {
    json!({
        "metadata": { "name": "probe" },
        "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "a", "image": "r.io/a" }] } } },
    })
}
