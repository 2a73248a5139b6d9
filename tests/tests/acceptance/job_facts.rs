//! BR-WE-012: what keeps a workflow from running is known by its facts, caused here on the real node
//! and API server: while it lasts, through a restart, and at the end.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{LimitRange, Pod, ResourceQuota, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, EvictParams, ListParams, PostParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use wfe_model::workflow_execution::{FailureDetails, FailureReason, WorkflowExecution};
use wfe_tests::system::{Script, System, condition, dry_run, message, until_effective};
use wfe_tests::{Cluster, Image, wait};

use crate::setup::{SECONDS_30, cluster};

/// What is told to end has not done its work.
const SLEEP: &str = "trap 'exit 143' TERM; sleep 300 & wait";
/// Longer than the controller waits until it asks the Events.
const START_TIMEOUT: &str = "--start-timeout=25s";

/// How it must end.
struct End {
    reason: FailureReason,
    ran: bool,
    /// In the message, and so in what the operator reads.
    says: &'static str,
}

fn never_ran(reason: FailureReason, says: &'static str) -> End {
    End {
        reason,
        ran: false,
        says,
    }
}

/// With a limit for the start of an execution, as a flag.
async fn started(cluster: &Cluster, prefix: &str, workflows: &[&Script], flag: &str) -> System {
    let system = System::install(cluster, prefix, workflows).await;
    let mut system = system.expect("installed");
    system.controller_flags = vec![flag.to_owned()];
    system.start_controller().await.expect("started");
    system
}

async fn ends(system: &System, name: &str, end: &End) -> FailureDetails {
    let wfe = system.ended(name).await.expect("ended");
    let details = wfe
        .status
        .and_then(|it| it.failure_details)
        .expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (end.reason, end.ran),
        "{name}: {details:?}"
    );
    assert!(
        details.message.contains(end.says),
        "{name}: {}",
        details.message
    );
    let summary = &details.natural_language_summary;
    assert_eq!(
        summary.contains("look at the target"),
        end.ran,
        "{name}: {summary}"
    );
    details
}

/// The sentence of `ExecutionRunning`, once it says that something is waited for.
async fn waits(system: &System, name: &str) -> String {
    let wfe = system.until(name, "ExecutionRunning", "False/Waiting");
    message(&wfe.await.expect("it says why"), "ExecutionRunning")
}

fn without_a_command(cluster: &Cluster) -> Script {
    let image = Image::from("busybox:1").entrypoint(&["/there/is/no/such/file"]);
    let registry = cluster.registry().expect("a registry");
    let image = registry.push("workflows/no-command:1", &image);
    Script::of("no-command", image.expect("pushed"), "")
}

#[tokio::test]
async fn br_we_012_what_the_pod_says_is_told_while_it_waits_and_at_the_end() {
    let cluster = cluster().await;
    let sleeps = Script::push(&cluster, "sleeps", SLEEP, "");
    let hungry = Script {
        id: "hungry",
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
    // Enough for the one that runs, on a slow machine, too.
    let mut system = started(&cluster, "facts", &workflows, "--start-timeout=40s").await;
    for workflow in workflows {
        system
            .create(workflow, workflow.id, &json!({}))
            .await
            .expect("stored");
    }
    // Evicted by the real API, while it runs.
    system
        .until("sleeps", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("it runs");
    let pods = system.execution.api::<Pod>();
    let ours = ListParams::default().labels("kubernaut.ai/workflow-execution=sleeps");
    let pod = pods
        .list(&ours)
        .await
        .expect("listed")
        .items
        .remove(0)
        .name_any();
    pods.evict(&pod, &EvictParams::default())
        .await
        .expect("evicted");
    let evicted = End {
        reason: FailureReason::ResourceExhausted,
        ran: true,
        says: "EvictionByEvictionAPI",
    };
    ends(&system, "sleeps", &evicted).await;

    let said = waits(&system, "hungry").await;
    assert!(
        said.starts_with("Unschedulable: ") && said.contains("Insufficient cpu"),
        "{said}"
    );
    system.kill_controller().await.expect("killed");
    system.start_controller().await.expect("started again");
    let unschedulable = never_ran(
        FailureReason::ResourceExhausted,
        "no container started within 40s: 0/1 nodes are available",
    );
    ends(&system, "hungry", &unschedulable).await;
    let details = ends(
        &system,
        "no-command",
        &never_ran(FailureReason::ConfigurationError, "/there/is/no/such/file"),
    )
    .await;
    assert_eq!(details.exit_code, Some(128));
}

/// Our pods refer to nothing that may be missing: a policy of somebody else's adds it.
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
            .expect("made");
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
    .expect("in force");
    name
}

const POLICY: &str = "MutatingAdmissionPolicy";
const BINDING: &str = "MutatingAdmissionPolicyBinding";

fn mutating(cluster: &Cluster, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    let plural = ApiResource::from_gvk(&kind);
    Api::all_with(cluster.admin(), &plural)
}

#[tokio::test]
async fn br_we_012_what_admission_makes_of_the_pod_is_told_too() {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "quick", "true", "");
    let system = started(&cluster, "pods", &[&quick], START_TIMEOUT).await;
    let policy = add_a_missing_secret(&cluster, system.execution.name()).await;
    system
        .create(&quick, "env", &json!({}))
        .await
        .expect("stored");
    let said = waits(&system, "env").await;
    assert!(said.starts_with("CreateContainerConfigError: "), "{said}");
    ends(
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
        .expect("made");
    system
        .create(&quick, "large", &json!({}))
        .await
        .expect("stored");
    let said = waits(&system, "large").await;
    assert!(said.starts_with("FailedCreate: "), "{said}");
    ends(
        &system,
        "large",
        &never_ran(
            FailureReason::Forbidden,
            "maximum memory usage per Container is 32Mi",
        ),
    )
    .await;
}

async fn quota(system: &System, resource: &str) {
    let quota: ResourceQuota = serde_json::from_value(json!({
        "metadata": { "name": "none" }, "spec": { "hard": { resource: "0" } },
    }))
    .expect("a quota");
    let quotas = system.execution.api::<ResourceQuota>();
    quotas
        .create(&PostParams::default(), &quota)
        .await
        .expect("made");
    let known = |quota: &ResourceQuota| {
        let hard = quota.status.as_ref().and_then(|it| it.hard.as_ref());
        hard.is_some_and(|it| it.contains_key(resource))
    };
    wait::until(&quotas, "none", "the quota is counted", SECONDS_30, known)
        .await
        .expect("counted");
}

async fn no_quota(system: &System) {
    let quotas = system.execution.api::<ResourceQuota>();
    quotas
        .delete("none", &DeleteParams::default())
        .await
        .expect("deleted");
}

#[tokio::test]
async fn br_we_012_a_pod_that_the_quota_or_a_missing_secret_keeps_back_is_told_by_events() {
    let cluster = cluster().await;
    let needs = Script::push(
        &cluster,
        "needs",
        "true",
        "dependencies: {secrets: [{name: key}]}\n",
    );
    let system = started(&cluster, "mount", &[&needs], "--start-timeout=45s").await;
    let secret: Secret = serde_json::from_value(
        json!({ "metadata": { "name": "key" }, "stringData": { "a": "b" } }),
    )
    .expect("a Secret");
    let secrets = system.execution.api::<Secret>();
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .expect("made");
    quota(&system, "pods").await;
    for name in ["over", "mounts"] {
        system
            .create(&needs, name, &json!({}))
            .await
            .expect("stored");
        let made = waits(&system, name).await;
        assert!(
            made.starts_with("QuotaExceeded: ") && made.contains("exceeded quota: none"),
            "{made}"
        );
        if name == "over" {
            system
                .cancel("over", "seen enough")
                .await
                .expect("cancelled");
            system.ended("over").await.expect("ended");
        }
    }
    // Gone before the pod can be made: the kubelet looks for it in vain.
    secrets
        .delete("key", &DeleteParams::default())
        .await
        .expect("deleted");
    no_quota(&system).await;
    ends(
        &system,
        "mounts",
        &never_ran(
            FailureReason::ConfigurationError,
            "secret \"key\" not found",
        ),
    )
    .await;
}

#[tokio::test]
async fn br_we_012_a_refused_job_is_told_by_who_refused_it() {
    let cluster = cluster().await;
    let quick = Script::push(&cluster, "quick", "true", "");
    let mut system = System::install(&cluster, "refused", &[&quick])
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    let refused = async |name: &str, word: &str, end: &End| {
        system
            .create(&quick, name, &json!({}))
            .await
            .expect("stored");
        let details = ends(&system, name, end).await;
        let wfe = system
            .namespace
            .api::<WorkflowExecution>()
            .get(name)
            .await
            .expect("there");
        assert_eq!(
            condition(&wfe, "ExecutionCreated"),
            format!("False/{word}"),
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

    system.allow_jobs(false).await.expect("right taken");
    refused(
        "rights",
        "RBACDenied",
        &never_ran(FailureReason::Forbidden, "cannot create resource \"jobs\""),
    )
    .await;
    system.allow_jobs(true).await.expect("right given");

    let policy = forbid_jobs(&cluster, system.execution.name()).await;
    refused(
        "policy",
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
    let told: Vec<Event> = system
        .namespace
        .api::<Event>()
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items;
    assert!(
        told.iter()
            .any(|it| it.reason.as_deref() == Some("Forbidden")),
        "{told:?}"
    );
}

/// A policy of somebody else's that does not want Jobs in a namespace, once it is in force.
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
        .expect("made");
    bindings
        .create(&PostParams::default(), &binding)
        .await
        .expect("made");
    let probe: Job = serde_json::from_value(probe_job()).expect("a Job");
    let jobs: Api<Job> = Api::namespaced(cluster.admin(), namespace);
    until_effective("the policy", async || {
        Ok(jobs.create(&dry_run(), &probe).await.is_err())
    })
    .await
    .expect("in force");
    name
}

fn probe_job() -> Value {
    json!({
        "metadata": { "name": "probe" },
        "spec": { "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "a", "image": "r.io/a" }] } } },
    })
}
