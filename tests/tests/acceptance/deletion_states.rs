//! BR-WE-014: deleting a WorkflowExecution, its namespace or its Job in any state leaves no objects
//! behind and a complete audit trail.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use wfe_model::audit::EventType;
use wfe_model::workflow_execution::{FailureReason, Phase, SkipReason, WorkflowExecution};
use wfe_tests::system::{Script, System, condition};
use wfe_tests::{Cluster, wait};

use crate::setup::{SECONDS_30, cluster};

const SLEEPS: &str = "trap 'exit 0' TERM; sleep 300 & wait";

async fn assert_nothing_left(system: &System) {
    assert!(system.jobs().await.expect("listed").is_empty(), "no Job");
    assert!(
        system.live_pods().await.expect("listed").is_empty(),
        "no pod"
    );
    assert!(
        system.holders().await.expect("listed").is_empty(),
        "no lock"
    );
}

/// A system without a webhook, in which the WorkflowExecution `mine` runs.
async fn start_with_running(cluster: &Cluster, prefix: &str, workflow: &Script) -> System {
    let mut system = System::install(cluster, prefix, &[workflow])
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    system
        .create(workflow, "mine", &json!({}))
        .await
        .expect("stored");
    system
        .until("mine", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("condition reached");
    system
}

/// Workflows that keep an execution in each state: running, succeeded, failed, waiting for its
/// image, and failed for a missing dependency.
fn workflows(cluster: &Cluster) -> [Script; 5] {
    let registry = cluster.registry().expect("a registry").address().to_owned();
    let missing = format!(
        "{registry}/workflows/never-pushed@sha256:{}",
        "3".repeat(64)
    );
    [
        Script::push(cluster, "sleeps", SLEEPS, ""),
        Script::push(cluster, "succeeds", "true", ""),
        Script::push(cluster, "fails", "exit 1", ""),
        Script::of("stuck", missing, ""),
        Script::push(
            cluster,
            "needy",
            "true",
            "dependencies: {secrets: [{name: absent}]}\n",
        ),
    ]
}

/// Creates an execution in each state before the end, and a succeeded one. Each has its own target,
/// except `waiting`, which waits for the target of `running`.
async fn create_in_each_state(system: &System, [sleeps, succeeds, _, stuck, _]: &[Script; 5]) {
    let waits = json!({ "targetResource": "prod/Deployment/running", "executionConfig": { "whenBlocked": "Wait" } });
    let none = json!({});
    system
        .create(succeeds, "succeeded", &none)
        .await
        .expect("stored");
    for (name, workflow, spec, kind, comes_to) in [
        (
            "running",
            sleeps,
            &none,
            "ExecutionRunning",
            "True/ExecutionStarted",
        ),
        (
            "starting",
            stuck,
            &none,
            "ExecutionRunning",
            "False/Waiting",
        ),
        ("waiting", succeeds, &waits, "Blocked", "True/ResourceBusy"),
    ] {
        system.create(workflow, name, spec).await.expect("stored");
        system
            .until(name, kind, comes_to)
            .await
            .expect("condition reached");
    }
    system.ended("succeeded").await.expect("ended");
}

/// BR-WE-014
#[tokio::test]
async fn execution_deleted_in_any_state_leaves_no_objects_and_a_complete_trail() {
    let cluster = cluster().await;
    let all = workflows(&cluster);
    let [_, succeeds, fails, _, needy] = &all;
    let mut system = System::install(&cluster, "states", &all.each_ref())
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    create_in_each_state(&system, &all).await;
    let on_its_target = json!({ "targetResource": "prod/Deployment/running" });
    for (name, workflow, spec) in [
        ("failed", fails, &json!({})),
        ("not-made", needy, &json!({})),
        ("skipped", succeeds, &on_its_target),
    ] {
        system.create(workflow, name, spec).await.expect("stored");
        system.ended(name).await.expect("ended");
    }

    let states = [
        "waiting",
        "starting",
        "running",
        "succeeded",
        "failed",
        "not-made",
        "skipped",
    ];
    for name in states {
        system.delete(name).await.expect("deleted");
    }
    for name in ["waiting", "starting", "succeeded", "not-made", "skipped"] {
        system.gone(name).await.expect("gone");
    }
    // Executions that failed while running are kept until their block is cleared.
    system
        .until("running", "ExecutionComplete", "False/Cancelled")
        .await
        .expect("condition reached");
    for name in ["running", "failed"] {
        system.clear(name).await.expect("cleared");
        system.gone(name).await.expect("gone");
    }
    assert_nothing_left(&system).await;
    let (selected, created) = (EventType::SelectionCompleted, EventType::ExecutionStarted);
    let (ran, failed) = (EventType::WorkflowStarted, EventType::WorkflowFailed);
    let cleared = EventType::BlockCleared;
    for (name, expected) in [
        ("waiting", vec![selected, failed]),
        ("starting", vec![selected, created, failed]),
        ("running", vec![selected, created, ran, failed, cleared]),
        (
            "succeeded",
            vec![selected, created, ran, EventType::WorkflowCompleted],
        ),
        ("failed", vec![selected, created, ran, failed, cleared]),
        ("not-made", vec![selected, failed]),
        ("skipped", vec![selected]),
    ] {
        assert_eq!(system.trail_of(name).expect("a trail"), expected, "{name}");
    }
}

/// BR-WE-014
#[tokio::test]
async fn execution_cancelled_in_any_state_fails_as_cancelled_and_stops_pods() {
    let cluster = cluster().await;
    let all = workflows(&cluster);
    let mut system = System::install(&cluster, "cancel", &all.each_ref())
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    create_in_each_state(&system, &all).await;
    for name in ["waiting", "starting", "running", "succeeded"] {
        system.cancel(name, "enough").await.expect("annotated");
    }
    for (name, ran) in [("waiting", false), ("starting", false), ("running", true)] {
        let wfe = system.ended(name).await.expect("ended");
        let details = wfe
            .status
            .and_then(|status| status.failure_details)
            .expect("details");
        let found = (details.reason, details.was_execution_failure);
        assert_eq!(found, (FailureReason::Cancelled, ran), "{name}");
        assert_eq!(
            system.trail_of(name).expect("a trail").last(),
            Some(&EventType::WorkflowFailed)
        );
    }
    let ended = system
        .namespace
        .api::<WorkflowExecution>()
        .get("succeeded")
        .await
        .expect("found");
    assert_eq!(condition(&ended, "Ready"), "True/Ready", "state unchanged");
    let left = system.jobs().await.expect("listed");
    let left: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
    assert!(
        left.iter().all(|name| name.starts_with("succeeded-")),
        "{left:?}"
    );
    assert!(system.live_pods().await.expect("listed").is_empty());
    for name in ["waiting", "starting", "running", "succeeded"] {
        system.unlocked(name).await.expect("target unlocked");
    }
}

/// BR-WE-014
#[tokio::test]
async fn namespace_deleted_leaves_no_jobs_pods_or_locks() {
    let cluster = cluster().await;
    let all = workflows(&cluster);
    let [sleeps, _, fails, ..] = &all;
    let mut system = System::install(&cluster, "ns-gone", &all.each_ref())
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    system
        .create(sleeps, "running", &json!({}))
        .await
        .expect("stored");
    system
        .create(fails, "blocks", &json!({}))
        .await
        .expect("stored");
    system
        .until("running", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("condition reached");
    system.ended("blocks").await.expect("ended");
    let namespaces: Api<Namespace> = Api::all(cluster.admin());
    let name = system.namespace.name();
    namespaces
        .delete(name, &DeleteParams::background())
        .await
        .expect("deleted");
    wait::gone(&namespaces, name, 3 * SECONDS_30)
        .await
        .expect("gone");
    assert_nothing_left(&system).await;
    let ran = [
        EventType::SelectionCompleted,
        EventType::ExecutionStarted,
        EventType::WorkflowStarted,
        EventType::WorkflowFailed,
    ];
    for name in ["running", "blocks"] {
        assert_eq!(system.trail_of(name).expect("a trail"), ran, "{name}");
    }
}

/// BR-WE-013: the lock keeps the block of a WorkflowExecution that is gone with its namespace.
#[tokio::test]
async fn block_of_deleted_namespace_stays_until_target_is_cleared() {
    let cluster = cluster().await;
    let (fails, succeeds) = (
        Script::push(&cluster, "fails", "exit 1", ""),
        Script::push(&cluster, "succeeds", "true", ""),
    );
    let mut system = System::install(&cluster, "ns-block", &[&fails, &succeeds])
        .await
        .expect("installed");
    // Locks are garbage-collected at once where no rule needs them.
    let flags = [
        "--cooldown=1s",
        "--backoff-base=1s",
        "--backoff-max=1s",
        "--retention=1s",
    ];
    system.controller_flags.extend(flags.map(str::to_owned));
    system.start_controller().await.expect("started");
    let spec = json!({});
    system
        .create(&fails, "blocks", &spec)
        .await
        .expect("stored");
    system.ended("blocks").await.expect("ended");
    let namespaces: Api<Namespace> = Api::all(cluster.admin());
    let name = system.namespace.name();
    namespaces
        .delete(name, &DeleteParams::background())
        .await
        .expect("deleted");
    wait::gone(&namespaces, name, 3 * SECONDS_30)
        .await
        .expect("gone");
    let again = Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    namespaces
        .create(&PostParams::default(), &again)
        .await
        .expect("created");
    // The restarted controller garbage-collects first.
    system.kill_controller().await.expect("killed");
    system.start_controller().await.expect("started");
    let same_target = json!({ "targetResource": "prod/Deployment/blocks" });
    system
        .create(&succeeds, "skipped", &same_target)
        .await
        .expect("stored");
    let skipped = system.ended("skipped").await.expect("ended");
    let details = skipped
        .status
        .and_then(|it| it.skip_details)
        .expect("details");
    assert_eq!(details.reason, SkipReason::PreviousExecutionFailed);
    let execution = system.execution.name();
    let command = format!(
        "wfe-controller clear-target prod/Deployment/blocks --execution-namespace {execution} --reason "
    );
    assert!(details.message.contains(&command), "{}", details.message);
    let reason = "the deployment was restored";
    let arguments = [
        "clear-target",
        "prod/Deployment/blocks",
        "--execution-namespace",
        execution,
        "--reason",
        reason,
    ];
    let (success, text) = system.controller_command(&arguments).await.expect("run");
    assert!(!success && text.contains("verb release"), "{text}");
    let (success, text) = system.admin_command(&arguments).await.expect("run");
    assert!(
        success && text.contains("cleared the block of WorkflowExecution"),
        "{text}"
    );
    system
        .create(&succeeds, "runs", &same_target)
        .await
        .expect("stored");
    let runs = system.ended("runs").await.expect("ended");
    assert_eq!(condition(&runs, "Ready"), "True/Ready");
}

/// BR-WE-014
#[tokio::test]
async fn deleted_before_first_reconcile_is_finalized_and_audited() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "unseen", "true", "");
    let mut system = System::install(&cluster, "unseen", &[&workflow])
        .await
        .expect("installed");
    let mut request = workflow.request("unseen", &json!({}));
    request.metadata.finalizers = Some(vec![wfe_model::FINALIZER.to_owned()]);
    let api = system.namespace.api::<WorkflowExecution>();
    api.create(&PostParams::default(), &request)
        .await
        .expect("stored");
    system.delete("unseen").await.expect("deleted");
    system.start_controller().await.expect("started");
    system.gone("unseen").await.expect("gone");
    assert_nothing_left(&system).await;
    assert_eq!(
        system.trail_of("unseen").expect("a trail"),
        [EventType::WorkflowFailed]
    );
}

/// BR-WE-014
#[tokio::test]
async fn job_recreated_with_same_name_is_not_adopted() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "sleeps", SLEEPS, "");
    let mut system = start_with_running(&cluster, "replaced", &workflow).await;
    system.kill_controller().await.expect("killed");
    let jobs = system.execution.api::<Job>();
    let original = system.jobs().await.expect("listed").remove(0);
    let name = original.name_any();
    jobs.delete(&name, &DeleteParams::background())
        .await
        .expect("deleted");
    wait::gone(&jobs, &name, SECONDS_30).await.expect("gone");
    let mut recreated = Job {
        metadata: original.metadata.clone(),
        spec: original.spec.clone(),
        status: None,
    };
    (recreated.metadata.uid, recreated.metadata.resource_version) = (None, None);
    let spec = recreated.spec.as_mut().expect("a spec");
    (spec.selector, spec.manual_selector) = (None, None);
    let labels = spec
        .template
        .metadata
        .as_mut()
        .and_then(|it| it.labels.as_mut())
        .expect("labels");
    labels.retain(|key, _| !key.contains("controller-uid") && !key.contains("job-name"));
    jobs.create(&PostParams::default(), &recreated)
        .await
        .expect("created");

    system.start_controller().await.expect("started");
    let wfe = system.ended("mine").await.expect("ended");
    let details = wfe
        .status
        .and_then(|status| status.failure_details)
        .expect("details");
    assert_eq!(details.reason, FailureReason::ExecutionDeleted);
    assert!(details.message.contains(&name), "{}", details.message);
    wait::gone(&jobs, &name, SECONDS_30)
        .await
        .expect("garbage-collected without an owner");
}

/// BR-WE-014
#[tokio::test]
async fn job_without_labels_is_tracked_to_completion() {
    let cluster = cluster().await;
    let workflow = Script::push(&cluster, "edited", "sleep 8", "");
    let system = start_with_running(&cluster, "edited", &workflow).await;
    let name = system.jobs().await.expect("listed")[0].name_any();
    let none = Patch::Merge(json!({ "metadata": { "labels": null } }));
    let jobs = system.execution.api::<Job>();
    jobs.patch(&name, &PatchParams::default(), &none)
        .await
        .expect("edited");
    let api = system.namespace.api::<WorkflowExecution>();
    let phase = api.get("mine").await.expect("found").phase();
    assert_eq!(phase, Some(Phase::Running), "edited while the Job ran");
    let wfe = system.ended("mine").await.expect("ended");
    assert_eq!(condition(&wfe, "Ready"), "True/Ready");
    system.delete("mine").await.expect("deleted");
    system.gone("mine").await.expect("gone");
    assert_nothing_left(&system).await;
}

/// BR-WE-009: the execution that waits for the target then runs.
#[tokio::test]
async fn orphaned_job_and_lock_are_garbage_collected() {
    let cluster = cluster().await;
    let (sleeps, succeeds) = (
        Script::push(&cluster, "sleeps", SLEEPS, ""),
        Script::push(&cluster, "succeeds", "true", ""),
    );
    let mut system = System::install(&cluster, "orphan", &[&sleeps, &succeeds])
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    let api = system.namespace.api::<WorkflowExecution>();
    system
        .create(&sleeps, "vanishes", &json!({}))
        .await
        .expect("stored");
    system
        .until("vanishes", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("condition reached");
    let waits = json!({ "targetResource": "prod/Deployment/vanishes", "executionConfig": { "whenBlocked": "Wait" } });
    system
        .create(&succeeds, "next", &waits)
        .await
        .expect("stored");
    system
        .until("next", "Blocked", "True/ResourceBusy")
        .await
        .expect("condition reached");
    system.kill_controller().await.expect("killed");
    // Backdates the lock, as after a long run.
    let leases = system.execution.api::<Lease>();
    let lock = leases
        .list(&ListParams::default())
        .await
        .expect("listed")
        .items
        .remove(0);
    let earlier = Patch::Merge(json!({ "spec": { "acquireTime": "2026-01-01T00:00:00.000000Z" } }));
    let name = lock.name_any();
    let patched = leases.patch(&name, &PatchParams::default(), &earlier).await;
    patched.expect("patched");
    let no_finalizers = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    api.patch("vanishes", &PatchParams::default(), &no_finalizers)
        .await
        .expect("finalizers removed");
    system.delete("vanishes").await.expect("deleted");
    system.gone("vanishes").await.expect("gone");
    system.start_controller().await.expect("started");
    let next = system.ended("next").await.expect("ended");
    assert_eq!(condition(&next, "Ready"), "True/Ready");
    assert!(system.holders().await.expect("listed").is_empty());
    let metrics = system.controller_metrics().await.expect("metrics");
    let lost = "workflowexecution_audit_events_total{event_type=\"workflowexecution.workflow.failed\",result=\"lost\"} 1";
    assert!(metrics.contains(lost), "{metrics}");
}

/// BR-WE-014
#[tokio::test]
async fn release_command_removes_finalizers_and_lists_what_is_abandoned() {
    let cluster = cluster().await;
    let (sleeps, fails) = (
        Script::push(&cluster, "sleeps", SLEEPS, ""),
        Script::push(&cluster, "fails", "exit 1", ""),
    );
    let mut system = System::install(&cluster, "release", &[&sleeps, &fails])
        .await
        .expect("installed");
    system.start_controller().await.expect("started");
    system
        .create(&sleeps, "running", &json!({}))
        .await
        .expect("stored");
    system
        .create(&fails, "blocks", &json!({}))
        .await
        .expect("stored");
    system
        .until("running", "ExecutionRunning", "True/ExecutionStarted")
        .await
        .expect("condition reached");
    system.ended("blocks").await.expect("ended");
    system.kill_controller().await.expect("killed");
    let namespace = system.namespace.name().to_owned();
    let arguments = ["release", "--namespace", &namespace];
    let (success, text) = system.controller_command(&arguments).await.expect("run");
    assert!(success, "{text}");
    for says in [
        "running: finalizer removed (Job ",
        "blocks: finalizer removed (the block of its target can then be cleared by wfe-controller clear-target only)",
        "removed the finalizer of 2 WorkflowExecutions",
    ] {
        assert!(text.contains(says), "{says} is missing in {text}");
    }
    for name in ["running", "blocks"] {
        system.delete(name).await.expect("deleted");
        system.gone(name).await.expect("gone");
    }
    let api = system.namespace.api::<WorkflowExecution>();
    assert!(
        api.list(&ListParams::default())
            .await
            .expect("listed")
            .items
            .is_empty()
    );
}
