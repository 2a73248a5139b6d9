use std::sync::Arc;

use rstest::rstest;
use serde_json::{Value, json};
use wfe_model::remediation::RequestPhase;
use wfe_model::rules;
use wfe_model::rules::Violation;
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::TriState;

use super::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn entry() -> Arc<Workflow> {
    let yaml = format!(
        "metadata: {{workflowId: oom, version: 1.0.0}}\nexecution: {{engine: job, bundle: 'r.io/w:1@sha256:{HEX}'}}\nparameters: [{{name: LIMIT, type: string}}]\n"
    );
    Arc::new(Workflow::read("oom.yaml", &yaml).expect("valid").workflow)
}

fn request(change: impl FnOnce(&mut Value)) -> RemediationRequest {
    let mut request = json!({
        "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationRequest",
        "metadata": { "name": "rr-1", "namespace": "prod", "uid": "u-1", "resourceVersion": "7", "creationTimestamp": "2026-11-28T12:00:00Z" },
        "spec": { "signalName": "OOMKilled", "targetResource": { "kind": "Deployment", "name": "web", "namespace": "prod" } },
        "status": { "overallPhase": "Analyzing" },
    });
    change(&mut request);
    serde_json::from_value(request).expect("a RemediationRequest")
}

fn analysis(change: impl FnOnce(&mut Value)) -> AIAnalysis {
    let mut analysis = json!({
        "apiVersion": "kubernaut.ai/v1alpha1", "kind": "AIAnalysis",
        "metadata": { "name": "ai-1", "namespace": "prod" },
        "spec": { "remediationRequestRef": { "name": "rr-1" } },
        "status": {
            "phase": "Completed",
            "selectedWorkflow": {
                "workflowId": "oom", "version": "1.0.0", "executionEngine": "job", "confidence": 0.9,
                "containerImage": format!("r.io/w:1@sha256:{HEX}"), "parameters": { "LIMIT": "128Mi" },
            },
            "rootCauseAnalysis": { "affectedResource": { "kind": "Deployment", "name": "api", "namespace": "prod" } },
        },
    });
    change(&mut analysis);
    serde_json::from_value(analysis).expect("an AIAnalysis")
}

/// Decides with the catalog's entry, as a pass does.
fn step(request: &RemediationRequest, analysis: &AIAnalysis) -> Step {
    decide_with(request, Some(analysis), None, Some(Ok(entry())), None)
}

fn decide_with(
    request: &RemediationRequest,
    analysis: Option<&AIAnalysis>,
    execution: Option<&WorkflowExecution>,
    catalog: Option<Lookup>,
    created: Option<Created>,
) -> Step {
    decide(&Observed {
        request,
        analysis,
        execution,
        catalog,
        created,
        platform_namespace: "kubernaut-system",
        now: "2026-11-28T12:30:00Z".parse().expect("a time"),
    })
}

fn created(step: Step) -> WorkflowExecution {
    match step {
        Step::Create(execution) => *execution,
        other => panic!("no create: {other:?}"),
    }
}

fn reported(step: Step) -> Report {
    match step {
        Step::Report(report) | Step::Retry(report) => report,
        other => panic!("no report: {other:?}"),
    }
}

/// TR-6
#[test]
fn completed_analysis_is_created_as_an_execution_that_its_entry_accepts() {
    let request = request(|it| it["status"]["timeoutConfig"] = json!({ "executing": "5m" }));
    let looked_up = decide_with(&request, Some(&analysis(|_| ())), None, None, None);
    assert_eq!(looked_up, Step::Lookup("oom".to_owned()));
    let execution = created(step(&request, &analysis(|_| ())));
    assert_eq!(execution.name_any(), "we-rr-1");
    let owner = &execution.owner_references()[0];
    assert_eq!(
        (
            owner.uid.as_str(),
            owner.controller,
            owner.block_owner_deletion
        ),
        ("u-1", Some(true), Some(true))
    );
    let spec = &execution.spec;
    assert_eq!(
        spec.target_resource, "prod/Deployment/api",
        "that of the analysis"
    );
    assert_eq!(spec.execution_config.timeout.as_deref(), Some("5m"));
    assert_eq!(spec.execution_config.when_blocked.as_deref(), Some("Wait"));
    assert_eq!(spec.confidence, Some(0.9));
    rules::validate(spec, rules::check_in("prod", spec), &entry()).expect("accepted");
}

/// TR-6: both shapes of the field, and each of the fields for the image.
#[rstest]
#[case("containerImage", format!("r.io/w:1@sha256:{HEX}"), None)]
#[case("executionBundle", format!("r.io/w:1@sha256:{HEX}"), None)]
#[case("executionBundle", "r.io/w:1".to_owned(), Some(HEX))]
#[case("unset", String::new(), None)]
fn image_of_either_shape_is_that_of_the_execution(
    #[case] key: &str,
    #[case] image: String,
    #[case] digest: Option<&str>,
    #[values(false, true)] newer: bool,
) {
    let analysis = analysis(|it| {
        let selected = &mut it["status"]["selectedWorkflow"];
        selected
            .as_object_mut()
            .expect("fields")
            .remove("containerImage");
        selected[key] = json!(image);
        selected["executionBundleDigest"] = json!(digest.unwrap_or_default());
        if newer {
            let selected = it["status"]["selectedWorkflow"].take();
            it["status"] = json!({ "phase": "Completed", "rcaResult": {
                "selectedWorkflow": selected,
                "rootCauseAnalysis": { "remediationTarget": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "api", "namespace": "prod" } },
            } });
        }
    });
    let execution = created(step(&request(|_| ()), &analysis));
    let image = execution.spec.workflow_ref.container_image;
    assert_eq!(image, Some(format!("r.io/w:1@sha256:{HEX}")));
    assert_eq!(execution.spec.target_resource, "prod/Deployment/api");
}

/// TR-6, BR-WE-014: nothing is created, and the request says why.
#[rstest]
#[case("/status/selectedWorkflow/executionEngine", json!(""), RequestReason::EngineMissing, "there is no default")]
#[case("/status/selectedWorkflow/executionEngine", json!("Job"), RequestReason::UnsupportedEngine, "unsupported value \"Job\"")]
#[case("/status/selectedWorkflow/executionEngine", json!("tekton"), RequestReason::EngineMismatch, "must be the engine of workflow \"oom\" in the catalog, \"job\"")]
#[case("/status/selectedWorkflow", json!(null), RequestReason::NoWorkflowSelected, "without status.selectedWorkflow")]
#[case("/status/rootCauseAnalysis/affectedResource/namespace", json!("kube-system"), RequestReason::TargetNotAllowed, "an object in namespace prod must name a target there")]
#[case("/status/rootCauseAnalysis/affectedResource/namespace", json!(""), RequestReason::TargetNotAllowed, "\"Deployment/api\"")]
fn analysis_that_may_not_run_fails_the_request(
    #[case] pointer: &str,
    #[case] value: Value,
    #[case] reason: RequestReason,
    #[case] says: &str,
) {
    let analysis = analysis(|it| *it.pointer_mut(pointer).expect("a field") = value);
    let report = reported(step(&request(|_| ()), &analysis));
    assert_eq!(report.reason, reason.to_string());
    assert!(report.message.contains(says), "{}", report.message);
    assert_eq!(
        (report.phase, report.ready),
        (Some(RequestPhase::Failed), TriState::False)
    );
    assert_eq!(report.outcome, Some("ManualReviewRequired"));
}

#[test]
fn request_of_the_platform_may_name_any_target() {
    let request = request(|it| it["metadata"]["namespace"] = json!("kubernaut-system"));
    let execution = created(step(&request, &analysis(|_| ())));
    assert_eq!(execution.spec.target_resource, "prod/Deployment/api");
}

/// A remediation that was decided long ago does not run because the catalog is back.
#[rstest]
#[case(json!(null), "2026-11-28T11:31:00Z", true)]
#[case(json!(null), "2026-11-28T11:29:00Z", false)]
#[case(json!({ "global": "2h" }), "2026-11-28T11:29:00Z", true)]
#[case(json!({ "global": "10m" }), "2026-11-28T12:19:00Z", false)]
fn request_older_than_its_timeout_fails(
    #[case] timeouts: Value,
    #[case] created_at: &str,
    #[case] runs: bool,
) {
    let request = request(|it| {
        it["metadata"]["creationTimestamp"] = json!(created_at);
        it["status"]["timeoutConfig"] = timeouts;
    });
    match step(&request, &analysis(|_| ())) {
        Step::Create(_) => assert!(runs),
        Step::Report(report) => {
            assert_eq!((report.reason.as_str(), runs), ("RequestTooOld", false));
        }
        other => panic!("{other:?}"),
    }
}

/// An approval is given by the phase Executing.
#[test]
fn analysis_that_requires_an_approval_waits_for_it() {
    let analysis = analysis(|it| it["status"]["approvalRequired"] = json!(true));
    let report = reported(step(&request(|_| ()), &analysis));
    assert_eq!(
        (report.reason.as_str(), report.phase),
        ("ApprovalRequired", None)
    );
    let approved = request(|it| it["status"]["overallPhase"] = json!("Executing"));
    created(step(&approved, &analysis));
}

/// The kind alone would name Kubernetes' own Service.
#[rstest]
#[case("serving.knative.dev/v1", "TargetNotAllowed")]
#[case("apps/v1", "")]
#[case("networking.k8s.io/v1", "")]
#[case("v1", "")]
fn target_of_another_group_must_be_listed_by_the_workflow(
    #[case] api_version: &str,
    #[case] reason: &str,
) {
    let analysis = analysis(|it| {
        it["status"]["rootCauseAnalysis"]["affectedResource"]["apiVersion"] = json!(api_version);
    });
    match step(&request(|_| ()), &analysis) {
        Step::Create(_) => assert_eq!(reason, ""),
        Step::Report(report) => assert_eq!(report.reason, reason),
        other => panic!("{other:?}"),
    }
}

/// The text of an outage changes: it is stored once.
#[test]
fn outage_is_stored_once() {
    let now = "2026-11-28T12:00:00Z".parse().expect("a time");
    let report = |why: &str| Report::delayed(RequestReason::CatalogUnavailable, why);
    let patch = report("port 1")
        .patch(&request(|_| ()), now)
        .expect("a patch");
    let stored = request(|it| it["status"]["conditions"] = patch["status"]["conditions"].clone());
    assert_eq!(report("port 2").patch(&stored, now), None);
}

#[test]
fn request_for_another_cluster_fails() {
    let request = request(|it| it["spec"]["clusterID"] = json!("edge-7"));
    let report = reported(step(&request, &analysis(|_| ())));
    assert_eq!(
        report.reason,
        RequestReason::ClusterNotSupported.to_string()
    );
}

/// Phases in which another controller decides, and final ones.
#[rstest]
fn request_in_foreign_or_final_phase_is_left_alone(
    #[values(
        "AwaitingApproval",
        "Blocked",
        "Completed",
        "Failed",
        "TimedOut",
        "Skipped",
        "Cancelled"
    )]
    phase: &str,
) {
    let request = request(|it| it["status"]["overallPhase"] = json!(phase));
    assert_eq!(step(&request, &analysis(|_| ())), Step::Wait);
}

#[rstest]
fn analysis_that_is_not_completed_is_waited_for(
    #[values("", "Pending", "Investigating", "Analyzing", "Failed")] phase: &str,
) {
    let analysis = analysis(|it| it["status"]["phase"] = json!(phase));
    assert_eq!(step(&request(|_| ()), &analysis), Step::Wait);
    assert_eq!(
        decide_with(&request(|_| ()), None, None, None, None),
        Step::Wait
    );
}

#[test]
fn catalog_answers_are_told_apart() {
    let (request, analysis) = (request(|_| ()), analysis(|_| ()));
    let with = |answer| decide_with(&request, Some(&analysis), None, Some(Err(answer)), None);
    let Step::Retry(report) = with(LookupError::Unavailable("down".to_owned())) else {
        panic!("an outage is retried");
    };
    assert_eq!((report.phase, report.ready), (None, TriState::Unknown));
    let workflow_id = "oom".to_owned();
    let violation = Violation::WorkflowNotFound { workflow_id };
    let report = reported(with(LookupError::Unusable(violation)));
    assert_eq!(report.phase, Some(RequestPhase::Failed));
    assert!(
        report.message.contains("not found in the catalog"),
        "{}",
        report.message
    );
}

#[test]
fn result_of_create_is_reported_in_the_words_of_the_webhook() {
    let (request, analysis) = (request(|_| ()), analysis(|_| ()));
    let with = |created| {
        decide_with(
            &request,
            Some(&analysis),
            None,
            Some(Ok(entry())),
            Some(created),
        )
    };
    let report = reported(with(Created::Denied(
        "spec.parameters[X]: unknown parameter".to_owned(),
    )));
    assert_eq!(
        (report.reason.as_str(), report.phase),
        ("AdmissionDenied", Some(RequestPhase::Failed))
    );
    assert_eq!(report.message, "spec.parameters[X]: unknown parameter");
    let Step::Retry(report) = with(Created::Unanswered("no answer".to_owned())) else {
        panic!("an outage is retried");
    };
    assert_eq!(
        (report.reason.as_str(), report.phase),
        ("ApiServerUnavailable", None)
    );
}

fn execution(change: impl FnOnce(&mut Value)) -> WorkflowExecution {
    let execution = created(step(&request(|_| ()), &analysis(|_| ())));
    let mut execution = serde_json::to_value(execution).expect("JSON");
    change(&mut execution);
    serde_json::from_value(execution).expect("a WorkflowExecution")
}

fn report_of(execution: &WorkflowExecution) -> Report {
    let request = request(|_| ());
    reported(decide_with(&request, None, Some(execution), None, None))
}

/// BR-WE-010, BR-WE-012: a WorkflowExecution that waits makes its request Blocked, with a reason of
/// Kubernaut.
#[rstest]
#[case("ResourceBusy", Some("ResourceBusy"), RequestPhase::Blocked)]
#[case(
    "RecentlyRemediated",
    Some("RecentlyRemediated"),
    RequestPhase::Blocked
)]
#[case("BackoffActive", Some("ExponentialBackoff"), RequestPhase::Blocked)]
#[case("Paused", None, RequestPhase::Executing)]
fn waiting_execution_blocks_the_request(
    #[case] reason: &str,
    #[case] block_reason: Option<&str>,
    #[case] phase: RequestPhase,
) {
    let execution = execution(|it| {
        it["status"] = json!({ "phase": "Pending", "conditions": [{
            "type": "Blocked", "status": "True", "reason": reason, "message": "why",
            "lastTransitionTime": "2026-11-28T12:00:00Z",
        }] });
    });
    let report = report_of(&execution);
    assert_eq!(
        (report.block_reason, report.phase),
        (block_reason, Some(phase))
    );
    assert_eq!(
        (report.reason.as_str(), report.message.as_str()),
        (reason, "why")
    );
    assert_eq!(report.execution.as_deref(), Some("we-rr-1"));
}

#[rstest]
#[case(json!({}), RequestPhase::Executing, "WorkflowExecutionCreated", None)]
#[case(json!({ "phase": "Running" }), RequestPhase::Executing, "WorkflowExecutionRunning", None)]
#[case(json!({ "phase": "Succeeded" }), RequestPhase::Completed, "WorkflowExecutionSucceeded", Some("Remediated"))]
#[case(json!({ "phase": "Failed", "failureDetails": { "reason": "OOMKilled", "message": "m", "failedAt": "2026-11-28T12:00:00Z", "naturalLanguageSummary": "It ran out of memory.", "wasExecutionFailure": true } }), RequestPhase::Failed, "OOMKilled", Some("ManualReviewRequired"))]
#[case(json!({ "phase": "Failed", "failureDetails": { "reason": "DeadlineExceeded", "message": "m", "failedAt": "2026-11-28T12:00:00Z", "naturalLanguageSummary": "It took too long.", "wasExecutionFailure": true } }), RequestPhase::Failed, "DeadlineExceeded", Some("ManualReviewRequired"))]
#[case(json!({ "phase": "Failed", "failureDetails": { "reason": "Cancelled", "message": "m", "failedAt": "2026-11-28T12:00:00Z", "naturalLanguageSummary": "It was cancelled.", "wasExecutionFailure": false } }), RequestPhase::Failed, "Cancelled", Some("ManualReviewRequired"))]
#[case(json!({ "phase": "Skipped", "skipDetails": { "reason": "PreviousExecutionFailed", "message": "clear the block", "skippedAt": "2026-11-28T12:00:00Z" } }), RequestPhase::Failed, "PreviousExecutionFailed", Some("ManualReviewRequired"))]
fn state_of_execution_is_reported(
    #[case] status: Value,
    #[case] phase: RequestPhase,
    #[case] reason: &str,
    #[case] outcome: Option<&str>,
) {
    let report = report_of(&execution(|it| it["status"] = status));
    assert_eq!(
        (report.phase, report.reason.as_str(), report.outcome),
        (Some(phase), reason, outcome)
    );
}

/// BR-WE-009: one WorkflowExecution per request, also of requests of the same name.
#[test]
fn execution_of_another_request_is_not_adopted() {
    let predecessor = execution(|it| it["metadata"]["ownerReferences"][0]["uid"] = json!("u-0"));
    let request = request(|_| ());
    let step = decide_with(
        &request,
        Some(&analysis(|_| ())),
        Some(&predecessor),
        None,
        None,
    );
    let Step::Retry(report) = step else {
        panic!("the garbage collector deletes it");
    };
    assert_eq!((report.phase, report.reason.as_str()), (None, "NameTaken"));
    let stranger = execution(|it| it["metadata"]["ownerReferences"] = json!(null));
    let report = reported(decide_with(&request, None, Some(&stranger), None, None));
    assert_eq!(
        (report.phase, report.reason.as_str()),
        (Some(RequestPhase::Failed), "NameTaken")
    );
}

#[test]
fn deleted_execution_is_not_created_again() {
    let request = request(|it| it["status"]["workflowExecutionRef"] = json!({ "name": "we-rr-1" }));
    let report = reported(step(&request, &analysis(|_| ())));
    assert_eq!(
        report.reason,
        RequestReason::WorkflowExecutionDeleted.to_string()
    );
}

/// A write that changes nothing is not made, and other writers' conditions stay.
#[test]
fn patch_has_what_has_changed() {
    let now = "2026-11-28T12:00:00Z".parse().expect("a time");
    let mut other = request(|it| {
        it["status"]["conditions"] = json!([{ "type": "SignalProcessed", "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "2026-11-28T11:00:00Z" }]);
    });
    let report = report_of(&execution(|it| {
        it["status"] = json!({ "phase": "Running" });
    }));
    let patch = report.patch(&other, now).expect("a patch");
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    assert_eq!(patch["status"]["overallPhase"], "Executing");
    assert_eq!(patch["status"]["workflowExecutionRef"]["name"], "we-rr-1");
    let kinds: Vec<_> = patch["status"]["conditions"]
        .as_array()
        .expect("conditions")
        .iter()
        .map(|it| it["type"].clone())
        .collect();
    assert_eq!(kinds, ["SignalProcessed", "WorkflowExecutionReady"]);
    assert_eq!(patch["status"].get("outcome"), None, "unchanged");
    let mut stored = serde_json::to_value(other.status.take()).expect("JSON");
    for (key, value) in patch["status"].as_object().expect("fields") {
        stored[key] = value.clone();
    }
    other.status = serde_json::from_value(stored).expect("a status");
    assert_eq!(report.patch(&other, now), None);
}

#[test]
fn long_name_is_cut_and_hashed() {
    let long = "r".repeat(252);
    let name = crate::selection::execution_name(&long);
    assert_eq!(name.len(), 253);
    assert!(name.starts_with("we-rrr"), "{name}");
    assert_ne!(
        name,
        crate::selection::execution_name(&("r".repeat(251) + "s"))
    );
    assert_eq!(crate::selection::execution_name("a"), "we-a");
}
