use std::sync::Arc;

use kube::core::ObjectList;
use rstest::rstest;
use serde_json::{Value, json};
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::FailureReason;

use super::build::{build, resolution_request};
use super::objects::{PipelineRun, StepState, TaskRun};
use super::pipeline::misfit;
use super::prune;
use super::read::{began, read};
use crate::execution::{Cause, Execution, Facts, FailedTask, Progress, Refusal, Tasks};
use crate::failure::classify;
use crate::names::STARTED;
use crate::plan::fixture::{HEX, plan};
use crate::pod;
use crate::seen::Pod;

/// BR-WE-014
#[test]
fn build_full_plan_returns_expected_pipeline_run() {
    let param = |name: &str, value: &str| json!({ "name": name, "value": value });
    let bundle = format!("r.io/w/restart@sha256:{HEX}");
    let built = json!(build(&plan(Engine::Tekton, "prod")));
    assert_eq!(
        built["metadata"]["labels"]["kubernaut.ai/execution-engine"],
        "tekton"
    );
    assert_eq!(
        built["metadata"]["annotations"]["kubernaut.ai/image"],
        bundle
    );
    let expected = json!({
        "status": "PipelineRunPending",
        "pipelineRef": {
            "resolver": "bundles",
            "params": [param("bundle", &bundle), param("name", "workflow"), param("kind", "pipeline")],
        },
        "params": [
            param("TARGET_RESOURCE", "prod/Deployment/web"),
            param("KUBERNAUT_WORKFLOW_EXECUTION", "prod/we-1"),
            param("KUBERNAUT_REMEDIATION_REQUEST", "rr-1"),
            param("TARGET_RESOURCE_API_VERSION", "apps/v1"),
            param("TARGET_RESOURCE_KIND", "Deployment"),
            param("TARGET_RESOURCE_NAME", "web"),
            param("TARGET_RESOURCE_NAMESPACE", "prod"),
            param("ADDED", "3"),
            param("TEXT", "$HOME"),
        ],
        "timeouts": { "pipeline": "30m" },
        "taskRunTemplate": {
            "serviceAccountName": "runner",
            "podTemplate": {
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" },
                },
                "enableServiceLinks": false,
            },
        },
        "workspaces": [
            { "name": "secret-registry", "secret": { "secretName": "registry" } },
            { "name": "configmap-limits.v1", "configMap": { "name": "limits.v1" } },
        ],
    });
    assert_eq!(built["spec"], expected);
}

/// BR-WE-014: the request is deleted with its PipelineRun.
#[test]
fn resolution_request_is_owned_by_its_pipeline_run() {
    let built = json!(resolution_request(&plan(Engine::Tekton, "prod"), "run-1"));
    let owner = &built["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("PipelineRun"), &json!("run-1"))
    );
    assert_eq!(
        built["metadata"]["labels"]["resolution.tekton.dev/type"],
        "bundles"
    );
    assert_eq!(built["spec"]["params"][1]["value"], "workflow");
}

/// BR-WE-014: Tekton ignores params and workspaces that a pipeline does not declare.
#[rstest]
#[case(&["TEXT", "ADDED", "OTHER"], &["secret-registry", "configmap-limits.v1"], None)]
#[case(&["TEXT"], &["secret-registry", "configmap-limits.v1"], Some((Refusal::Parameters, "declare ADDED")))]
#[case(&["TEXT", "ADDED"], &["configmap-limits.v1"], Some((Refusal::Workspaces, "declare secret-registry")))]
fn misfit_names_what_the_pipeline_does_not_declare(
    #[case] params: &[&str],
    #[case] workspaces: &[&str],
    #[case] expected: Option<(Refusal, &str)>,
) {
    let named = |names: &[&str]| {
        names
            .iter()
            .map(|name| json!({ "name": name }))
            .collect::<Value>()
    };
    let pipeline = json!({ "kind": "Pipeline", "spec": { "params": named(params), "workspaces": named(workspaces), "tasks": [] } });
    let found = misfit(
        &plan(Engine::Tekton, "prod"),
        pipeline.to_string().as_bytes(),
    );
    assert_eq!(found.as_ref().map(|it| it.0), expected.map(|it| it.0));
    if let Some((_, message)) = found {
        assert!(message.contains(expected.expect("a misfit").1), "{message}");
    }
}

/// BR-WE-014
#[test]
fn misfit_text_that_is_no_pipeline_is_refused() {
    let (refusal, message) = misfit(&plan(Engine::Tekton, "prod"), b"[]").expect("refused");
    assert_eq!(refusal, Refusal::Bundle, "{message}");
}

fn fixture<K: serde::de::DeserializeOwned>(name: &str) -> K {
    let path = format!("{}/testdata/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("a fixture");
    serde_json::from_str(&text).expect("an object")
}

/// Recorded objects, pruned as the watches prune them.
fn recorded(name: &str) -> (PipelineRun, Vec<Arc<TaskRun>>, Vec<Arc<Pod>>) {
    let mut run = fixture(&format!("pipelinerun-{name}"));
    prune::pipeline_run(&mut run);
    let task_runs: ObjectList<TaskRun> = fixture(&format!("taskruns-{name}"));
    let task_runs = task_runs.items.into_iter().map(|mut task_run| {
        prune::task_run(&mut task_run);
        Arc::new(task_run)
    });
    let pods: ObjectList<Pod> = fixture(&format!("pods-pipelinerun-{name}"));
    let pods = pods.items.into_iter().map(|mut pod| {
        pod::prune(&mut pod);
        Arc::new(pod)
    });
    (run, task_runs.collect(), pods.collect())
}

fn read_fixture(name: &str) -> Execution {
    let (run, task_runs, pods) = recorded(name);
    read(&run, &task_runs, &pods)
}

/// BR-WE-014
#[test]
fn read_succeeded_run_has_all_tasks_completed() {
    let execution = read_fixture("ok");
    assert!(
        matches!(execution.progress, Progress::Succeeded { at: Some(_), .. }),
        "{execution:?}"
    );
    assert_eq!(
        execution.tasks,
        Tasks {
            completed: 2,
            total: 2
        }
    );
    assert!(execution.began.is_some() && !execution.held && !execution.ending);
    assert_eq!(execution.reference.kind, "PipelineRun");
}

/// BR-WE-012
#[rstest]
#[case(
    "fail3",
    FailureReason::TaskFailed,
    true,
    "step main of task second ended with exit code 3"
)]
#[case(
    "timeout",
    FailureReason::DeadlineExceeded,
    true,
    "failed to finish within \"1s\""
)]
#[case("nobundle", FailureReason::ImagePullBackOff, false, "NAME_UNKNOWN")]
#[case(
    "cancelled",
    FailureReason::Cancelled,
    false,
    "cancelled by another client"
)]
fn read_failed_run_is_classified_by_its_reason(
    #[case] name: &str,
    #[case] reason: FailureReason,
    #[case] ran: bool,
    #[case] words: &str,
) {
    let execution = read_fixture(name);
    let Progress::Failed { at: Some(_), facts } = &execution.progress else {
        panic!("not failed: {execution:?}");
    };
    let failure = classify(facts, execution.began.is_some(), None);
    assert_eq!(
        (failure.reason, failure.was_execution_failure),
        (reason, ran)
    );
    assert!(failure.message.contains(words), "{}", failure.message);
}

/// BR-WE-012
#[test]
fn read_failed_run_names_task_index_and_step() {
    let execution = read_fixture("fail3");
    let Progress::Failed { facts, .. } = execution.progress else {
        panic!("not failed: {execution:?}");
    };
    let expected = FailedTask {
        name: "second".to_owned(),
        index: Some(1),
        step: Some("main".to_owned()),
    };
    assert_eq!(facts.task, Some(expected));
    assert_eq!(facts.container.map(|it| it.exit_code), Some(3));
}

/// BR-WE-009: a run that was never started has run nothing; one that is pending again was held back
/// by another client.
#[test]
fn read_pending_run_is_held_until_it_was_started() {
    let mut run: PipelineRun = build(&plan(Engine::Tekton, "prod"));
    assert!(read(&run, &[], &[]).held);
    run.metadata
        .annotations
        .get_or_insert_default()
        .insert(STARTED.to_owned(), "true".to_owned());
    let execution = read(&run, &[], &[]);
    assert!(!execution.held);
    let Progress::Active {
        waiting: Some(waiting),
    } = execution.progress
    else {
        panic!("not held back: {execution:?}");
    };
    assert_eq!(waiting.cause, Cause::Suspended);
}

/// BR-WE-009: a cancelled run is active until its last tasks have ended.
#[test]
fn read_cancelled_run_is_ending_until_it_has_ended() {
    let (mut run, ..) = recorded("ok");
    run.spec.status = Some("CancelledRunFinally".to_owned());
    assert!(!read(&run, &[], &[]).ending);
    run.status = None;
    let execution = read(&run, &[], &[]);
    assert!(execution.ending && execution.is_active());
}

/// The result `summary` of a pipeline is kept, cut to 4 KiB.
#[test]
fn read_succeeded_run_keeps_its_summary() {
    let (mut run, ..) = recorded("ok");
    let results = json!([{ "name": "summary", "value": "ä".repeat(3000) }, { "name": "other", "value": ["x"] }]);
    let status = run.status.get_or_insert_default();
    status.results = serde_json::from_value(results).expect("results");
    let Progress::Succeeded {
        summary: Some(summary),
        ..
    } = read(&run, &[], &[]).progress
    else {
        panic!("no summary");
    };
    assert_eq!(summary.len(), 4096);
}

/// BR-WE-012: the step's start, not that of Tekton's own containers.
#[test]
fn began_is_the_start_of_the_first_step() {
    let (_, _, pods) = recorded("fail3");
    assert!(pods.iter().all(|pod| began(pod).is_some()));
}

/// The failed TaskRun of the fixture with its step changed.
fn failed_with(change: impl FnOnce(&mut StepState)) -> Execution {
    let (run, mut task_runs, pods) = recorded("fail3");
    let failed = task_runs.last_mut().expect("a TaskRun");
    let status = Arc::make_mut(failed).status.get_or_insert_default();
    change(status.steps.first_mut().expect("a step"));
    read(&run, &task_runs, &pods)
}

fn facts_of(execution: Execution) -> Facts {
    match execution.progress {
        Progress::Failed { facts, .. } => facts,
        other => panic!("not failed: {other:?}"),
    }
}

/// BR-WE-012: a step whose error the task ignores is not the failed one.
#[test]
fn failed_step_is_not_one_whose_error_is_ignored() {
    let ignored = |step: &mut StepState| step.termination_reason = Some("Continued".to_owned());
    assert_eq!(facts_of(failed_with(ignored)).container, None);
}

/// BR-WE-012: Tekton makes up how a step ended that it stops. One that ran may have changed something.
#[rstest]
#[case("TaskRunTimeout", true)]
#[case("TaskRunImagePullFailed", false)]
fn made_up_end_of_step_counts_only_if_it_ran(#[case] reason: &str, #[case] ran: bool) {
    let facts = facts_of(failed_with(|step| {
        let terminated = step.terminated.get_or_insert_default();
        terminated.container_id = None;
        terminated.reason = Some(reason.to_owned());
    }));
    assert_eq!(facts.container.is_some_and(|it| it.started), ran);
}
