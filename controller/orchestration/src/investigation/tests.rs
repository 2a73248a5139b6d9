use std::sync::Arc;

use rstest::rstest;
use wfe_model::rules::Violation;
use wfe_model::workflow::Workflow;

use super::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const NOW: &str = "2026-11-28T12:00:00Z";

fn entry() -> Arc<Workflow> {
    let yaml = format!(
        "metadata: {{workflowId: oom, version: 1.0.0}}\nexecution: {{engine: job, bundle: 'r.io/w:1@sha256:{HEX}'}}\nparameters: [{{name: LIMIT, type: string}}]\n"
    );
    Arc::new(Workflow::read("oom.yaml", &yaml).expect("valid").workflow)
}

fn analysis(status: impl Into<Value>) -> AIAnalysis {
    let status = status.into();
    let analysis = json!({
        "apiVersion": "kubernaut.ai/v1alpha1", "kind": "AIAnalysis",
        "metadata": { "name": "ai-1", "namespace": "prod", "uid": "u-1", "creationTimestamp": "2026-11-28T11:58:00Z" },
        "spec": {
            "remediationRequestRef": { "name": "rr-1" }, "remediationId": "rr-1",
            "analysisRequest": { "signalContext": {
                "signalName": "OOMKilled", "severity": "critical", "environment": "production", "businessPriority": "P1",
                "targetResource": { "kind": "Deployment", "name": "web", "namespace": "prod" },
            } },
        },
        "status": status,
    });
    serde_json::from_value(analysis).expect("an AIAnalysis")
}

fn investigating(change: impl FnOnce(&mut Value)) -> AIAnalysis {
    let mut status = json!({
        "phase": "Investigating", "approvalRequired": false, "needsHumanReview": false,
        "investigationSession": { "id": "s-1", "generation": 1, "createdAt": "2026-11-28T11:59:00Z", "pollCount": 0 },
    });
    change(&mut status);
    analysis(status)
}

fn observed(analysis: &AIAnalysis) -> Observed {
    Observed {
        analysis: analysis.clone(),
        platform_namespace: "kubernaut-system".to_owned(),
        reserved: false,
        begun: None,
        session: None,
        result: None,
        catalog: None,
        now: NOW.parse().expect("a time"),
    }
}

/// What the step stores, and when it is decided again.
fn stored(step: Step) -> (Value, Option<Duration>) {
    match step {
        Step::Store { status, again } => (status, again),
        other => panic!("nothing stored: {other:?}"),
    }
}

fn answer(change: impl FnOnce(&mut Value)) -> Value {
    let mut answer = json!({
        "needs_human_review": false,
        "selected_workflow": {
            "workflow_id": "oom", "action_type": "IncreaseMemory", "version": "1.0.0", "confidence": 0.92,
            "rationale": "it fits", "execution_engine": "job", "parameters": { "LIMIT": "128Mi" },
            "execution_bundle": format!("r.io/w:1@sha256:{HEX}"), "execution_bundle_digest": HEX,
        },
        "root_cause_analysis": { "summary": "the limit is too low", "severity": "critical", "contributing_factors": [] },
    });
    change(&mut answer);
    answer
}

fn concluded(answer: Value, catalog: Option<Lookup>) -> Step {
    let analysis = investigating(|_| ());
    decide(&Observed {
        session: Some(Ok(Session::Completed)),
        result: Some(Ok(Outcome::Result(answer))),
        catalog,
        ..observed(&analysis)
    })
}

/// The status that says that a session is begun, and the analysis with it.
fn reserved(step: Step) -> (Value, Observed) {
    let Step::Reserve(status) = step else {
        panic!("nothing reserved: {step:?}");
    };
    // The merge patch removes what is null.
    let mut merged = status.clone();
    let session = merged["investigationSession"].as_object_mut();
    session.expect("a session").remove("lastPolled");
    let reserved = Observed {
        reserved: true,
        ..observed(&analysis(merged))
    };
    (status, reserved)
}

/// A session is counted before it is begun, and its id stored before it is polled.
#[test]
fn session_is_reserved_then_begun_then_stored() {
    let (status, observed_reserved) = reserved(decide(&observed(&analysis(json!({})))));
    assert_eq!(status["phase"], "Investigating");
    assert_eq!(status["investigationSession"]["generation"], 1);
    assert_eq!(status["investigationSession"]["createdAt"], NOW);
    let Step::Begin(incident) = decide(&observed_reserved) else {
        panic!("a session is begun");
    };
    let ids = (
        incident.incident_id.as_str(),
        incident.remediation_id.as_str(),
    );
    assert_eq!(ids, ("u-1", "rr-1"));
    let names = (
        incident.signal_name.as_str(),
        incident.resource_name.as_str(),
    );
    assert_eq!(names, ("OOMKilled", "web"));
    let begun = Some(Ok("s-1".to_owned()));
    let (status, _) = stored(decide(&Observed {
        begun,
        ..observed_reserved
    }));
    assert_eq!(status["investigationSession"], json!({ "id": "s-1" }));
    assert_eq!(
        decide(&observed(&investigating(|_| ()))),
        Step::Poll("s-1".to_owned())
    );
}

/// The process died after it may have begun a session: another one is begun, and counted.
#[test]
fn session_without_id_after_a_crash_counts() {
    let crashed = investigating(|it| it["investigationSession"]["id"] = json!(""));
    let (status, _) = reserved(decide(&observed(&crashed)));
    assert_eq!(status["investigationSession"]["generation"], 2);
    let last = investigating(|it| {
        it["investigationSession"] = json!({ "id": "", "generation": 5, "createdAt": NOW });
    });
    let (status, _) = stored(decide(&observed(&last)));
    assert_failed(&status, AnalysisReason::SessionLost);
}

fn assert_failed(status: &Value, reason: AnalysisReason) {
    assert_eq!(status["phase"], "Failed");
    assert_eq!(status["reason"], reason.category());
    let message = status["message"].as_str().expect("text");
    assert!(message.starts_with(reason.as_ref()), "{message}");
    assert_eq!(status["approvalRequired"], false, "required");
    assert!(status["needsHumanReview"].is_boolean(), "required");
}

#[test]
fn session_that_runs_is_polled_less_and_less() {
    let running = investigating(|_| ());
    let session = Some(Ok(Session::Running));
    let (status, again) = stored(decide(&Observed {
        session,
        ..observed(&running)
    }));
    assert_eq!(
        status["investigationSession"],
        json!({ "lastPolled": NOW, "pollCount": 1 })
    );
    assert_eq!(again, Some(Duration::from_millis(500)));
    let late = investigating(|it| {
        it["investigationSession"]["pollCount"] = json!(9);
        it["investigationSession"]["lastPolled"] = json!("2026-11-28T11:59:50Z");
    });
    assert_eq!(decide(&observed(&late)), Step::Wait(Duration::from_secs(5)));
    let not_ready = Some(Ok(Outcome::NotReady));
    let (status, _) = stored(decide(&Observed {
        result: not_ready,
        ..observed(&running)
    }));
    assert_eq!(status["investigationSession"]["pollCount"], 1);
}

#[test]
fn lost_session_is_begun_again_and_counted() {
    let lost = || Some(Ok(Session::Lost));
    let first = investigating(|_| ());
    let (status, _) = reserved(decide(&Observed {
        session: lost(),
        ..observed(&first)
    }));
    assert_eq!(status["investigationSession"]["generation"], 2);
    let result = Some(Ok(Outcome::Lost));
    reserved(decide(&Observed {
        result,
        ..observed(&first)
    }));
    let fifth = investigating(|it| it["investigationSession"]["generation"] = json!(5));
    let (status, _) = stored(decide(&Observed {
        session: lost(),
        ..observed(&fifth)
    }));
    assert_failed(&status, AnalysisReason::SessionLost);
}

#[test]
fn outage_is_reported_once_and_retried_and_a_refusal_is_final() {
    let (_, new) = reserved(decide(&observed(&analysis(json!({})))));
    let unavailable = || Some(Err(HolmesError::Unavailable("503, request 7".to_owned())));
    let (status, again) = stored(decide(&Observed {
        begun: unavailable(),
        ..new
    }));
    assert_eq!(status.get("phase"), None);
    assert_eq!(
        (&status["reason"], again),
        (&json!("TransientError"), Some(RETRY))
    );
    // No session was begun: the next attempt has the same generation, after a while.
    let session = json!({ "createdAt": null, "lastPolled": NOW });
    assert_eq!(status["investigationSession"], session);
    let again = |seconds: i64| {
        let delayed = investigating(|it| {
            it["investigationSession"] = json!({ "id": "", "generation": 1, "lastPolled": NOW });
        });
        let now = NOW.parse::<Timestamp>().expect("a time") + SignedDuration::from_secs(seconds);
        decide(&Observed {
            now,
            ..observed(&delayed)
        })
    };
    assert_eq!(
        again(1),
        Step::Wait(Duration::from_secs(4)),
        "its own write wakes it"
    );
    assert_eq!(
        reserved(again(5)).0["investigationSession"]["generation"],
        1
    );
    let running = investigating(|it| {
        it["reason"] = json!("TransientError");
        it["message"] = json!("HolmesUnavailable: 503, request 8");
    });
    let session = Some(Err(HolmesError::Unavailable("503, request 9".to_owned())));
    assert_eq!(
        decide(&Observed {
            session,
            ..observed(&running)
        }),
        Step::Wait(RETRY)
    );
    let (_, new) = reserved(decide(&observed(&analysis(json!({})))));
    let refused = Some(Err(HolmesError::Refused("400: severity".to_owned())));
    let (status, _) = stored(decide(&Observed {
        begun: refused,
        ..new
    }));
    assert_failed(&status, AnalysisReason::AnalysisRefused);
}

#[test]
fn analysis_that_may_not_be_investigated_fails() {
    let changed = |change: fn(&mut AIAnalysis)| {
        let mut analysis = investigating(|_| ());
        change(&mut analysis);
        stored(decide(&observed(&analysis))).0
    };
    let old = changed(|it| {
        let old = "2026-11-28T11:29:00Z".parse().expect("a time");
        it.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(old));
    });
    assert_failed(&old, AnalysisReason::InvestigationTimeout);
    let elsewhere = changed(|it| {
        "kube-system".clone_into(
            &mut it
                .spec
                .analysis_request
                .signal_context
                .target_resource
                .namespace,
        );
    });
    assert_failed(&elsewhere, AnalysisReason::TargetNotAllowed);
    let nothing = changed(|it| it.spec.analysis_request.signal_context.signal_name.clear());
    assert_failed(&nothing, AnalysisReason::InvalidSpec);
    let target = json!({ "kind": "Node", "name": "node-1" });
    let answer = answer(|it| it["root_cause_analysis"]["affectedResource"] = target);
    let (status, _) = stored(concluded(answer, Some(Ok(entry()))));
    assert_failed(&status, AnalysisReason::TargetNotAllowed);
}

/// TR-6: the engine is the catalog's.
#[rstest]
#[case(json!("job"), None)]
#[case(json!(null), Some("the analysis named no engine"))]
#[case(json!("tekton"), Some("the analysis named engine \"tekton\""))]
#[case(json!("bash"), Some("the analysis named engine \"bash\""))]
fn engine_of_catalog_is_stored_and_another_claim_is_a_warning(
    #[case] claim: Value,
    #[case] warning: Option<&str>,
) {
    let answer = answer(|it| it["selected_workflow"]["execution_engine"] = claim);
    let lookup = concluded(answer.clone(), None);
    assert_eq!(lookup, Step::Lookup("oom".to_owned()));
    let (status, again) = stored(concluded(answer, Some(Ok(entry()))));
    assert_eq!((&status["phase"], again), (&json!("Completed"), None));
    let selected = &status["selectedWorkflow"];
    assert_eq!(selected["executionEngine"], "job");
    assert_eq!(
        selected["executionBundle"],
        format!("r.io/w:1@sha256:{HEX}")
    );
    let cause = &status["rootCauseAnalysis"];
    assert_eq!(
        (&cause["severity"], &cause["signalType"]),
        (&json!("critical"), &json!("OOMKilled"))
    );
    let warnings = status["warnings"].as_array().expect("a list");
    match warning {
        None => assert_eq!(warnings.len(), 0),
        Some(says) => assert!(
            warnings[0].as_str().expect("text").starts_with(says),
            "{warnings:?}"
        ),
    }
}

/// BR-WE-014: an answer that a model has made up fails the analysis, in words.
#[rstest]
#[case("/selected_workflow", json!(null), AnalysisReason::NoWorkflowSelected, "no workflow")]
#[case("/selected_workflow/confidence", json!(0.69), AnalysisReason::LowConfidence, "0.69: must be from 0.7 to 1")]
#[case("/selected_workflow/confidence", json!(7), AnalysisReason::LowConfidence, "7: must be from 0.7 to 1")]
#[case("/selected_workflow/workflow_id", json!(7), AnalysisReason::InvalidAnswer, "expected a string")]
#[case("/selected_workflow/version", json!("9.9.9"), AnalysisReason::SelectionInvalid, "spec.workflowRef.version: ")]
#[case("/selected_workflow/execution_bundle", json!("r.io/evil@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"), AnalysisReason::SelectionInvalid, "must be those in the catalog")]
#[case("/selected_workflow/parameters", json!({ "SHELL": "sh" }), AnalysisReason::SelectionInvalid, "spec.parameters[SHELL]: unknown parameter")]
#[case("/selected_workflow/parameters", json!([1]), AnalysisReason::InvalidAnswer, "expected a map")]
#[case("/needs_human_review", json!(true), AnalysisReason::HumanReviewRequired, "review by a person")]
fn wrong_answer_fails_the_analysis(
    #[case] pointer: &str,
    #[case] value: Value,
    #[case] reason: AnalysisReason,
    #[case] says: &str,
) {
    let answer = answer(|it| *it.pointer_mut(pointer).expect("a field") = value);
    let (status, _) = stored(concluded(answer, Some(Ok(entry()))));
    assert_failed(&status, reason);
    let message = status["message"].as_str().expect("text");
    assert!(message.contains(says), "{message}");
    assert_eq!(status.get("selectedWorkflow"), None);
}

#[test]
fn answers_of_the_catalog_are_told_apart() {
    let workflow_id = "made-up".to_owned();
    let violation = Violation::WorkflowNotFound { workflow_id };
    let not_found = Some(Err(LookupError::Unusable(violation)));
    let (status, _) = stored(concluded(answer(|_| ()), not_found));
    assert_failed(&status, AnalysisReason::WorkflowNotUsable);
    let down = Some(Err(LookupError::Unavailable("down".to_owned())));
    let (status, again) = stored(concluded(answer(|_| ()), down));
    assert_eq!((status.get("phase"), again), (None, Some(RETRY)));
}

#[test]
fn ended_analysis_is_left_alone() {
    for phase in ["Completed", "Failed"] {
        assert_eq!(
            decide(&observed(&analysis(json!({ "phase": phase })))),
            Step::Done
        );
    }
}
