//! TR-6: an AIAnalysis is taken to HolmesGPT-API; what a language model answers is a claim.

use std::time::Duration;

use serde_json::{Value, json};
use wfe_model::remediation::AIAnalysis;
use wfe_platform::holmes::Holmes;
use wfe_tests::system::{Script, System};
use wfe_tests::wait;

use crate::setup::cluster;

const WITHIN: Duration = Duration::from_mins(1);

/// A system that analyses and orchestrates, with webhook.
async fn started(prefix: &str, workflows: &[&Script]) -> (System, Holmes) {
    let cluster = cluster().await;
    let holmes = Holmes::start("127.0.0.1").await.expect("started");
    let mut system = System::install(&cluster, prefix, workflows)
        .await
        .expect("installed");
    system.enable_orchestration().await.expect("enabled");
    let holmes_url = format!("--holmes-url={}", holmes.url());
    system
        .controller_flags
        .extend(["--enable-analysis".to_owned(), holmes_url]);
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    (system, holmes)
}

/// The answer of a model that has selected the workflow.
fn answer(workflow: &Script) -> Value {
    json!({
        "needs_human_review": false,
        "selected_workflow": {
            "workflow_id": workflow.id, "version": "1.0.0", "confidence": 0.9, "rationale": "it fits",
            "execution_engine": "job", "execution_bundle": workflow.image, "parameters": {},
        },
        "root_cause_analysis": { "summary": "the limit is too low", "severity": "critical" },
    })
}

async fn until(system: &System, request: &str, phase: &str, reason: &str) -> AIAnalysis {
    let is = |it: &AIAnalysis| {
        let status = it.status.as_ref();
        status.is_some_and(|it| it.phase == phase && it.message.starts_with(reason))
    };
    let what = format!("the phase is {phase}, the message {reason}");
    let name = format!("ai-{request}");
    let reached = wait::until(&system.namespace.api(), &name, &what, WITHIN, is).await;
    reached.expect("reached")
}

/// TR-6: from the signal to the remediated resource, with the catalog's engine.
#[tokio::test]
async fn signal_is_analysed_and_remediated() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "quick", "true", "");
    let (system, holmes) = started("analyse", &[&workflow]).await;
    let mut claimed = answer(&workflow);
    claimed["selected_workflow"]["execution_engine"] = json!("tekton");
    holmes.answer("OOMKilled", claimed);
    holmes.take_polls(2);
    system
        .request_remediation("rr", "web")
        .await
        .expect("created");
    system
        .analyse("rr", "OOMKilled", "web")
        .await
        .expect("created");
    let analysis = until(&system, "rr", "Completed", "workflow ").await;
    let status = analysis.status.expect("a status");
    let selected = status.selected_workflow.expect("a workflow");
    assert_eq!(selected.execution_engine, "job");
    let says = "the analysis named engine \"tekton\"";
    assert!(
        status.warnings[0].starts_with(says),
        "{:?}",
        status.warnings
    );
    let session = status.investigation_session.expect("a session");
    assert_eq!((session.generation, session.poll_count), (1, 2));
    system
        .reported("rr", "Completed", "WorkflowExecutionSucceeded")
        .await
        .expect("completed");
}

/// Outages, lost sessions and slow ones are waited for.
#[tokio::test]
async fn lost_session_and_outage_of_the_service_are_overcome() {
    let workflow = Script::of("fix", format!("r.io/fix@sha256:{}", "1".repeat(64)), "");
    let (system, holmes) = started("sessions", &[&workflow]).await;
    holmes.answer("OOMKilled", answer(&workflow));
    holmes.fail_with(Some(503));
    system
        .analyse("rr", "OOMKilled", "web")
        .await
        .expect("created");
    until(&system, "rr", "Investigating", "HolmesUnavailable").await;
    assert_eq!(holmes.begun(), 0);
    holmes.take_polls(1_000);
    holmes.fail_with(None);
    until(&system, "rr", "Investigating", "session ").await;
    holmes.forget_sessions();
    holmes.take_polls(0);
    let analysis = until(&system, "rr", "Completed", "workflow ").await;
    let session = analysis.status.expect("a status").investigation_session;
    assert_eq!(session.expect("a session").generation, 2);
    assert_eq!(holmes.begun(), 2);
}

/// BR-WE-014: what a model has made up ends the analysis, in words.
#[tokio::test]
async fn answer_that_is_made_up_fails_the_analysis_in_words() {
    let workflow = Script::of("fix", format!("r.io/fix@sha256:{}", "1".repeat(64)), "");
    let (system, holmes) = started("made-up", &[&workflow]).await;
    let cases = [
        (
            "unknown",
            "/selected_workflow/workflow_id",
            json!("made-up"),
            "WorkflowNotUsable",
            "not found in the catalog",
        ),
        (
            "bundle",
            "/selected_workflow/execution_bundle",
            json!(format!("r.io/evil@sha256:{}", "2".repeat(64))),
            "SelectionInvalid",
            "must be those in the catalog",
        ),
        (
            "parameters",
            "/selected_workflow/parameters",
            json!({ "SHELL": "sh" }),
            "SelectionInvalid",
            "unknown parameter",
        ),
        (
            "unsure",
            "/selected_workflow/confidence",
            json!(0.5),
            "LowConfidence",
            "must be from 0.7 to 1",
        ),
        (
            "nothing",
            "/selected_workflow",
            json!(null),
            "NoWorkflowSelected",
            "no workflow",
        ),
        (
            "person",
            "/needs_human_review",
            json!(true),
            "HumanReviewRequired",
            "review by a person",
        ),
        (
            "garbage",
            "",
            json!("I am sorry"),
            "InvalidAnswer",
            "cannot be read",
        ),
    ];
    for (name, pointer, value, _, _) in &cases {
        let mut made_up = answer(&workflow);
        *made_up.pointer_mut(pointer).expect("a field") = value.clone();
        holmes.answer(name, made_up);
        system
            .request_remediation(name, "web")
            .await
            .expect("created");
        system.analyse(name, name, "web").await.expect("created");
    }
    for (name, _, _, reason, says) in cases {
        let analysis = until(&system, name, "Failed", reason).await;
        let message = analysis.status.expect("a status").message;
        assert!(message.contains(says), "{name}: {message}");
    }
    assert!(system.jobs().await.expect("listed").is_empty());
}
