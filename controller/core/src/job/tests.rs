use std::sync::Arc;

use k8s_openapi::List;
use k8s_openapi::api::core::v1::Event;
use rstest::rstest;
use serde_json::{Value, json};
use wfe_model::engine::Engine;
use wfe_model::workflow::Dependencies;
use wfe_model::workflow_execution::FailureReason;

use super::build::build;
use super::read::{POD_MAKER, read};
use crate::execution::{Cause, Execution, Progress, controller_of};
use crate::failure::classify;
use crate::plan::fixture::{HEX, plan};
use crate::pod::{self, startup_diagnosis};
use crate::seen::{Job, Pod};

/// BR-WE-014
#[test]
fn build_full_plan_returns_expected_job() {
    let labels = json!({
        "app.kubernetes.io/managed-by": "wfe-controller",
        "kubernaut.ai/workflow-execution": "we-1",
        "kubernaut.ai/workflow-execution-uid": "uid-1",
        "kubernaut.ai/execution-engine": "job",
        "kubernaut.ai/target-hash": "abc",
        "kubernaut.ai/source-namespace": "prod",
    });
    let volume = volume_of("limits.v1");
    let expected = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "we-1-0a1b2c3d",
            "namespace": "kubernaut-workflows",
            "labels": labels,
            "annotations": {
                "kubernaut.ai/workflow-execution": "prod/we-1",
                "kubernaut.ai/target-resource": "prod/Deployment/web",
                "kubernaut.ai/workflow-id": "restart",
                "kubernaut.ai/image": format!("r.io/w/restart@sha256:{HEX}"),
            },
        },
        "spec": {
            "activeDeadlineSeconds": 1800,
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "suspend": true,
            "template": {
                "metadata": { "labels": labels, "annotations": { "kubernaut.ai/workflow-execution": "prod/we-1" } },
                "spec": {
                    "activeDeadlineSeconds": 1860,
                    "restartPolicy": "Never",
                    "enableServiceLinks": false,
                    "serviceAccountName": "runner",
                    "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } },
                    "containers": [{
                        "name": "workflow",
                        "image": format!("r.io/w/restart@sha256:{HEX}"),
                        "env": [
                            { "name": "HOME", "value": "/tmp" },
                            { "name": "TARGET_RESOURCE", "value": "prod/Deployment/web" },
                            { "name": "KUBERNAUT_WORKFLOW_EXECUTION", "value": "prod/we-1" },
                            { "name": "KUBERNAUT_REMEDIATION_REQUEST", "value": "rr-1" },
                            { "name": "TARGET_RESOURCE_API_VERSION", "value": "apps/v1" },
                            { "name": "TARGET_RESOURCE_KIND", "value": "Deployment" },
                            { "name": "TARGET_RESOURCE_NAME", "value": "web" },
                            { "name": "TARGET_RESOURCE_NAMESPACE", "value": "prod" },
                            { "name": "ADDED", "value": "3" },
                            { "name": "TEXT", "value": "$$(TARGET_RESOURCE) $$HOME" },
                        ],
                        "resources": { "requests": { "cpu": "50m" }, "limits": { "memory": "128Mi", "ephemeral-storage": "2Gi" } },
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "capabilities": { "drop": ["ALL"] },
                            "readOnlyRootFilesystem": true,
                        },
                        "volumeMounts": [
                            { "name": "tmp", "mountPath": "/tmp" },
                            { "name": "secret-registry", "mountPath": "/run/kubernaut/secrets/registry", "readOnly": true },
                            { "name": volume, "mountPath": "/run/kubernaut/configmaps/limits.v1", "readOnly": true },
                        ],
                    }],
                    "volumes": [
                        { "name": "tmp", "emptyDir": { "sizeLimit": "2Gi" } },
                        { "name": "secret-registry", "secret": { "secretName": "registry" } },
                        { "name": volume, "configMap": { "name": "limits.v1" } },
                    ],
                },
            },
        },
    });
    assert_eq!(
        serde_json::to_value(build(&plan(Engine::Job, "prod"))).expect("JSON"),
        expected
    );
}

fn volume_of(config_map: &str) -> String {
    crate::names::volume_name("configmap", config_map)
}

/// BR-WE-014
#[test]
fn build_in_same_namespace_sets_owner_reference() {
    let owned: Value =
        serde_json::to_value(build(&plan(Engine::Job, "kubernaut-workflows"))).expect("JSON");
    assert_eq!(
        owned["metadata"]["ownerReferences"],
        json!([{
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution", "name": "we-1", "uid": "uid-1",
            "controller": true, "blockOwnerDeletion": true,
        }])
    );
}

/// An object recorded from a cluster, with its container renamed to `workflow`.
fn fixture<K: serde::de::DeserializeOwned>(name: &str) -> K {
    let path = format!("{}/testdata/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("a fixture");
    serde_json::from_str(&text.replace("\"name\": \"main\"", "\"name\": \"workflow\""))
        .expect("an object")
}

/// The execution read from recorded objects, pruned as the watches prune them.
fn read_fixture(name: &str, pod: Option<&str>) -> Execution {
    let kept = |pod: &&str| {
        let mut pod: Pod = fixture(&format!("pod-{pod}"));
        pod::prune(&mut pod);
        Arc::new(pod)
    };
    let pods: Vec<_> = pod.iter().map(kept).collect();
    read(&fixture(&format!("job-{name}")), &pods)
}

/// BR-WE-013: the exit code of a pod that the Job does not control.
#[test]
fn pod_of_another_owner_is_not_read() {
    let mut pod: Pod = fixture("pod-fail3");
    pod.metadata.owner_references = None;
    let forged = read(&fixture("job-fail3"), &[Arc::new(pod)]);
    assert_eq!((forged.began, read_fixture("fail3", None)), (None, forged));
}

/// A failed execution with a `DisruptionTarget` condition. The condition is written after the API
/// documentation, not recorded.
fn disrupted(reason: &str, started: bool) -> Execution {
    let mut pod: Pod = fixture(if started {
        "pod-fail3"
    } else {
        "pod-unschedulable.waiting"
    });
    let status = pod.status.as_mut().expect("a status");
    let condition =
        json!({ "type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why" });
    let condition = serde_json::from_value(condition).expect("a condition");
    status.conditions.get_or_insert_default().push(condition);
    pod::prune(&mut pod);
    let mut job: Job = fixture("job-fail3");
    job.metadata.uid = controller_of(&pod, POD_MAKER.kind).map(ToOwned::to_owned);
    read(&job, &[Arc::new(pod)])
}

/// BR-WE-012
#[rstest]
fn disrupted_pod_is_resource_exhausted(
    #[values(
        "EvictionByEvictionAPI",
        "DeletionByTaintManager",
        "TerminationByKubelet",
        "PreemptionByScheduler",
        "DeletionByPodGC"
    )]
    reason: &str,
    #[values(true, false)] started: bool,
) {
    let execution = disrupted(reason, started);
    let Progress::Failed { facts, .. } = execution.progress else {
        panic!("{execution:?}")
    };
    let failure = classify(&facts, execution.began.is_some(), None);
    assert_eq!(failure.reason, FailureReason::ResourceExhausted);
    assert_eq!(failure.was_execution_failure, started);
    assert_eq!(failure.message, format!("{reason}: why"));
}

/// BR-WE-012
#[test]
fn startup_diagnosis_returns_cause_from_events() {
    let list = |name: &str| fixture::<List<Event>>(name).items;
    let mounts = startup_diagnosis(&list("events-nosecret.waiting")).expect("a cause");
    assert_eq!(mounts.cause, Cause::VolumeNotMounted);
    assert!(
        mounts.message.starts_with("FailedMount: "),
        "{}",
        mounts.message
    );
    assert!(
        mounts.message.contains("secret \"missing\" not found"),
        "{}",
        mounts.message
    );
    assert_eq!(startup_diagnosis(&list("events-ok")), None);
    let refused = |message: &str| {
        let event = Event {
            reason: Some("FailedCreate".to_owned()),
            message: Some(message.to_owned()),
            ..Event::default()
        };
        startup_diagnosis(&[event]).expect("a cause").cause
    };
    assert_eq!(
        refused("Error creating: pods \"a\" is forbidden: exceeded quota: q"),
        Cause::QuotaExceeded
    );
    assert_eq!(
        refused("Error creating: pods \"a\" is forbidden: violates PodSecurity"),
        Cause::PodRefused
    );
}

/// BR-WE-003
#[test]
fn read_complete_job_is_succeeded_at_its_completion_time() {
    let execution = read_fixture("ok", Some("ok"));
    let Progress::Succeeded { at: Some(at), .. } = execution.progress else {
        panic!("{execution:?}")
    };
    assert_eq!(at.to_string(), "2026-11-23T11:19:56Z");
    assert!(execution.began.is_some());
}

/// BR-WE-003
#[rstest]
#[case("noimage.waiting", Some(Cause::ImageNotPulled))]
#[case("unschedulable.waiting", Some(Cause::Unschedulable))]
#[case("envnosecret.waiting", Some(Cause::ContainerConfigInvalid))]
fn read_waiting_pod_returns_cause(#[case] name: &str, #[case] reason: Option<Cause>) {
    let execution = read_fixture(name, Some(name));
    let Progress::Active { waiting } = execution.progress else {
        panic!("{execution:?}")
    };
    assert_eq!(waiting.as_ref().map(|waiting| waiting.cause), reason);
    assert_eq!(execution.began, None);
}

/// BR-WE-012
#[rstest]
#[case("fail3", Some("fail3"), FailureReason::TaskFailed, Some(3), true)]
#[case("oom", Some("oom"), FailureReason::OOMKilled, Some(137), true)]
#[case(
    "badcmd",
    Some("badcmd"),
    FailureReason::ConfigurationError,
    Some(128),
    false
)]
#[case("deadline", None, FailureReason::DeadlineExceeded, None, true)]
fn read_failed_job_is_classified_by_its_reason(
    #[case] job: &str,
    #[case] pod: Option<&str>,
    #[case] reason: FailureReason,
    #[case] exit_code: Option<i32>,
    #[case] was_execution_failure: bool,
) {
    let execution = read_fixture(job, pod);
    let Progress::Failed { at: Some(_), facts } = execution.progress else {
        panic!("{execution:?}")
    };
    let failure = classify(&facts, execution.began.is_some(), None);
    assert_eq!(
        (
            failure.reason,
            failure.exit_code,
            failure.was_execution_failure
        ),
        (reason, exit_code, was_execution_failure)
    );
}

/// BR-WE-003
#[rstest]
#[case(json!({}), true, false)]
#[case(json!({ "kubernaut.ai/started": "true" }), false, true)]
fn read_suspended_job_is_held_or_suspended_by_another_client(
    #[case] annotations: Value,
    #[case] held: bool,
    #[case] suspended: bool,
) {
    let job = serde_json::from_value(json!({
        "metadata": { "annotations": annotations, "labels": { "kueue.x-k8s.io/queue-name": "q" } },
        "spec": { "suspend": true, "template": {} },
    }))
    .expect("a Job");
    let execution = read(&job, &[]);
    let waiting = match execution.progress {
        Progress::Active { waiting } => waiting.map(|it| it.cause),
        _ => None,
    };
    assert_eq!(
        (execution.held, waiting == Some(Cause::Suspended)),
        (held, suspended)
    );
    assert!(execution.queued);
}

/// BR-WE-014
#[test]
fn workflow_without_dependencies_has_no_volume_but_tmp() {
    let mut plan = plan(Engine::Job, "prod");
    let valid = Arc::make_mut(&mut plan.valid);
    Arc::make_mut(&mut valid.workflow).dependencies = Dependencies::default();
    let job = serde_json::to_value(build(&plan)).expect("JSON");
    let pod = &job["spec"]["template"]["spec"];
    let names = |list: &Value| {
        let all = list.as_array().expect("a list").iter();
        all.map(|it| it["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&pod["volumes"]), ["tmp"]);
    assert_eq!(names(&pod["containers"][0]["volumeMounts"]), ["tmp"]);
}

/// BR-WE-014: no workflow can take the memory of the whole node.
#[test]
fn resources_that_the_entry_does_not_name_have_the_defaults() {
    let built = |resources: &str| {
        let mut plan = plan(Engine::Job, "prod");
        let valid = Arc::make_mut(&mut plan.valid);
        let workflow = Arc::make_mut(&mut valid.workflow);
        workflow.resources = serde_json::from_str(resources).expect("resources");
        let job = serde_json::to_value(build(&plan)).expect("JSON");
        job["spec"]["template"]["spec"]["containers"][0]["resources"].clone()
    };
    let defaults = json!({
        "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "cpu": "1", "memory": "512Mi" },
    });
    assert_eq!(built("null"), defaults);
    let memory = built(r#"{ "requests": { "memory": "1Gi" } }"#);
    let limited = json!({
        "requests": { "cpu": "50m", "memory": "1Gi" }, "limits": { "cpu": "1", "memory": "1Gi" },
    });
    assert_eq!(
        memory, limited,
        "never without a limit, never a limit below the request"
    );
    let small = built(r#"{ "limits": { "cpu": "20m", "memory": "32Mi" } }"#);
    assert_eq!(
        small,
        json!({ "limits": { "cpu": "20m", "memory": "32Mi" } })
    );
}
