use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use enumset::EnumSet;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use rstest::rstest;
use serde_json::{Value, json};
use wfe_model::FINALIZER;
use wfe_model::audit::EventType;
use wfe_model::dependencies::{
    Dependency, DependencyKind, DependencyProblem, ServiceAccountAnswer,
};
use wfe_model::rules::Violation;
use wfe_model::served::ServedKind;
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::{
    BlockClearance, ClearMethod, ExecutionRef, FailureReason, Phase, SkipReason, WorkflowExecution,
};

use super::decide;
use crate::audit;
use crate::condition::ConditionType;
use crate::execution::{
    Alive, Cause, Created, Execution, Facts, Progress, Refusal, Remains, Source, Tasks, Waiting,
};
use crate::history::{Entry, Limits};
use crate::lock::{self, Lock, TargetLock};
use crate::names;
use crate::observed::Delivery;
use crate::observed::{Answer, Answers, Gate, Observed, Settings, resolve};
use crate::status::time;
use crate::status::{holds, stored};
use crate::step::{Effect, Notice, Step};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Start deadline of [`wfe`], which is created at 11:58 with a timeout of 30 minutes.
const START_DEADLINE: &str = "wait until 2026-01-01T12:28:00Z";
/// Start timeout of [`running`], whose execution is created at 11:59.
const START_TIMEOUT: &str = "wait until 2026-01-01T12:04:00Z";

/// The catalog does not have the workflow.
pub(super) fn not_found() -> Violation {
    let workflow_id = "restart".to_owned();
    Violation::WorkflowNotFound { workflow_id }
}

fn workflow() -> Workflow {
    let yaml = format!(
        "metadata: {{workflowId: w, version: '1'}}\nexecution: {{engine: job, bundle: 'r.io/w@sha256:{HEX}'}}\ndependencies: {{secrets: [{{name: s}}]}}\n"
    );
    Workflow::read("w.yaml", &yaml)
        .expect("a valid workflow")
        .workflow
}

/// What the API server serves by the name `Deployment`.
pub(super) fn deployments() -> Vec<ServedKind> {
    vec![ServedKind {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        namespaced: true,
        readable: true,
        ..ServedKind::default()
    }]
}

pub(super) fn wfe(status: Value) -> WorkflowExecution {
    let mut wfe: WorkflowExecution = serde_json::from_value(json!({
        "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
        "metadata": { "name": "a", "namespace": "prod", "uid": "u", "generation": 1, "finalizers": [FINALIZER], "creationTimestamp": "2026-01-01T11:58:00Z" },
        "spec": {
            "executionEngine": "job", "targetResource": "prod/Deployment/web",
            "workflowRef": { "workflowId": "w", "version": "1", "containerImage": format!("r.io/w@sha256:{HEX}") },
        },
    }))
    .expect("a WorkflowExecution");
    wfe.status = serde_json::from_value(status).expect("a status");
    wfe
}

pub(super) fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().expect("a timestamp")
}

/// A valid request with every answer given and the lock taken: the create is the next step.
pub(crate) fn ready() -> Observed {
    Observed {
        now: now(),
        wfe: Arc::new(wfe(json!(null))),
        source: Source {
            namespace: "prod".to_owned(),
            name: "a".to_owned(),
            uid: "u".to_owned(),
        },
        execution: None,
        pods_alive: false,
        began: None,
        others_alive: None,
        lock: Lock::Ours,
        target_lock: TargetLock::default(),
        neighbours: Vec::new(),
        failing: HashSet::new(),
        stuck: false,
        unread: None,
        gate: Gate::Open,
        gate_doubtful: false,
        namespace_terminating: false,
        notified: HashSet::new(),
        engine_installed: true,
        audit: Delivery::default(),
        answers: Answers {
            kinds: Some(Answer::Known(deployments())),
            workflow: Some(Answer::Known(resolve(
                &wfe(json!(null)).spec,
                Ok(&Arc::new(workflow())),
            ))),
            service_account: Some(Answer::Known(ServiceAccountAnswer::Allowed)),
            dependencies: Some(Answer::Known(Vec::new())),
            lock_taken: true,
            ..Answers::default()
        },
        settings: Arc::new(Settings {
            execution_namespace: "kubernaut-workflows".to_owned(),
            default_timeout: Duration::from_mins(30),
            default_service_account: "runner".to_owned(),
            retention: Duration::from_mins(10),
            retention_failed: Duration::from_hours(24),
            start_timeout: Duration::from_mins(5),
            default_resources: wfe_model::workflow::Resources::default(),
            ttl_after_finished: None,
            max_waiting_per_target: 64,
            limits: Limits {
                cooldown: Duration::from_mins(5),
                backoff_base: Duration::from_mins(1),
                backoff_max: Duration::from_mins(10),
                max_consecutive_failures: 5,
            },
        }),
    }
}

fn with(change: impl FnOnce(&mut Observed)) -> Observed {
    let mut observed = ready();
    change(&mut observed);
    observed
}

pub(super) fn execution(progress: Progress) -> Execution {
    Execution {
        reference: ExecutionRef {
            kind: "Job".to_owned(),
            name: "a-1".to_owned(),
            namespace: "kubernaut-workflows".to_owned(),
            uid: "j".to_owned(),
            ..ExecutionRef::default()
        },
        source_uid: Some("u".to_owned()),
        created: Some(now()),
        ending: false,
        deleted_at: None,
        held: false,
        queued: false,
        resumed: None,
        began: None,
        timeout: None,
        image: Some("r.io/w@sha256:0".to_owned()),
        tasks: Tasks::default(),
        ends_with_pods: true,
        progress,
    }
}

fn succeeded(at: Option<Timestamp>) -> Progress {
    Progress::Succeeded { at, summary: None }
}

fn active() -> Execution {
    execution(Progress::Active { waiting: None })
}

fn running() -> Observed {
    with(|it| {
        let reference = active().reference;
        it.wfe = Arc::new(wfe(
            json!({ "phase": "Running", "startTime": "2026-01-01T11:59:00Z", "executionRef": reference }),
        ));
        it.execution = Some(active());
        // The Events give no reason for a slow start.
        it.answers = Answers {
            startup_diagnosis: Some(None),
            ..Answers::default()
        };
    })
}

fn finished(phase: &str) -> Observed {
    with(|it| {
        it.wfe = Arc::new(wfe(json!({
            "phase": phase, "completionTime": "2026-01-01T11:59:00Z", "executionRef": active().reference,
            "conditions": [{ "type": "AuditRecorded", "status": "True", "reason": "AuditSucceeded", "message": "", "lastTransitionTime": "2026-01-01T11:59:00Z" }],
        })));
        it.lock = Lock::Free;
        it.answers = Answers::default();
    })
}

pub(super) fn name(step: &Step) -> String {
    match step {
        Step::Ask(question) => format!("ask {question:?}")
            .split(['(', ' '])
            .take(2)
            .collect::<Vec<_>>()
            .join(" "),
        Step::Do(effect) => effect.name().to_owned(),
        Step::Wait(until) => format!("wait until {until}"),
        Step::Done => "done".to_owned(),
    }
}

/// The WorkflowExecution with the status that the next step stores.
pub(super) fn stores(observed: &Observed) -> WorkflowExecution {
    let Step::Do(Effect::Store(status)) = decide(observed) else {
        panic!("no status is stored: {:?}", decide(observed))
    };
    WorkflowExecution {
        status: Some(*status),
        ..observed.wfe.as_ref().clone()
    }
}

pub(super) fn other() -> Source {
    Source {
        namespace: "prod".to_owned(),
        name: "other".to_owned(),
        uid: "o".to_owned(),
    }
}

pub(super) fn other_alive() -> Alive {
    Alive {
        source: other(),
        object: "pod kubernaut-workflows/other-1".to_owned(),
        timeout: None,
    }
}

fn held() -> Lock {
    Lock::Held(other())
}

/// BR-WE-014
#[rstest]
#[case(|it: &mut Observed| Arc::make_mut(&mut it.wfe).metadata.finalizers = None, "add finalizer")]
#[case(|it: &mut Observed| it.answers.kinds = None, "ask TargetKind")]
#[case(|it: &mut Observed| it.answers.workflow = None, "ask Workflow")]
#[case(|it: &mut Observed| it.answers.service_account = None, "ask ServiceAccount")]
#[case(|it: &mut Observed| it.answers.dependencies = None, "ask Dependencies")]
#[case(|it: &mut Observed| it.lock = Lock::Free, "take lock")]
#[case(|it: &mut Observed| { it.lock = Lock::Free; it.answers.lock_lost = true; }, "ask Lock")]
#[case(|it: &mut Observed| it.others_alive = Some(other_alive()), START_DEADLINE)]
#[case(|_: &mut Observed| (), "create execution")]
#[case(|it: &mut Observed| it.answers.created = Some(Created::Ours(Box::new(active()))), "store status")]
#[case(|it: &mut Observed| it.execution = Some(active()), "create execution")]
fn pending_lacking_one_fact_returns_step_for_it(
    #[case] change: impl FnOnce(&mut Observed),
    #[case] step: &str,
) {
    assert_eq!(name(&decide(&with(change))), step);
}

/// BR-WE-009
#[test]
fn pending_without_lock_does_not_create() {
    for lock in [Lock::Free, held()] {
        assert_ne!(
            name(&decide(&with(|it| it.lock = lock))),
            "create execution"
        );
    }
}

/// BR-WE-001
#[rstest]
#[case(|it: &mut Observed| it.answers.workflow = Some(Answer::Unavailable("down".to_owned())), ConditionType::WorkflowResolved, "CatalogUnavailable")]
#[case(|it: &mut Observed| it.answers.dependencies = Some(Answer::Unavailable("down".to_owned())), ConditionType::DependenciesReady, "ReadFailed")]
#[case(|it: &mut Observed| it.answers.service_account = Some(Answer::Unavailable("down".to_owned())), ConditionType::DependenciesReady, "ReadFailed")]
fn pending_with_unavailable_answer_stores_unknown_once_and_retries(
    #[case] change: impl FnOnce(&mut Observed),
    #[case] kind: ConditionType,
    #[case] reason: &str,
) {
    let mut observed = with(change);
    let stored_wfe = stores(&observed);
    let condition = stored(&stored_wfe, kind).expect("a condition");
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("Unknown", reason)
    );
    assert_eq!(stored_wfe.phase(), Some(Phase::Pending));
    observed.wfe = Arc::new(stored_wfe);
    // Stored already: the delay grows with the time for which reads have failed.
    for (failing, min, max) in [(0, 5, 6), (20, 20, 25), (600, 120, 150)] {
        observed.now = now() + Duration::from_secs(failing);
        let Step::Wait(until) = decide(&observed) else {
            panic!("{}", name(&decide(&observed)));
        };
        let delay = until.duration_since(observed.now).as_secs();
        assert!((min..=max).contains(&delay), "{delay} s after {failing} s");
    }
}

/// BR-WE-012
#[rstest]
#[case(|it: &mut Observed| it.answers.workflow = Some(Answer::Known(resolve(&it.wfe.spec, Err(not_found())))), FailureReason::ConfigurationError)]
#[case(|it: &mut Observed| it.engine_installed = false, FailureReason::UnsupportedEngine)]
#[case(|it: &mut Observed| it.answers.service_account = Some(Answer::Known(ServiceAccountAnswer::NotLabelled)), FailureReason::ServiceAccountNotAllowed)]
#[case(|it: &mut Observed| it.answers.dependencies = Some(Answer::Known(vec![DependencyProblem::Empty { dependency: Dependency { kind: DependencyKind::Secret, name: "s".to_owned() }, namespace: "n".to_owned() }])), FailureReason::ConfigurationError)]
#[case(|it: &mut Observed| Arc::make_mut(&mut it.wfe).spec.target_resource = "web".to_owned(), FailureReason::ConfigurationError)]
#[case(|it: &mut Observed| it.answers.created = Some(Created::NameTaken), FailureReason::ConfigurationError)]
#[case(|it: &mut Observed| it.answers.created = Some(Created::Refused { refusal: Refusal::Rights, message: "no".to_owned() }), FailureReason::Forbidden)]
fn pending_that_cannot_run_fails_before_execution(
    #[case] change: impl FnOnce(&mut Observed),
    #[case] reason: FailureReason,
) {
    let failed = stores(&with(change));
    let details = failed
        .status
        .as_ref()
        .and_then(|status| status.failure_details.clone())
        .expect("details");
    assert_eq!(
        (
            failed.phase(),
            details.reason,
            details.was_execution_failure
        ),
        (Some(Phase::Failed), reason, false)
    );
}

/// BR-WE-009
#[test]
fn pending_on_busy_target_is_skipped_or_waits() {
    let skipped = stores(&with(|it| it.lock = held()));
    assert_eq!(
        skipped
            .status
            .as_ref()
            .and_then(|status| status.skip_details.as_ref())
            .map(|it| it.reason),
        Some(SkipReason::ResourceBusy)
    );
    let mut waits = with(|it| {
        it.lock = held();
        Arc::make_mut(&mut it.wfe)
            .spec
            .execution_config
            .when_blocked = Some("Wait".to_owned());
    });
    let waiting = stores(&waits);
    assert_eq!(waiting.phase(), Some(Phase::Pending));
    waits.wfe = Arc::new(waiting);
    assert_eq!(
        name(&decide(&waits)),
        START_DEADLINE,
        "the Lease watch triggers the next reconcile"
    );
}

/// BR-WE-003
#[test]
fn running_until_success_stores_start_and_end_once() {
    assert_eq!(
        name(&decide(&running())),
        START_TIMEOUT,
        "nothing has changed"
    );
    let mut began = running();
    began.execution = Some(Execution {
        began: Some(now()),
        ..active()
    });
    let stored_wfe = stores(&began);
    assert!(holds(&stored_wfe, ConditionType::ExecutionRunning));
    began.wfe = Arc::new(stored_wfe);
    assert_eq!(
        name(&decide(&began)),
        "wait until 2026-01-01T12:31:00Z",
        "the start is stored once"
    );
    began.execution = Some(Execution {
        began: Some(now()),
        ..execution(succeeded(Some(now())))
    });
    let ended = stores(&began);
    assert_eq!(ended.phase(), Some(Phase::Succeeded));
    assert_eq!(
        ended.status.and_then(|status| status.duration).as_deref(),
        Some("1m")
    );
}

/// BR-WE-003
#[test]
fn running_waiting_reason_is_stored_once_and_kept_for_failure() {
    let waiting = |reason: &str| {
        Some(Waiting {
            cause: Cause::ImageNotPulled,
            message: format!("{reason}: why"),
        })
    };
    let mut observed = running();
    observed.execution = Some(execution(Progress::Active {
        waiting: waiting("ErrImagePull"),
    }));
    let stored_wfe = stores(&observed);
    assert_eq!(
        stored(&stored_wfe, ConditionType::ExecutionRunning).map(|it| it.reason.as_str()),
        Some("Waiting")
    );
    observed.wfe = Arc::new(stored_wfe);
    observed.execution = Some(execution(Progress::Active {
        waiting: waiting("ImagePullBackOff"),
    }));
    assert_eq!(
        name(&decide(&observed)),
        START_TIMEOUT,
        "the cause is the same"
    );
    let facts = Facts {
        reason: Some("DeadlineExceeded".to_owned()),
        over_deadline: true,
        ..Facts::default()
    };
    observed.execution = Some(execution(Progress::Failed {
        at: Some(now()),
        facts,
    }));
    assert_eq!(
        name(&decide(&observed)),
        "ask Execution",
        "the pod may show the container's end"
    );
    observed.answers.execution = Some(observed.execution.clone());
    let details = stores(&observed)
        .status
        .and_then(|status| status.failure_details)
        .expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::ImagePullBackOff, false)
    );
}

/// BR-WE-003
#[test]
fn running_not_in_cache_is_read_uncached_before_failing() {
    let missing = |read| {
        let mut observed = running();
        observed.execution = None;
        observed.answers.execution = read;
        observed
    };
    assert_eq!(name(&decide(&missing(None))), "ask Execution");
    assert_eq!(
        name(&decide(&missing(Some(Some(active()))))),
        "wait until 2026-01-01T12:00:05Z",
        "the execution is followed by uncached reads"
    );
    let other = Execution {
        reference: ExecutionRef {
            uid: "another".to_owned(),
            ..active().reference
        },
        ..active()
    };
    for read in [None, Some(other)] {
        let details = stores(&missing(Some(read)))
            .status
            .and_then(|status| status.failure_details)
            .expect("details");
        assert_eq!(
            (details.reason, details.was_execution_failure),
            (FailureReason::ExecutionDeleted, true)
        );
    }
}

/// BR-WE-009
#[rstest]
#[case(|it: &mut Observed| { it.lock = Lock::Ours; it.pods_alive = true; }, "wait until 2026-01-01T12:01:00Z")]
#[case(|it: &mut Observed| it.lock = Lock::Ours, "ask Remains")]
#[case(|it: &mut Observed| { it.lock = Lock::Ours; it.answers.remains = Some(Remains::Nothing); }, "free lock")]
#[case(|it: &mut Observed| it.execution = Some(active()), "ask Execution")]
#[case(|it: &mut Observed| { it.execution = Some(active()); it.answers.execution = Some(Some(active())); }, "cancel execution")]
#[case(|it: &mut Observed| it.execution = Some(execution(succeeded(None))), "wait until 2026-01-01T12:09:00Z")]
#[case(|it: &mut Observed| { it.execution = Some(execution(succeeded(None))); it.now = now() + Duration::from_mins(9); }, "delete execution")]
#[case(|_: &mut Observed| (), "done")]
fn finished_frees_lock_then_deletes_execution_after_retention(
    #[case] change: impl FnOnce(&mut Observed),
    #[case] step: &str,
) {
    let mut observed = finished("Succeeded");
    change(&mut observed);
    assert_eq!(name(&decide(&observed)), step);
}

/// An execution whose pods end a moment after it.
fn pipeline(progress: Progress) -> Execution {
    Execution {
        ends_with_pods: false,
        ..execution(progress)
    }
}

/// BR-WE-009: the end of a pipeline does not prove that its pods have ended, and a cancelled one runs
/// its last tasks.
#[rstest]
#[case(|it: &mut Observed| it.execution = Some(pipeline(succeeded(None))), "ask Remains")]
#[case(|it: &mut Observed| { it.execution = Some(pipeline(succeeded(None))); it.answers.remains = Some(Remains::Alive); }, "wait until 2026-01-01T12:00:05Z")]
#[case(|it: &mut Observed| { it.execution = Some(pipeline(succeeded(None))); it.answers.remains = Some(Remains::Ended); }, "free lock")]
#[case(|it: &mut Observed| it.execution = Some(Execution { ending: true, ..pipeline(Progress::Active { waiting: None }) }), "wait until 2026-01-01T12:32:00Z")]
fn finished_pipeline_keeps_lock_until_its_pods_have_ended(
    #[case] change: impl FnOnce(&mut Observed),
    #[case] step: &str,
) {
    let mut observed = finished("Failed");
    observed.lock = Lock::Ours;
    change(&mut observed);
    assert_eq!(name(&decide(&observed)), step);
}

/// BR-WE-014: only a reason cancels.
#[rstest]
#[case("wrong target", true)]
#[case(" ", false)]
#[case("False", false)]
fn cancel_annotation_cancels_only_with_a_reason(#[case] value: &str, #[case] cancels: bool) {
    let mut observed = running();
    let annotations = &mut Arc::make_mut(&mut observed.wfe).metadata.annotations;
    annotations
        .get_or_insert_default()
        .insert(wfe_model::CANCEL.to_owned(), value.to_owned());
    let asks = name(&decide(&observed)) == "ask Execution";
    assert_eq!(asks, cancels);
}

/// BR-WE-003: the start timeout counts from the start, also of an object that was created long ago.
#[test]
fn held_execution_adopted_late_starts_with_its_full_timeout() {
    let created = Execution {
        held: true,
        created: Some(now() - Duration::from_mins(10)),
        ..active()
    };
    let stored = stores(&with(|it| {
        it.answers.created = Some(Created::Ours(Box::new(created)));
    }));
    let status = stored.status.expect("a status");
    assert_eq!(status.start_time.map(|it| it.0), Some(now()));
}

/// BR-WE-003: a start that always fails ends at the start timeout.
#[test]
fn held_execution_is_not_started_after_its_start_timeout() {
    let mut observed = running();
    observed.execution = Some(Execution {
        held: true,
        ..active()
    });
    observed.lock = Lock::Ours;
    assert_eq!(name(&decide(&observed)), "start execution");
    observed.now = now() + Duration::from_mins(10);
    assert_eq!(name(&decide(&observed)), "ask Execution");
}

/// BR-WE-003: one status write for each change, and none back.
#[rstest]
#[case((0, 0), (0, 2), true)]
#[case((0, 2), (1, 2), true)]
#[case((1, 2), (1, 2), false)]
#[case((1, 2), (0, 2), false)]
fn running_pipeline_stores_progress_when_it_changes(
    #[case] stored: (i32, i32),
    #[case] seen: (i32, i32),
    #[case] writes: bool,
) {
    let mut observed = running();
    let status = Arc::make_mut(&mut observed.wfe).status.as_mut();
    let status = status.expect("a status");
    let began = json!([{ "type": "ExecutionRunning", "status": "True", "reason": "ExecutionStarted", "message": "", "lastTransitionTime": now() }]);
    status.conditions = serde_json::from_value(began).expect("conditions");
    let summary =
        json!({ "status": "Unknown", "completedTasks": stored.0, "totalTasks": stored.1 });
    status.execution_status = serde_json::from_value(summary).expect("a summary");
    observed.execution = Some(Execution {
        tasks: Tasks {
            completed: seen.0,
            total: seen.1,
        },
        ..pipeline(Progress::Active { waiting: None })
    });
    assert_eq!(name(&decide(&observed)) == "store status", writes);
}

/// BR-WE-009: a create that is committed late creates only a suspended object.
#[test]
fn finished_without_execution_frees_lock_when_nothing_remains() {
    let mut observed = finished("Skipped");
    let status = Arc::make_mut(&mut observed.wfe).status.as_mut();
    status.expect("a status").execution_ref = None;
    observed.lock = Lock::Ours;
    assert_eq!(name(&decide(&observed)), "ask Remains");
    observed.answers.remains = Some(Remains::Nothing);
    assert_eq!(name(&decide(&observed)), "free lock");
}

/// BR-WE-009: only the object in `executionRef` is started, once, while the lock is held.
#[test]
fn held_execution_is_started_when_stored_and_locked() {
    let held = || Execution {
        held: true,
        ..active()
    };
    let mut observed = running();
    observed.execution = Some(held());
    assert_eq!(name(&decide(&observed)), "start execution");
    observed.answers.started = true;
    assert_eq!(name(&decide(&observed)), START_TIMEOUT, "once in a pass");
    observed.answers.started = false;
    observed.lock = Lock::Free;
    assert_eq!(name(&decide(&observed)), "take lock");
    observed.lock = Lock::Held(other());
    assert_eq!(
        name(&decide(&observed)),
        START_TIMEOUT,
        "another WorkflowExecution holds the lock"
    );

    observed.lock = Lock::Ours;
    let mut late = held();
    late.reference.uid = "late".to_owned();
    observed.execution = Some(late.clone());
    assert_eq!(name(&decide(&observed)), "ask Execution", "another uid");
    observed.answers.execution = Some(Some(late));
    assert_eq!(stores(&observed).phase(), Some(Phase::Failed));

    let mut created = with(|it| it.answers.created = Some(Created::Ours(Box::new(held()))));
    created.wfe = Arc::new(stores(&created));
    assert_eq!(
        name(&decide(&created)),
        "start execution",
        "in the same pass"
    );
}

/// BR-WE-003
#[test]
fn running_past_start_timeout_fails_after_uncached_reads() {
    let mut observed = running();
    observed.now = now() + Duration::from_mins(4);
    assert_eq!(name(&decide(&observed)), "ask Execution");
    let began = Execution {
        began: Some(now()),
        ..active()
    };
    observed.answers.execution = Some(Some(began));
    assert!(
        holds(&stores(&observed), ConditionType::ExecutionRunning),
        "a container has started"
    );

    observed.answers.execution = Some(Some(active()));
    observed.wfe = Arc::new(stores(&observed));
    assert_eq!(
        name(&decide(&observed)),
        "delete execution",
        "the start timeout is stored before the delete"
    );
    (observed.execution, observed.answers.execution) = (None, Some(None));
    assert_eq!(name(&decide(&observed)), "ask Remains");
    observed.answers.remains = Some(Remains::Nothing);
    let details = |observed: &Observed| {
        let failed = stores(observed)
            .status
            .and_then(|status| status.failure_details);
        failed.map(|it| (it.reason, it.was_execution_failure))
    };
    let deadline = FailureReason::DeadlineExceeded;
    assert_eq!(details(&observed), Some((deadline, false)));
    observed.began = Some(now());
    assert_eq!(
        details(&observed),
        Some((deadline, true)),
        "a container started during the deletion"
    );
}

/// BR-WE-003
#[test]
fn overdue_execution_or_pod_is_notified_once() {
    let mut observed = running();
    observed.execution = Some(Execution {
        began: Some(now()),
        ..active()
    });
    observed.wfe = Arc::new(stores(&observed));
    observed.now = now() + Duration::from_mins(32);
    assert_eq!(name(&decide(&observed)), "notify");
    observed.notified.insert(Notice::Overdue);
    assert_eq!(name(&decide(&observed)), "done");

    observed.notified.clear();
    observed.now = now() + Duration::from_mins(7);
    let job = observed.execution.as_mut().expect("a Job");
    job.timeout = Some(Duration::from_mins(5));
    assert_eq!(
        name(&decide(&observed)),
        "notify",
        "the Job may take less time"
    );

    let mut ended = finished("Failed");
    (ended.lock, ended.pods_alive) = (Lock::Ours, true);
    ended.now = now() + Duration::from_mins(2);
    assert_eq!(name(&decide(&ended)), "notify");
    ended.notified.insert(Notice::PodRemains);
    assert_eq!(name(&decide(&ended)), "done", "the lock is kept");
}

/// BR-WE-013
#[test]
fn finished_failed_execution_is_kept_for_failed_retention() {
    let mut observed = finished("Failed");
    observed.execution = Some(execution(Progress::Failed {
        at: None,
        facts: Facts::default(),
    }));
    assert_eq!(name(&decide(&observed)), "wait until 2026-01-02T11:59:00Z");
}

/// BR-WE-012
#[test]
fn running_without_waiting_reason_reads_events_after_delay() {
    let mut observed = running();
    let status = Arc::make_mut(&mut observed.wfe)
        .status
        .as_mut()
        .expect("a status");
    status.start_time = Some(time(now() - Duration::from_secs(9)));
    assert_eq!(name(&decide(&observed)), "wait until 2026-01-01T12:00:01Z");
    observed.now += Duration::from_secs(1);
    observed.answers = Answers::default();
    assert!(name(&decide(&observed)).starts_with("ask StartupDiagnosis"));
    observed.answers.startup_diagnosis = Some(None);
    assert_eq!(
        name(&decide(&observed)),
        "wait until 2026-01-01T12:04:51Z",
        "no reason is known yet"
    );
    let waiting = Waiting {
        cause: Cause::VolumeNotMounted,
        message: "FailedMount: no such secret".to_owned(),
    };
    observed.answers.startup_diagnosis = Some(Some(waiting));
    let stored_wfe = stores(&observed);
    let running = stored(&stored_wfe, ConditionType::ExecutionRunning).expect("a condition");
    assert_eq!(
        (running.reason.as_str(), running.message.as_str()),
        ("Waiting", "FailedMount: no such secret")
    );
    observed.wfe = Arc::new(stored_wfe);
    observed.answers = Answers::default();
    assert!(
        name(&decide(&observed)).starts_with("wait"),
        "the stored reason is used, also after a restart"
    );
}

/// BR-WE-012
#[test]
fn running_disrupted_pod_stores_disruption_at_once() {
    let mut observed = running();
    let waiting = Waiting {
        cause: Cause::Disrupted,
        message: "DeletionByTaintManager: the node is lost".to_owned(),
    };
    let mut taken = execution(Progress::Active {
        waiting: Some(waiting),
    });
    taken.began = Some(now());
    observed.execution = Some(taken);
    let stored_wfe = stores(&observed);
    assert!(
        holds(&stored_wfe, ConditionType::ExecutionRunning),
        "a container had started"
    );
    observed.wfe = Arc::new(stored_wfe);
    assert!(name(&decide(&observed)).starts_with("wait"), "stored once");
    observed.execution = Some(execution(Progress::Failed {
        at: None,
        facts: Facts::default(),
    }));
    observed.answers.execution = Some(observed.execution.clone());
    let failed = stores(&observed);
    let details = failed
        .status
        .and_then(|it| it.failure_details)
        .expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::ResourceExhausted, true)
    );
}

/// BR-AUDIT-005
#[test]
fn audit_outage_delays_only_finalizer_removal() {
    let mut observed = running();
    observed.audit.waiting = EventType::SelectionCompleted.into();
    assert_eq!(
        name(&decide(&observed)),
        "deliver audit events",
        "events are queued before any other step"
    );
    observed.audit.queued = true;
    let without_events = running();
    assert_eq!(name(&decide(&observed)), name(&decide(&without_events)));
    observed.audit.outage = Some("down".to_owned());
    observed.execution = Some(execution(succeeded(Some(now()))));
    let mut ended = observed.clone();
    ended.wfe = Arc::new(stores(&observed));
    assert_eq!(ended.wfe.phase(), Some(Phase::Succeeded));
    let recorded = stored(&ended.wfe, ConditionType::AuditRecorded).expect("a condition");
    assert_eq!(recorded.reason, "AuditSinkUnavailable");
    assert!(recorded.message.ends_with(": down"), "{}", recorded.message);
    ended.lock = Lock::Free;
    ended.audit.outage = Some("slow".to_owned());
    assert!(
        matches!(decide(&ended), Step::Wait(_)),
        "the outage is stored once and does not delay the Job's deletion"
    );

    Arc::make_mut(&mut ended.wfe).metadata.deletion_timestamp = Some(time(now()));
    ended.execution = None;
    ended.answers.recorded = true;
    assert_eq!(name(&decide(&ended)), "done", "the finalizer stays");
    let metadata = &mut Arc::make_mut(&mut ended.wfe).metadata;
    metadata.annotations = Some([(names::ABANDON_AUDIT.to_owned(), "lost".to_owned())].into());
    assert!(matches!(
        decide(&ended),
        Step::Do(Effect::Notify(Notice::AuditAbandoned))
    ));
    ended.notified.insert(Notice::AuditAbandoned);
    ended.answers.remains = Some(Remains::Nothing);
    assert_eq!(name(&decide(&ended)), "remove finalizer");
}

/// BR-AUDIT-005
#[test]
fn finished_delivery_is_recorded_once_apart_from_clearance() {
    let mut ended = finished("Failed");
    Arc::make_mut(&mut ended.wfe)
        .status
        .as_mut()
        .expect("a status")
        .conditions
        .clear();
    let acknowledged = stores(&ended);
    assert!(holds(&acknowledged, ConditionType::AuditRecorded));
    assert!(stored(&acknowledged, ConditionType::ClearanceRecorded).is_none());
    ended.wfe = Arc::new(acknowledged);
    assert_eq!(name(&decide(&ended)), "done");

    let status = Arc::make_mut(&mut ended.wfe)
        .status
        .as_mut()
        .expect("a status");
    status.block_clearance = Some(BlockClearance {
        cleared_by: "jane".to_owned(),
        cleared_by_uid: None,
        cleared_at: time(now()),
        clear_reason: "looked at it".to_owned(),
        clear_method: ClearMethod::KubernetesAdmissionWebhook,
    });
    assert_eq!(audit::unconfirmed(&ended.wfe), EventType::BlockCleared);
    ended.audit.waiting = EventType::BlockCleared.into();
    ended.audit.queued = true;
    assert_eq!(
        name(&decide(&ended)),
        "done",
        "without an outage the condition is not stored yet"
    );
    ended.audit.outage = Some("down".to_owned());
    let waits = stores(&ended);
    let reason = |wfe: &WorkflowExecution, kind| stored(wfe, kind).map(|it| it.reason.clone());
    assert_eq!(
        reason(&waits, ConditionType::ClearanceRecorded).as_deref(),
        Some("AuditSinkUnavailable")
    );
    assert!(
        holds(&waits, ConditionType::AuditRecorded),
        "the condition does not change"
    );
    ended.wfe = Arc::new(waits);
    assert_eq!(name(&decide(&ended)), "done", "stored once");
    ended.audit.waiting = EnumSet::empty();
    ended.audit.rejected = Some((EventType::BlockCleared.into(), "too long".to_owned()));
    let refused = stores(&ended);
    assert_eq!(
        reason(&refused, ConditionType::ClearanceRecorded).as_deref(),
        Some("AuditEventRejected")
    );
    assert!(
        audit::unconfirmed(&refused).is_empty(),
        "rejected events are not sent again"
    );
}

/// BR-WE-014
#[test]
fn deleted_while_running_is_cancelled_cleaned_up_and_finalized() {
    let delete = |observed: &mut Observed| {
        Arc::make_mut(&mut observed.wfe).metadata.deletion_timestamp = Some(time(now()));
    };
    let mut observed = running();
    delete(&mut observed);
    observed.answers.execution = Some(Some(active()));
    let cancelled = stores(&observed);
    let details = cancelled
        .status
        .as_ref()
        .and_then(|status| status.failure_details.clone())
        .expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::Cancelled, false)
    );

    let mut steps = Vec::new();
    let mut observed = finished("Failed");
    delete(&mut observed);
    (observed.execution, observed.lock, observed.pods_alive) = (Some(active()), Lock::Ours, true);
    observed.answers.execution = Some(Some(active()));
    steps.push(name(&decide(&observed)));
    observed.execution = None;
    steps.push(name(&decide(&observed)));
    observed.pods_alive = false;
    observed.answers.remains = Some(Remains::Nothing);
    observed.answers.recorded = true;
    steps.push(name(&decide(&observed)));
    observed.lock = Lock::Free;
    steps.push(name(&decide(&observed)));
    Arc::make_mut(&mut observed.wfe).metadata.finalizers = None;
    steps.push(name(&decide(&observed)));
    assert_eq!(
        steps,
        [
            "cancel execution",
            "wait until 2026-01-01T12:01:00Z",
            "free lock",
            "remove finalizer",
            "done"
        ]
    );
}

/// BR-WE-014: an execution that an earlier attempt created and did not start has never run.
#[test]
fn pending_with_held_execution_repeats_all_checks() {
    let mut observed = with(|it| {
        it.answers = Answers::default();
        it.execution = Some(Execution {
            held: true,
            ..active()
        });
    });
    assert_eq!(name(&decide(&observed)), "ask TargetKind");
    observed.answers = ready().answers;
    assert_eq!(
        name(&decide(&observed)),
        "create execution",
        "the create adopts the held execution"
    );
    Arc::make_mut(&mut observed.wfe).metadata.deletion_timestamp = Some(time(now()));
    assert_eq!(name(&decide(&observed)), "ask Remains");
    observed.lock = Lock::Free;
    let details = stores(&observed).status.and_then(|it| it.failure_details);
    let details = details.expect("details");
    assert_eq!(
        (details.reason, details.was_execution_failure),
        (FailureReason::Cancelled, false)
    );
}

/// BR-WE-003
#[test]
fn deleted_after_uncached_success_stores_succeeded() {
    let mut observed = running();
    Arc::make_mut(&mut observed.wfe).metadata.deletion_timestamp = Some(time(now()));
    // The cached execution may be stale.
    assert_eq!(name(&decide(&observed)), "ask Execution");
    observed.answers.execution = Some(Some(execution(succeeded(Some(now())))));
    assert_eq!(stores(&observed).phase(), Some(Phase::Succeeded));
}

/// BR-WE-009
#[test]
fn finished_not_in_cache_reads_remains_before_freeing_lock() {
    let ended = |lock, deleted: bool, remains, deleted_now| {
        let mut observed = finished("Failed");
        let wfe = Arc::make_mut(&mut observed.wfe);
        wfe.status.as_mut().expect("a status").execution_ref = Some(active().reference);
        wfe.metadata.deletion_timestamp = deleted.then(|| time(now()));
        observed.lock = lock;
        observed.answers = Answers {
            remains,
            deleted: deleted_now,
            recorded: true,
            ..Answers::default()
        };
        name(&decide(&observed))
    };
    for (lock, deleted, last) in [
        (Lock::Ours, false, "free lock"),
        (Lock::Free, true, "remove finalizer"),
    ] {
        assert_eq!(ended(lock.clone(), deleted, None, false), "ask Remains");
        assert_eq!(
            ended(lock.clone(), deleted, Some(Remains::Alive), false),
            "cancel execution"
        );
        assert_eq!(
            ended(lock.clone(), deleted, Some(Remains::Alive), true),
            "wait until 2026-01-01T12:00:05Z",
            "once in a pass"
        );
        assert_eq!(ended(lock, deleted, Some(Remains::Nothing), false), last);
    }
    assert_eq!(
        ended(Lock::Ours, false, Some(Remains::Ended), false),
        "free lock",
        "the failed execution is kept as evidence"
    );
    assert_eq!(
        ended(Lock::Free, true, Some(Remains::Ended), false),
        "delete execution"
    );
}

/// BR-AUDIT-005
#[test]
fn failed_after_resolution_reports_selection() {
    let failed = stores(&with(|it| it.engine_installed = false));
    let both = EventType::SelectionCompleted | EventType::WorkflowFailed;
    assert_eq!(audit::types(&failed), both);
    let unknown = stores(&with(|it| {
        it.answers.workflow = Some(Answer::Known(resolve(&it.wfe.spec, Err(not_found()))));
    }));
    assert_eq!(audit::types(&unknown), EventType::WorkflowFailed);
}

fn suspended(change: impl FnOnce(&mut Execution)) -> Observed {
    let mut observed = running();
    let waiting = Some(Waiting {
        cause: Cause::Suspended,
        message: "suspended".to_owned(),
    });
    let mut execution = execution(Progress::Active { waiting });
    change(&mut execution);
    observed.execution = Some(execution);
    observed
}

/// BR-WE-013: when it is resumed, a second pod would run.
#[test]
fn running_suspended_after_start_fails_and_blocks_target() {
    let failed = stores(&suspended(|it| it.began = Some(now())));
    let status = failed.status.as_ref().expect("a status");
    let details = status.failure_details.as_ref().expect("details");
    assert_eq!(details.reason, FailureReason::ResourceExhausted);
    assert!(details.was_execution_failure);
    assert!(holds(&failed, ConditionType::ExecutionRunning));
}

/// BR-WE-003: the start timeout does not count while a queue holds the execution.
#[test]
fn running_suspended_before_start_waits_without_timeout_while_it_is_queued() {
    for (queued, then) in [(true, "done"), (false, START_TIMEOUT)] {
        let mut observed = suspended(|it| it.queued = queued);
        let waiting = stores(&observed);
        let condition = stored(&waiting, ConditionType::ExecutionRunning).expect("a condition");
        assert_eq!(condition.reason, "Waiting");
        observed.wfe = Arc::new(waiting);
        let step = name(&decide(&observed));
        assert_eq!(step, then, "queued: {queued}");
        observed.now = now() + Duration::from_hours(1);
        let step = name(&decide(&observed));
        let timed_out = if queued { "done" } else { "ask Execution" };
        assert_eq!(step, timed_out, "queued: {queued}");
    }
}

/// BR-WE-003
#[test]
fn running_admitted_by_queue_has_whole_start_timeout() {
    let mut observed = running();
    observed.now = now() + Duration::from_hours(1);
    let admitted = observed.now;
    observed.execution = Some(Execution {
        queued: true,
        resumed: Some(admitted),
        ..active()
    });
    let step = name(&decide(&observed));
    assert_eq!(step, "wait until 2026-01-01T13:05:00Z");
}

/// BR-WE-014: the run does not wait for the deletion of its WorkflowExecution.
#[test]
fn running_in_namespace_that_is_being_deleted_is_cancelled() {
    let mut observed = running();
    observed.namespace_terminating = true;
    observed.answers.execution = Some(Some(active()));
    let failed = stores(&observed);
    let details = failed.status.and_then(|it| it.failure_details);
    assert_eq!(details.map(|it| it.reason), Some(FailureReason::Cancelled));
}

/// BR-WE-014: a foreign finalizer keeps the Job.
#[test]
fn finished_with_execution_that_stays_deleted_notifies_after_two_minutes() {
    let mut observed = finished("Succeeded");
    let ended = execution(succeeded(Some(now())));
    observed.execution = Some(Execution {
        ending: true,
        deleted_at: Some(now()),
        ..ended
    });
    assert_eq!(name(&decide(&observed)), "wait until 2026-01-01T12:02:00Z");
    observed.now = now() + Duration::from_mins(3);
    let step = decide(&observed);
    assert!(
        matches!(step, Step::Do(Effect::Notify(Notice::DeletionStuck))),
        "{step:?}"
    );
    observed.notified.insert(Notice::DeletionStuck);
    assert_eq!(name(&decide(&observed)), "done");
}

/// BR-WE-013: it was resumed and ran while no controller looked.
#[test]
fn running_failed_after_stored_suspension_may_have_run() {
    let mut observed = suspended(|it| it.queued = true);
    observed.wfe = Arc::new(stores(&observed));
    let resumed = Observed {
        execution: Some(active()),
        ..observed.clone()
    };
    let status = stores(&resumed).status.expect("a status");
    assert_eq!(status.execution_status, None, "the suspension is over");
    for over_deadline in [true, false] {
        let facts = Facts {
            over_deadline,
            pod_gone: true,
            ..Facts::default()
        };
        observed.execution = Some(execution(Progress::Failed { at: None, facts }));
        observed.answers.execution = Some(None);
        let failed = stores(&observed).status.expect("a status");
        let details = failed.failure_details.expect("details");
        assert!(details.was_execution_failure, "{details:?}");
        assert_ne!(details.reason, FailureReason::ResourceExhausted);
    }
}

/// BR-WE-009: the end can be stored, or cannot; the target is free in both cases.
#[rstest]
#[case::cancelled(|it: &mut Observed| {
    let annotations = [(wfe_model::CANCEL.to_owned(), "enough".to_owned())];
    Arc::make_mut(&mut it.wfe).metadata.annotations = Some(annotations.into());
})]
#[case::past_its_deadline(|it: &mut Observed| it.now = now() + Duration::from_hours(1))]
#[case::stuck(|it: &mut Observed| it.stuck = true)]
fn pending_with_lock_that_gives_up_lets_go_first(#[case] gives_up: impl FnOnce(&mut Observed)) {
    let mut observed = with(gives_up);
    observed.answers.remains = None;
    assert_eq!(name(&decide(&observed)), "ask Remains");
    observed.answers.remains = Some(Remains::Alive);
    assert_eq!(name(&decide(&observed)), "ask Execution");
    observed.answers.execution = Some(Some(Execution {
        held: true,
        ..active()
    }));
    assert_eq!(name(&decide(&observed)), "delete execution");
    observed.answers.remains = Some(Remains::Nothing);
    assert_eq!(name(&decide(&observed)), "free lock");
    observed.lock = Lock::Free;
    assert_eq!(name(&decide(&observed)), "store status");
}

/// BR-WE-013: a record that lags would bring the block back when the object is gone.
#[test]
fn finished_with_clearance_that_lock_lacks_records_it() {
    let mut observed = finished("Failed");
    let status = Arc::make_mut(&mut observed.wfe).status.as_mut();
    let status = status.expect("a status");
    status.failure_details = serde_json::from_value(json!({
        "reason": "TaskFailed", "message": "", "failedAt": "2026-01-01T11:59:00Z", "naturalLanguageSummary": "", "wasExecutionFailure": true,
    }))
    .expect("details");
    let blocks = Entry::of(&observed.wfe).expect("an entry");
    let lease = lock::freed(lock::new("n", &"abc".into()), Some(&blocks), now());
    observed.target_lock = TargetLock::from(Some(Arc::new(lease)));
    assert_ne!(name(&decide(&observed)), "record outcome");
    let status = Arc::make_mut(&mut observed.wfe).status.as_mut();
    status.expect("a status").block_clearance = Some(BlockClearance {
        cleared_by: "ann".to_owned(),
        cleared_by_uid: None,
        cleared_at: time(now()),
        clear_reason: "looked at it".to_owned(),
        clear_method: ClearMethod::KubernetesAdmissionWebhook,
    });
    observed.answers.recorded = false;
    let recorded = Condition {
        type_: ConditionType::ClearanceRecorded.as_str().to_owned(),
        status: "True".to_owned(),
        ..stored(&observed.wfe, ConditionType::AuditRecorded)
            .cloned()
            .expect("a condition")
    };
    let status = Arc::make_mut(&mut observed.wfe).status.as_mut();
    status.expect("a status").conditions.push(recorded);
    assert_eq!(name(&decide(&observed)), "record outcome");
}

/// BR-WE-013: a clearance that was written in the year 9998, or before the end, while no webhook ran.
#[rstest]
#[case("9998-12-31T00:00:00Z", true)]
#[case("1970-01-01T00:00:00Z", false)]
fn clearance_at_impossible_time_counts_from_when_it_was_noticed(
    #[case] written: &str,
    #[case] future: bool,
) {
    let mut observed = finished("Failed");
    let status = Arc::make_mut(&mut observed.wfe).status.as_mut();
    status.expect("a status").block_clearance = Some(BlockClearance {
        cleared_by: "eve".to_owned(),
        cleared_by_uid: None,
        cleared_at: time(written.parse().expect("a time")),
        clear_reason: "looked at it".to_owned(),
        clear_method: ClearMethod::KubernetesAdmissionWebhook,
    });
    let ended = observed.wfe.status.as_ref();
    let ended = ended
        .and_then(|it| it.completion_time.clone())
        .expect("a time")
        .0;
    observed.audit.waiting = EventType::BlockCleared.into();
    if future {
        observed.wfe = Arc::new(stores(&observed));
    }
    assert_eq!(name(&decide(&observed)), "deliver audit events");
    let sent = audit::events(&observed.wfe, EventType::BlockCleared.into());
    let at = sent[0].event_timestamp.as_second();
    assert_eq!(at, if future { now() } else { ended }.as_second());
    let counts = crate::status::cleared_at(&observed.wfe);
    observed.audit.waiting = EnumSet::empty();
    observed.now = now() + Duration::from_hours(3);
    let delivered = stores(&observed);
    assert!(holds(&delivered, ConditionType::ClearanceRecorded));
    assert_eq!(
        crate::status::cleared_at(&delivered),
        counts,
        "also after its delivery"
    );
}

/// An ended WorkflowExecution is deleted when nothing needs it any more.
#[test]
fn finished_beyond_its_time_to_live_is_deleted() {
    let at = |phase: &str, ttl: u64, change: fn(&mut Observed)| {
        let mut observed = finished(phase);
        let settings = Arc::make_mut(&mut observed.settings);
        settings.ttl_after_finished = Some(Duration::from_secs(ttl));
        change(&mut observed);
        name(&decide(&observed))
    };
    let kept = |_: &mut Observed| ();
    assert_eq!(
        at("Succeeded", 60, kept),
        "delete expired WorkflowExecution"
    );
    let expires = "wait until 2026-01-01T12:00:01Z";
    assert_eq!(at("Succeeded", 61, kept), expires);
    let retained = |it: &mut Observed| it.execution = Some(execution(succeeded(None)));
    assert_eq!(at("Succeeded", 61, retained), expires, "before its Job");
    let stuck = |it: &mut Observed| {
        it.execution = Some(Execution {
            ending: true,
            deleted_at: Some(now() - Duration::from_mins(10)),
            ..execution(succeeded(None))
        });
        it.notified.insert(Notice::DeletionStuck);
    };
    assert_eq!(
        at("Succeeded", 61, stuck),
        expires,
        "although its Job stays"
    );
    assert_eq!(at("Skipped", 60, kept), "delete expired WorkflowExecution");
    let undelivered = |it: &mut Observed| {
        it.audit.queued = true;
        it.audit.waiting = EnumSet::only(EventType::WorkflowCompleted);
    };
    assert_eq!(at("Succeeded", 60, undelivered), "done");
    let blocking = |it: &mut Observed| {
        let wfe = Arc::make_mut(&mut it.wfe);
        let status = wfe.status.as_mut().expect("a status");
        let details = json!({ "reason": "TaskFailed", "message": "", "failedAt": "2026-01-01T11:59:00Z", "naturalLanguageSummary": "", "wasExecutionFailure": true });
        status.failure_details = serde_json::from_value(details).expect("details");
    };
    assert_eq!(at("Failed", 60, blocking), "done", "it blocks its target");
    let deleting = |it: &mut Observed| {
        let wfe = Arc::make_mut(&mut it.wfe);
        wfe.metadata.deletion_timestamp = Some(time(now()));
    };
    assert_eq!(at("Succeeded", 60, deleting), "record outcome");
}
