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

fn analysis(status: Value) -> AIAnalysis {
    let analysis = json!({
        "apiVersion": "kubernaut.ai/v1alpha1", "kind": "AIAnalysis",
        "metadata": { "name": "ai-1", "namespace": "prod", "uid": "u-1" },
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
        "phase": "Investigating",
        "investigationSession": { "id": "s-1", "generation": 1, "createdAt": "2026-11-28T11:59:00Z", "pollCount": 0 },
    });
    change(&mut status);
    analysis(status)
}

fn observed(analysis: &AIAnalysis) -> Observed<'_> {
    Observed {
        analysis,
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

#[test]
fn session_id_is_stored_before_it_is_polled() {
    let new = analysis(json!({}));
    let Step::Begin(incident) = decide(&observed(&new)) else {
        panic!("a session is begun");
    };
    assert_eq!(
        (
            incident.incident_id.as_str(),
            incident.remediation_id.as_str()
        ),
        ("u-1", "rr-1")
    );
    assert_eq!(
        (
            incident.signal_name.as_str(),
            incident.resource_name.as_str()
        ),
        ("OOMKilled", "web")
    );
    let begun = Some(Ok("s-1".to_owned()));
    let (status, _) = stored(decide(&Observed {
        begun,
        ..observed(&new)
    }));
    assert_eq!(status["phase"], "Investigating");
    assert_eq!(status["investigationSession"]["id"], "s-1");
    assert_eq!(status["investigationSession"]["generation"], 1);
    assert_eq!(
        decide(&observed(&investigating(|_| ()))),
        Step::Poll("s-1".to_owned())
    );
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
    assert_eq!(again, Some(Duration::from_secs(2)));
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
    assert!(matches!(
        decide(&Observed {
            session: lost(),
            ..observed(&first)
        }),
        Step::Begin(_)
    ));
    let begun = Some(Ok("s-2".to_owned()));
    let (status, _) = stored(decide(&Observed {
        session: lost(),
        begun,
        ..observed(&first)
    }));
    assert_eq!(status["investigationSession"]["generation"], 2);
    let result = Some(Ok(Outcome::Lost));
    assert!(matches!(
        decide(&Observed {
            result,
            ..observed(&first)
        }),
        Step::Begin(_)
    ));
    let last = investigating(|it| it["investigationSession"]["generation"] = json!(5));
    let (status, _) = stored(decide(&Observed {
        session: lost(),
        ..observed(&last)
    }));
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("SessionLost"))
    );
}

#[test]
fn outage_is_told_once_and_retried_and_a_refusal_is_final() {
    let new = analysis(json!({}));
    let unavailable = || Some(Err(HolmesError::Unavailable("503".to_owned())));
    let (status, again) = stored(decide(&Observed {
        begun: unavailable(),
        ..observed(&new)
    }));
    assert_eq!(status.get("phase"), None);
    assert_eq!(
        (&status["reason"], again),
        (&json!("HolmesUnavailable"), Some(RETRY))
    );
    let told = analysis(status);
    assert_eq!(
        decide(&Observed {
            begun: unavailable(),
            ..observed(&told)
        }),
        Step::Wait(RETRY)
    );
    let refused = Some(Err(HolmesError::Refused("400: severity".to_owned())));
    let (status, _) = stored(decide(&Observed {
        begun: refused,
        ..observed(&new)
    }));
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("AnalysisRefused"))
    );
}

#[test]
fn slow_investigation_times_out() {
    let old =
        investigating(|it| it["investigationSession"]["createdAt"] = json!("2026-11-28T11:44:00Z"));
    let (status, _) = stored(decide(&observed(&old)));
    assert_eq!(status["reason"], "InvestigationTimeout");
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
    assert_eq!(selected["containerImage"], format!("r.io/w:1@sha256:{HEX}"));
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
#[case("/selected_workflow", json!(null), "NoWorkflowSelected", "no workflow")]
#[case("/selected_workflow/confidence", json!(0.69), "LowConfidence", "0.69: must be from 0.7 to 1")]
#[case("/selected_workflow/confidence", json!(7), "LowConfidence", "7: must be from 0.7 to 1")]
#[case("/selected_workflow/workflow_id", json!(7), "InvalidAnswer", "expected a string")]
#[case("/selected_workflow/version", json!("9.9.9"), "SelectionInvalid", "spec.workflowRef.version: ")]
#[case("/selected_workflow/execution_bundle", json!("r.io/evil@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"), "SelectionInvalid", "must be those in the catalog")]
#[case("/selected_workflow/parameters", json!({ "SHELL": "sh" }), "SelectionInvalid", "spec.parameters[SHELL]: unknown parameter")]
#[case("/selected_workflow/parameters", json!([1]), "InvalidAnswer", "expected a map")]
#[case("/needs_human_review", json!(true), "HumanReviewRequired", "review by a person")]
fn wrong_answer_fails_the_analysis(
    #[case] pointer: &str,
    #[case] value: Value,
    #[case] reason: &str,
    #[case] says: &str,
) {
    let answer = answer(|it| *it.pointer_mut(pointer).expect("a field") = value);
    let (status, _) = stored(concluded(answer, Some(Ok(entry()))));
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!(reason))
    );
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
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("WorkflowNotUsable"))
    );
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
