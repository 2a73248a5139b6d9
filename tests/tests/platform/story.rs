//! The stories: repaired, repaired although a process is killed, not repaired, repaired from another catalog,
//! repaired by another engine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::batch::v1::Job;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::Value;
use strum::VariantArray;
use wfe_model::engine::Engine;
use wfe_model::remediation::RemediationRequest;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_platform::notification::NOTIFIED;
use wfe_tests::chart::{EXECUTIONS, PROGRAMS, kubectl};
use wfe_tests::{wait, workspace};

use crate::installation::Platform;
use crate::timeline::{self, Hop, Timeline};
use crate::{crash, memory, picture};

const HAPPENS_WITHIN: Duration = Duration::from_mins(2);
/// Number of kills in `make soak`.
const KILLS: usize = 10;

/// BR-WE-014, BR-WE-015: from the kill of the kernel to the notification, on a cluster without Tekton.
#[tokio::test(flavor = "multi_thread")]
async fn oom_killed_workload_is_repaired_or_its_failure_is_notified() {
    let platform = Platform::install(Engine::Job).await;
    let told = repaired(&platform, "shop", Engine::Job, None).await;
    println!("notification: {told}");
    memory::check();

    let seed = std::env::var("WFE_SEED")
        .map_or_else(|_| seed_from_clock(), |it| it.parse().expect("a number"));
    repaired(&platform, "killed", Engine::Job, Some(seed)).await;
    not_repaired_until_a_person_helps(&platform, "greedy").await;
    not_repaired_without_a_workflow(&platform, "unknown").await;
    platform.use_objects().await;
    repaired(&platform, "objects", Engine::Job, None).await;
}

/// Ten kills, run by `make soak`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make soak"]
async fn workload_is_repaired_once_whatever_program_is_killed() {
    let platform = Platform::install(Engine::Job).await;
    let first = seed_from_clock();
    for number in 0..KILLS {
        let name = format!("killed-{number}");
        repaired(&platform, &name, Engine::Job, Some(first + number * 5)).await;
    }
}

/// BR-WE-014: the same with engine tekton; run by `make test-tekton`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Tekton: make test-tekton"]
async fn oom_killed_workload_is_repaired_by_tekton() {
    let platform = Platform::install(Engine::Tekton).await;
    repaired(&platform, "shop", Engine::Tekton, None).await;
}

fn seed_from_clock() -> usize {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    usize::try_from(since.expect("a time").as_secs()).expect("a seed")
}

/// A workload is OOMKilled, and repaired once; with a seed, although a process is killed meanwhile. Returns
/// the text of the notification.
async fn repaired(platform: &Platform, name: &str, engine: Engine, seed: Option<usize>) -> String {
    let timeline = Timeline::of(&platform.client, name, engine);
    platform.break_workload(name).await;
    timeline.reached(Hop::Killed).await;
    let began = timeline.killed_at().await.expect("a log");
    let mut title = format!("Deployment {name} is OOMKilled, and repaired by engine {engine}");
    if let Some(seed) = seed {
        let (victim, moment) = crash::choose(seed);
        println!("WFE_SEED={seed}: {victim} is killed at {moment:?}");
        title = format!("{title}, {victim} killed at {moment:?}");
        timeline.reached(moment).await;
        crash::strike(victim);
    }
    for hop in Hop::VARIANTS {
        timeline.reached(*hop).await;
    }
    let hops = timeline.hops();
    timeline::print(&title, began, &hops);
    let request = only_request(platform, name).await;
    let status = request.status.clone().unwrap_or_default();
    assert_eq!(request.phase(), "Completed", "{}", status.failure_reason);
    let request_name = request.name_any();
    let execution = only_execution(platform, &request).await;
    assert_eq!(execution.spec.execution_engine, engine.as_str());
    if engine == Engine::Job {
        let jobs: Api<Job> = Api::namespaced(platform.client.clone(), EXECUTIONS);
        let jobs = jobs.list(&ListParams::default()).await.expect("listed");
        let uid = execution.uid().expect("a uid");
        let is_own = |it: &&Job| it.labels().values().any(|it| *it == uid);
        assert_eq!(jobs.iter().filter(is_own).count(), 1, "Jobs");
    }
    let text = notification_of(platform, &request_name, seed.is_some()).await;
    assert!(
        text.contains("was OOMKilled") && text.contains(&format!("(engine {engine})")),
        "{text}"
    );
    audited(
        platform,
        &execution,
        &request_name,
        engine,
        "workflowexecution.workflow.completed",
    )
    .await;
    if seed.is_none() {
        let file = workspace().join(format!("target/platform-{name}.svg"));
        let svg = picture::draw(&title, began, &hops, &text);
        std::fs::write(&file, svg).expect("written");
        println!("drawn: target/platform-{name}.svg");
    }
    text
}

/// The workflow fails, and the next kill is not repaired either, until a person has helped.
async fn not_repaired_until_a_person_helps(platform: &Platform, name: &str) {
    platform.set_ceiling("96Mi").await;
    platform.break_workload(name).await;
    let failed = until_request(platform, name, "a request has failed", |it| {
        it.phase() == "Failed"
    })
    .await;
    let text = notification(platform, &failed.name_any()).await;
    println!("notification: {text}");
    assert!(text.contains("and not repaired by workflow"), "{text}");
    assert!(text.contains("128Mi is over the ceiling of 96Mi"), "{text}");
    let first = only_execution(platform, &failed).await;
    audited(
        platform,
        &first,
        &failed.name_any(),
        Engine::Job,
        "workflowexecution.workflow.failed",
    )
    .await;

    let is_blocked = |it: &RemediationRequest| {
        let conditions = it.status.iter().flat_map(|it| &it.conditions);
        let mut conditions = conditions.filter(|it| it.type_ == "WorkflowExecutionReady");
        it.is_ended() && conditions.any(|it| it.reason == "PreviousExecutionFailed")
    };
    let what = "the next request is refused";
    let blocked = until_request(platform, name, what, is_blocked).await;
    let text = notification(platform, &blocked.name_any()).await;
    println!("notification: {text}");
    assert!(text.contains("clear the block"), "{text}");

    platform.set_ceiling("512Mi").await;
    let clear =
        r#"{"status":{"blockClearanceRequest":{"clearReason":"the ceiling is 512Mi now"}}}"#;
    let first_name = first.name_any();
    let object = ["-n", PROGRAMS, "patch", "workflowexecution", &first_name];
    let patch = ["--subresource=status", "--type=merge", "-p", clear];
    kubectl(&[&object[..], &patch].concat())
        .await
        .expect("cleared");
    let completed = |it: &RemediationRequest| it.phase() == "Completed";
    let repaired = until_request(platform, name, "a later request has run", completed).await;
    let text = notification(platform, &repaired.name_any()).await;
    println!("notification: {text}");
    assert!(text.contains("and repaired by workflow"), "{text}");
}

/// No workflow is for staging: the analysis fails, and says so.
async fn not_repaired_without_a_workflow(platform: &Platform, name: &str) {
    platform.break_workload_in(name, "staging").await;
    let failed = |it: &RemediationRequest| it.phase() == "Failed";
    let failed = until_request(platform, name, "its request has failed", failed).await;
    let text = notification(platform, &failed.name_any()).await;
    println!("notification: {text}");
    assert!(
        text.contains("no workflow of action IncreaseMemory is for"),
        "{text}"
    );
}

/// Waits until one of the RemediationRequests for this workload is so.
async fn until_request(
    platform: &Platform,
    workload: &str,
    what: &str,
    is: impl Fn(&RemediationRequest) -> bool,
) -> RemediationRequest {
    let api: Api<RemediationRequest> = Api::namespaced(platform.client.clone(), PROGRAMS);
    let of_workload = |it: &RemediationRequest| it.spec.target_resource.name == workload && is(it);
    let found = wait::any(&api, what, HAPPENS_WITHIN, of_workload).await;
    found.expect("found")
}

/// The one RemediationRequest for this workload.
async fn only_request(platform: &Platform, workload: &str) -> RemediationRequest {
    let api: Api<RemediationRequest> = Api::namespaced(platform.client.clone(), PROGRAMS);
    let all = api.list(&ListParams::default()).await.expect("listed");
    let mut own = all
        .into_iter()
        .filter(|it| it.spec.target_resource.name == workload);
    let only = own.next().expect("a request");
    let more: Vec<_> = own.collect();
    assert!(more.is_empty(), "{only:?}, and more: {more:?}");
    only
}

/// The one WorkflowExecution of this request.
async fn only_execution(platform: &Platform, request: &RemediationRequest) -> WorkflowExecution {
    let api: Api<WorkflowExecution> = Api::namespaced(platform.client.clone(), PROGRAMS);
    let all = api.list(&ListParams::default()).await.expect("listed");
    let uid = request.uid();
    let is_own = |it: &WorkflowExecution| {
        it.owner_references()
            .iter()
            .any(|it| Some(&it.uid) == uid.as_ref())
    };
    let mut own = all.into_iter().filter(is_own);
    let only = own.next().expect("a WorkflowExecution");
    assert!(own.next().is_none(), "one WorkflowExecution");
    only
}

/// The text of the one notification about this request.
async fn notification(platform: &Platform, request: &str) -> String {
    notification_of(platform, request, false).await
}

/// The text of the one notification about this request, which may be posted again if a program is killed.
async fn notification_of(platform: &Platform, request: &str, repeats: bool) -> String {
    let api: Api<RemediationRequest> = Api::namespaced(platform.client.clone(), PROGRAMS);
    let notified = |it: &RemediationRequest| it.annotations().contains_key(NOTIFIED);
    let is = wait::until(&api, request, "it is notified", HAPPENS_WITHIN, notified).await;
    is.expect("notified");
    // A notifier that is killed after the post repeats it, with the same id.
    let taken = platform.notifications().await;
    let own = taken.iter();
    let own = own.filter(|it| it["remediationRequest"] == request);
    let own: Vec<_> = own.collect();
    let first = own.first().expect("a notification");
    assert!(own.iter().all(|it| it["id"] == first["id"]), "{own:?}");
    assert!(own.len() == 1 || repeats, "one notification: {own:?}");
    let text = first["text"].as_str().expect("a text");
    text.to_owned()
}

/// Data Storage has each event of the execution once, each with the engine where it names one.
async fn audited(
    platform: &Platform,
    execution: &WorkflowExecution,
    request: &str,
    engine: Engine,
    last: &str,
) {
    let api: Api<WorkflowExecution> = Api::namespaced(platform.client.clone(), PROGRAMS);
    let recorded = |it: &WorkflowExecution| {
        wfe_tests::system::condition(it, "AuditRecorded") == "True/AuditSucceeded"
    };
    let name = execution.name_any();
    let is = wait::until(
        &api,
        &name,
        "the audit trail is delivered",
        HAPPENS_WITHIN,
        recorded,
    )
    .await;
    is.expect("audited");
    let events = platform.audit(request).await;
    let types: Vec<_> = events
        .iter()
        .map(|it| it["event_type"].as_str().unwrap_or_default())
        .collect();
    let expected = [
        "workflowexecution.selection.completed",
        "workflowexecution.execution.started",
        "workflowexecution.workflow.started",
        last,
    ];
    assert_eq!(types, expected);
    let named = |it: &&Value| it["event_data"]["execution_engine"] == engine.as_str();
    assert_eq!(events.iter().filter(named).count(), 4, "{events:?}");
}
