//! TR-6: a RemediationRequest with a completed AIAnalysis becomes one WorkflowExecution, or says why not.

use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use wfe_model::remediation::RemediationRequest;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_platform::data_storage::CatalogFault;
use wfe_tests::system::{CatalogSource, Script, System};

use crate::setup::cluster;

const PARAMETERS: &str = "parameters: [{name: LIMIT, type: string}]\n";

/// A system whose controller orchestrates, with webhook.
async fn started(prefix: &str, workflows: &[&Script], flags: &[&str]) -> System {
    let cluster = cluster().await;
    let mut system = System::install(&cluster, prefix, workflows)
        .await
        .expect("installed");
    system.enable_orchestration().await.expect("enabled");
    system
        .controller_flags
        .extend(flags.iter().map(|&it| it.to_owned()));
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    system
}

/// The status of an analysis that has selected this, for a Deployment in the system's namespace.
fn analysed(system: &System, target: &str, selection: impl Into<Value>) -> Value {
    let selection = selection.into();
    json!({
        "selectedWorkflow": selection,
        "rootCauseAnalysis": { "summary": "", "severity": "critical", "signalType": "OOMKilled", "affectedResource": { "kind": "Deployment", "name": target, "namespace": system.namespace.name() } },
    })
}

/// Creates a request and its completed analysis.
async fn remediate(system: &System, name: &str, target: &str, workflow: &Script) {
    system
        .request_remediation(name, target)
        .await
        .expect("created");
    let analysed = analysed(system, target, workflow.selection());
    system
        .complete_analysis(name, analysed)
        .await
        .expect("analysed");
}

async fn executions(system: &System) -> Vec<String> {
    let api = system.namespace.api::<WorkflowExecution>();
    let found = api.list(&ListParams::default()).await.expect("listed");
    found
        .items
        .into_iter()
        .filter_map(|it| it.metadata.name)
        .collect()
}

fn outcome(request: &RemediationRequest) -> (&str, &str) {
    let status = request.status.as_ref().expect("a status");
    (&status.outcome, &status.failure_reason)
}

/// TR-6: in either shape of the field, the engine of the catalog reaches the WorkflowExecution.
#[tokio::test]
async fn request_with_completed_analysis_is_remediated() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "fix", "test \"$LIMIT\" = 128Mi", PARAMETERS);
    let system = started("orchestrate", &[&workflow], &[]).await;
    let mut selection = workflow.selection();
    selection["parameters"] = json!({ "LIMIT": "128Mi" });
    let older = analysed(&system, "web", selection.clone());
    system
        .request_remediation("older", "web")
        .await
        .expect("created");
    system
        .complete_analysis("older", older)
        .await
        .expect("analysed");
    system
        .request_remediation("newer", "api")
        .await
        .expect("created");
    let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "api", "namespace": system.namespace.name() });
    let newer = json!({ "rcaResult": { "selectedWorkflow": selection, "rootCauseAnalysis": { "remediationTarget": target } } });
    system
        .complete_analysis("newer", newer)
        .await
        .expect("analysed");
    for (name, target) in [("older", "web"), ("newer", "api")] {
        let reported = system
            .reported(name, "Completed", "WorkflowExecutionSucceeded")
            .await;
        let request = reported.expect("completed");
        assert_eq!(outcome(&request), ("Remediated", ""));
        let reference = request.status.and_then(|it| it.workflow_execution_ref);
        let execution = format!("we-{name}");
        assert_eq!(reference.map(|it| it.name), Some(execution.clone()));
        let api = system.namespace.api::<WorkflowExecution>();
        let execution = api.get(&execution).await.expect("the WorkflowExecution");
        let target = format!("{}/Deployment/{target}", system.namespace.name());
        assert_eq!(
            (
                execution.spec.execution_engine.as_str(),
                execution.spec.target_resource
            ),
            ("job", target)
        );
        let owner = &execution.metadata.owner_references.expect("an owner")[0];
        assert_eq!(Some(&owner.uid), request.metadata.uid.as_ref());
        // The garbage collector deletes it with its request.
    }
    // The same workflow on the same target waits for the cooldown, which is longer than this test.
    remediate(&system, "again", "web", &workflow).await;
    let blocked = system
        .reported("again", "Blocked", "RecentlyRemediated")
        .await;
    let status = blocked.expect("blocked").status.expect("a status");
    assert_eq!(status.block_reason, "RecentlyRemediated");
    let trail = system.audit_trail().expect("a trail");
    assert!(
        trail.iter().any(|it| it.correlation_id == "older"),
        "the request's name"
    );
}

/// TR-6, BR-WE-014: what a model may have made up reaches no Job, and the request says why.
#[tokio::test]
async fn selection_that_may_not_run_fails_its_request_in_words() {
    let workflow = Script::of(
        "fix",
        format!("r.io/fix@sha256:{}", "1".repeat(64)),
        PARAMETERS,
    );
    let system = started("refuse", &[&workflow], &[]).await;
    let other = format!("r.io/evil@sha256:{}", "2".repeat(64));
    let cases = [
        (
            "wrong-engine",
            "/executionEngine",
            json!("tekton"),
            "EngineMismatch",
            "must be the engine of workflow \"fix\" in the catalog, \"job\"",
        ),
        (
            "no-engine",
            "/executionEngine",
            json!(""),
            "EngineMissing",
            "there is no default",
        ),
        (
            "made-up",
            "/workflowId",
            json!("made-up"),
            "WorkflowNotUsable",
            "workflow \"made-up\" not found in the catalog",
        ),
        (
            "other-bundle",
            "/executionBundle",
            json!(other),
            "AdmissionDenied",
            "spec.workflowRef.containerImage: ",
        ),
        (
            "old-version",
            "/version",
            json!("0.9.0"),
            "AdmissionDenied",
            "spec.workflowRef.version: ",
        ),
        (
            "parameters",
            "/parameters",
            json!({ "SHELL": "sh" }),
            "AdmissionDenied",
            "spec.parameters[SHELL]: unknown parameter",
        ),
    ];
    for (name, pointer, value, _, _) in &cases {
        let mut selection = workflow.selection();
        selection["parameters"] = json!({});
        *selection.pointer_mut(pointer).expect("a field") = value.clone();
        system
            .request_remediation(name, "web")
            .await
            .expect("created");
        let analysed = analysed(&system, "web", selection);
        system
            .complete_analysis(name, analysed)
            .await
            .expect("analysed");
    }
    let mut elsewhere = analysed(&system, "web", workflow.selection());
    elsewhere["rootCauseAnalysis"]["affectedResource"]["namespace"] = json!("kube-system");
    system
        .request_remediation("elsewhere", "web")
        .await
        .expect("created");
    system
        .complete_analysis("elsewhere", elsewhere)
        .await
        .expect("analysed");
    let requested = system.request_remediation_in("edge", "web", "edge-7").await;
    requested.expect("created");
    let edge = analysed(&system, "web", workflow.selection());
    system
        .complete_analysis("edge", edge)
        .await
        .expect("analysed");
    let says = "spec.clusterID: \"edge-7\": other clusters are not reached";
    let edge = ("edge", "", json!(null), "ClusterNotSupported", says);
    let elsewhere = (
        "elsewhere",
        "",
        json!(null),
        "TargetNotAllowed",
        "must name a target there",
    );
    for (name, _, _, reason, says) in cases.into_iter().chain([elsewhere, edge]) {
        let request = system
            .reported(name, "Failed", reason)
            .await
            .expect("failed");
        let (outcome, failure) = outcome(&request);
        assert_eq!(outcome, "ManualReviewRequired");
        assert!(failure.contains(says), "{name}: {failure}");
    }
    assert_eq!(executions(&system).await, [] as [&str; 0]);
    assert!(system.jobs().await.expect("listed").is_empty());
}

/// BR-WE-009: of two requests for one target, one runs and the other is Blocked, then runs.
#[tokio::test]
async fn two_requests_for_one_target_run_one_after_the_other() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "nap", "sleep 12", "");
    let system = started("two", &[&workflow], &["--cooldown=0s"]).await;
    remediate(&system, "first", "web", &workflow).await;
    system
        .reported("first", "Executing", "WorkflowExecutionRunning")
        .await
        .expect("runs");
    remediate(&system, "second", "web", &workflow).await;
    let blocked = system
        .reported("second", "Blocked", "ResourceBusy")
        .await
        .expect("blocked");
    let status = blocked.status.expect("a status");
    assert_eq!(status.block_reason, "ResourceBusy");
    assert!(
        status.block_message.contains("we-first"),
        "{}",
        status.block_message
    );
    system
        .reported("first", "Completed", "WorkflowExecutionSucceeded")
        .await
        .expect("completed");
    let second = system
        .reported("second", "Completed", "WorkflowExecutionSucceeded")
        .await;
    let status = second.expect("completed").status.expect("a status");
    assert_eq!(
        (status.block_reason.as_str(), status.block_message.as_str()),
        ("", "")
    );
}

/// BR-WE-010, BR-WE-012, BR-WE-013: failure, block, timeout, cancellation and deletion come back.
#[tokio::test]
async fn end_of_execution_is_told_to_its_request() {
    let cluster = cluster().await;
    let fails = Script::push(&cluster, "fails", "exit 3", "");
    let quick = Script::push(&cluster, "quick", "true", "");
    let slow = Script::push(&cluster, "slow", "sleep 60", "");
    let system = started("ends", &[&fails, &quick, &slow], &[]).await;
    remediate(&system, "fails", "web", &fails).await;
    remediate(&system, "cancelled", "api", &slow).await;
    remediate(&system, "deleted", "db", &slow).await;
    system
        .request_remediation("late", "cache")
        .await
        .expect("created");
    let timeout = json!({ "timeoutConfig": { "executing": "2s" } });
    system
        .set_request_status("late", timeout)
        .await
        .expect("set");
    let analysed = analysed(&system, "cache", slow.selection());
    system
        .complete_analysis("late", analysed)
        .await
        .expect("analysed");

    let failed = system
        .reported("fails", "Failed", "TaskFailed")
        .await
        .expect("failed");
    assert!(
        outcome(&failed).1.contains("exit code 3"),
        "{:?}",
        outcome(&failed)
    );
    remediate(&system, "after", "web", &quick).await;
    let skipped = system
        .reported("after", "Failed", "PreviousExecutionFailed")
        .await;
    let skipped = skipped.expect("skipped");
    assert_eq!(outcome(&skipped).0, "ManualReviewRequired");
    assert!(
        outcome(&skipped).1.contains("clear the block"),
        "{:?}",
        outcome(&skipped)
    );

    system
        .reported("cancelled", "Executing", "WorkflowExecutionRunning")
        .await
        .expect("runs");
    system
        .cancel("we-cancelled", "a test of the stop button")
        .await
        .expect("cancelled");
    system
        .reported("cancelled", "Failed", "Cancelled")
        .await
        .expect("told");
    system
        .reported("deleted", "Executing", "WorkflowExecutionRunning")
        .await
        .expect("runs");
    let api = system.namespace.api::<WorkflowExecution>();
    api.delete("we-deleted", &DeleteParams::default())
        .await
        .expect("deleted");
    // It is Failed before it is gone.
    let told = system
        .reported("deleted", "Failed", "Cancelled")
        .await
        .expect("told");
    assert_eq!(outcome(&told).0, "ManualReviewRequired");
    system
        .reported("late", "Failed", "DeadlineExceeded")
        .await
        .expect("told");
}

/// Others' phases are not touched; an outage of the catalog is told and ends by itself.
#[tokio::test]
async fn request_waits_for_approval_and_for_the_catalog() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "quick", "true", "");
    let installed =
        System::install_with_catalog(&cluster, "waits", CatalogSource::DataStorage).await;
    let mut system = installed.expect("installed");
    system.enable_orchestration().await.expect("enabled");
    system.start_webhook().await.expect("started");
    system.start_controller().await.expect("started");
    let id = system
        .register(&workflow, "1.0.0")
        .await
        .expect("registered");
    let storage = system.storage().expect("Data Storage");
    storage.set_catalog_fault(Some(CatalogFault::Answer(503)));
    let mut selection = workflow.selection();
    selection["workflowId"] = json!(id);

    system
        .request_remediation("approval", "web")
        .await
        .expect("created");
    let approval = json!({ "overallPhase": "AwaitingApproval" });
    system
        .set_request_status("approval", approval)
        .await
        .expect("set");
    let web = analysed(&system, "web", selection.clone());
    system
        .complete_analysis("approval", web)
        .await
        .expect("analysed");
    system
        .request_remediation("outage", "api")
        .await
        .expect("created");
    let api = analysed(&system, "api", selection);
    system
        .complete_analysis("outage", api)
        .await
        .expect("analysed");
    let told = system
        .reported("outage", "Analyzing", "CatalogUnavailable")
        .await;
    let conditions = told.expect("told").status.expect("a status").conditions;
    assert_eq!(conditions[0].status, "Unknown");
    assert!(conditions[0].message.contains("503"), "{conditions:?}");
    let api = system.namespace.api::<RemediationRequest>();
    let approval = api.get("approval").await.expect("the request");
    assert_eq!(approval.status.expect("a status").conditions, []);

    storage.set_catalog_fault(None);
    let done = ("Completed", "WorkflowExecutionSucceeded");
    system
        .reported("outage", done.0, done.1)
        .await
        .expect("completed");
    let approved = json!({ "overallPhase": "Analyzing" });
    system
        .set_request_status("approval", approved)
        .await
        .expect("approved");
    system
        .reported("approval", done.0, done.1)
        .await
        .expect("completed");
    // One more for each time that an answer was old.
    assert!(storage.lookups() < 20, "{}", storage.lookups());
}

/// Requests of the platform's namespace may name any target; a resource of another cluster is refused.
#[tokio::test]
async fn request_of_the_platform_may_name_targets_elsewhere() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "quick", "true", "");
    let mut system = System::install(&cluster, "platform", &[&workflow])
        .await
        .expect("installed");
    system.enable_orchestration().await.expect("enabled");
    let platform = format!("--platform-namespace={}", system.namespace.name());
    system.controller_flags.push(platform);
    // As the chart's ClusterRole does.
    let user = format!(
        "system:serviceaccount:{}:wfe-controller",
        system.programs.name()
    );
    system
        .grant_cluster_wide(&user, "create")
        .await
        .expect("granted");
    system.start_controller().await.expect("started");
    system
        .request_remediation("any", "web")
        .await
        .expect("created");
    let mut elsewhere = analysed(&system, "web", workflow.selection());
    elsewhere["rootCauseAnalysis"]["affectedResource"] =
        json!({ "kind": "Node", "name": "node-1" });
    system
        .complete_analysis("any", elsewhere)
        .await
        .expect("analysed");
    system
        .reported("any", "Completed", "WorkflowExecutionSucceeded")
        .await
        .expect("completed");
    let api = system.namespace.api::<WorkflowExecution>();
    let execution = api.get("we-any").await.expect("the WorkflowExecution");
    assert_eq!(execution.spec.target_resource, "Node/node-1");
}
