//! BR-WE-009, BR-WE-013: what somebody with the role `edit` in the execution namespace makes by hand is
//! not taken for an execution, also without the policies that keep them from it.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use wfe_core::execution::Source;
use wfe_core::names::{TargetHash, execution_name};
use wfe_model::workflow_execution::{FailureReason, WorkflowExecution};
use wfe_tests::system::{Script, System, condition, job_has_ended, until_effective};
use wfe_tests::wait;

use crate::setup::{SECONDS_30, cluster, pause};

/// The labels of the execution of `wfe`, which anybody can read.
fn labels(wfe: &WorkflowExecution) -> Value {
    let target = TargetHash::of_wfe(wfe).expect("a target");
    json!({
        "app.kubernetes.io/managed-by": "wfe-controller",
        "kubernaut.ai/workflow-execution": wfe.name_any(),
        "kubernaut.ai/workflow-execution-uid": Source::of(wfe).uid,
        "kubernaut.ai/execution-engine": "job",
        "kubernaut.ai/target-hash": target.as_str(),
        "kubernaut.ai/source-namespace": wfe.namespace(),
    })
}

fn pod_spec(image: &str) -> Value {
    json!({
        "restartPolicy": "Never",
        "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "workflow", "image": image,
            "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
        }],
    })
}

/// A Job with the name and the labels of the execution of `wfe`, that runs another image.
fn forged_job(wfe: &WorkflowExecution, image: &str, suspend: bool) -> Job {
    let name = execution_name(&wfe.name_any(), &Source::of(wfe).uid);
    let job = json!({
        "metadata": { "name": name, "labels": labels(wfe) },
        "spec": { "suspend": suspend, "backoffLimit": 0, "template": { "spec": pod_spec(image) } },
    });
    serde_json::from_value(job).expect("a Job")
}

/// A Job that has nothing to do with an execution.
fn own_job(image: &str) -> Job {
    let job = json!({
        "metadata": { "name": "their-own" },
        "spec": { "suspend": true, "template": { "spec": pod_spec(image) } },
    });
    serde_json::from_value(job).expect("a Job")
}

/// A pod with the labels of the execution of `wfe` that never starts.
fn forged_pod(wfe: &WorkflowExecution, image: &str) -> Pod {
    let mut spec = pod_spec(image);
    spec["nodeSelector"] = json!({ "no": "node" });
    let pod =
        json!({ "metadata": { "generateName": "forged-", "labels": labels(wfe) }, "spec": spec });
    serde_json::from_value(pod).expect("a pod")
}

/// BR-WE-013
#[tokio::test]
async fn objects_by_hand_are_not_taken_for_the_execution() {
    let cluster = cluster().await;
    let fails = Script::push(&cluster, "fails", "exit 3", "");
    let succeeds = Script::push(&cluster, "succeeds", "true", "");
    let system = System::start(&cluster, "by-hand", &[&fails])
        .await
        .expect("started");
    let name = format!("eve-{}", system.execution.name());
    let editor = system.editor(&name).await.expect("an editor");
    let jobs = Api::<Job>::namespaced(editor.clone(), system.execution.name());
    let pods = Api::<Pod>::namespaced(editor, system.execution.name());
    pause(&system, json!("true")).await;
    let mut waiting = Vec::new();
    for name in ["held", "run", "busy"] {
        let spec = json!({ "executionConfig": { "whenBlocked": "Wait" } });
        system.create(&fails, name, &spec).await.expect("stored");
        waiting.push(
            system
                .until(name, "Blocked", "True/Paused")
                .await
                .expect("waits"),
        );
    }
    let [held, run, busy] = waiting.as_slice() else {
        panic!("three requests")
    };
    let create = PostParams::default();
    let forged = forged_job(held, &succeeds.image, true);
    let says = "only the controller sets the labels kubernaut.ai/";
    let refused = jobs.create(&create, &forged).await.expect_err("a policy");
    assert!(refused.to_string().contains(says), "{refused}");
    let refused = pods
        .create(&create, &forged_pod(busy, &succeeds.image))
        .await;
    let refused = refused.expect_err("a policy");
    assert!(refused.to_string().contains(says), "{refused}");
    // The Job controller takes a pod with this label for one of the Job's, and counts its success.
    let job = jobs.create(&create, &own_job(&succeeds.image)).await;
    let job = job.expect("their own");
    for change in [
        json!({ "labels": { "batch.kubernetes.io/controller-uid": job.uid() } }),
        json!({ "ownerReferences": [{
            "apiVersion": "batch/v1", "kind": "Job", "name": job.name_any(), "uid": job.uid(), "controller": true,
        }] }),
    ] {
        let mut pod = json!(forged_pod(busy, &succeeds.image));
        pod["metadata"] = change;
        pod["metadata"]["generateName"] = json!("forged-");
        let pod = serde_json::from_value(pod).expect("a pod");
        let refused = pods.create(&create, &pod).await.expect_err("a policy");
        assert!(
            refused.to_string().contains("'workflowexecution-labels"),
            "{refused}"
        );
    }
    let mut by_template = forged_job(held, &succeeds.image, true);
    by_template.metadata.labels = None;
    let template = &mut by_template.spec.get_or_insert_default().template;
    template.metadata.get_or_insert_default().labels = forged.metadata.labels.clone();
    let refused = jobs
        .create(&create, &by_template)
        .await
        .expect_err("a policy");
    assert!(refused.to_string().contains(says), "{refused}");

    system
        .remove_policy("workflowexecution-labels")
        .await
        .expect("removed");
    let forged = forged_job(held, &succeeds.image, true);
    let stored = async || Ok(jobs.create(&create, &forged).await.is_ok());
    until_effective("the removal of the policy", stored)
        .await
        .expect("forged");
    let forged = forged_job(run, &succeeds.image, false);
    let forged = jobs.create(&create, &forged).await.expect("forged");
    let ended = |job: &Job| job_has_ended(job);
    wait::until(
        &jobs,
        &forged.name_any(),
        "the forged Job ends",
        SECONDS_30,
        ended,
    )
    .await
    .expect("ended");
    pods.create(&create, &forged_pod(busy, &succeeds.image))
        .await
        .expect("forged");
    pause(&system, Value::Null).await;

    for (name, reason) in [
        ("held", FailureReason::TaskFailed),
        ("busy", FailureReason::TaskFailed),
        ("run", FailureReason::ConfigurationError),
    ] {
        let ended = system.ended(name).await.expect("ended");
        let details = ended
            .status
            .as_ref()
            .and_then(|it| it.failure_details.as_ref());
        let details = details.unwrap_or_else(|| panic!("{name}: {}", condition(&ended, "Ready")));
        assert_eq!(details.reason, reason, "{name}: {}", details.message);
        if reason == FailureReason::TaskFailed {
            assert_eq!(details.exit_code, Some(3), "{name}");
        }
    }
}

/// BR-WE-014: whoever may create pods beside the controller can use its ServiceAccount.
#[tokio::test]
async fn controller_in_execution_namespace_does_not_start() {
    let cluster = cluster().await;
    let system = System::install(&cluster, "apart", &[])
        .await
        .expect("installed");
    let programs = system.programs.name();
    let arguments = ["--execution-namespace", programs, "--audit-file=-"];
    let ran = system.controller_command(&arguments).await;
    let (success, text) = ran.expect("executed");
    let says = format!("--execution-namespace {programs} is the namespace of this program");
    assert!(!success && text.contains(&says), "{text}");
}
