use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::{Value, json};
use wfe_model::target::Target;

use super::*;
use crate::lock;

const TARGET: &str = "prod/Deployment/web";

fn at(time: &str) -> Timestamp {
    format!("2026-01-01T{time}Z").parse().expect("a timestamp")
}

fn wfe(name: &str, status: &Value) -> WorkflowExecution {
    serde_json::from_value(json!({
        "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
        "metadata": { "name": name, "namespace": "prod", "uid": name, "creationTimestamp": "2026-01-01T11:55:00Z" },
        "spec": { "executionEngine": "job", "targetResource": TARGET, "workflowRef": { "workflowId": "restart", "version": "1" } },
        "status": status,
    }))
    .expect("a WorkflowExecution")
}

fn facts() -> Facts {
    let target = Target::parse(TARGET).expect("a target");
    Facts {
        now: at("12:00:00"),
        target: TARGET.to_owned(),
        target_hash: TargetHash::of(&target),
        wfe: None,
        on_target: Vec::new(),
        unread: None,
        lock: TargetLock::default(),
        alive: Vec::new(),
        gate: Gate::Open,
        settings: Settings {
            execution_namespace: "kubernaut-workflows".to_owned(),
            default_timeout: Duration::from_mins(30),
            default_service_account: "kubernaut-workflow-runner".to_owned(),
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
        },
    }
}

fn job() -> Value {
    json!({ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "namespace": "kubernaut-workflows", "uid": "j" })
}

fn pending() -> WorkflowExecution {
    wfe("restart-2", &json!({ "phase": "Pending" }))
}

fn locked(holder: &str) -> TargetLock {
    let mut lease = lock::new("kubernaut-workflows", &facts().target_hash);
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(holder.to_owned());
    spec.acquire_time = Some(MicroTime(at("11:58:00")));
    TargetLock::from(Some(Arc::new(lease)))
}

fn failed(ran: bool, failures: i32) -> WorkflowExecution {
    wfe(
        "resize-1",
        &json!({
            "phase": "Failed", "completionTime": "2026-01-01T11:59:30Z", "executionRef": job(),
            "consecutiveFailures": (failures > 0).then_some(failures),
            "failureDetails": { "reason": "TaskFailed", "message": "", "failedAt": "2026-01-01T11:59:30Z", "naturalLanguageSummary": "", "wasExecutionFailure": ran },
        }),
    )
}

/// The ten situations of the operations guide.
fn situations() -> Vec<(&'static str, Facts)> {
    let with = |change: &dyn Fn(&mut Facts)| {
        let mut facts = facts();
        change(&mut facts);
        facts
    };
    let running =
        json!({ "phase": "Running", "startTime": "2026-01-01T11:58:00Z", "executionRef": job() });
    let succeeded = json!({ "phase": "Succeeded", "completionTime": "2026-01-01T11:57:00Z", "executionRef": job() });
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!([{
            "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T11:59:00Z",
        }])
    };
    let no_catalog = "the workflow catalog is unavailable, retrying: connection refused";
    let no_catalog = condition(
        "WorkflowResolved",
        "Unknown",
        "CatalogUnavailable",
        no_catalog,
    );
    let missing = "Secret registry is missing in namespace kubernaut-workflows";
    let not_ready = condition("DependenciesReady", "False", "DependencyMissing", missing);
    let not_ready = json!({
        "phase": "Failed", "completionTime": "2026-01-01T11:59:00Z", "conditions": not_ready,
        "failureDetails": { "reason": "ConfigurationError", "message": missing, "failedAt": "2026-01-01T11:59:00Z", "naturalLanguageSummary": "", "wasExecutionFailure": false },
    });
    vec![
        (
            "The execution namespace is paused",
            with(&|it| {
                it.wfe = Some(pending());
                it.gate = Gate::Paused;
            }),
        ),
        (
            "The target is busy",
            with(&|it| {
                it.wfe = Some(pending());
                it.on_target = vec![wfe("resize-1", &running)];
                it.lock = locked("prod/resize-1/resize-1");
            }),
        ),
        (
            "The target is cooling down",
            with(&|it| {
                it.wfe = Some(pending());
                it.on_target = vec![wfe("restart-1", &succeeded)];
            }),
        ),
        (
            "The target is backing off",
            with(&|it| {
                it.wfe = Some(pending());
                it.on_target = vec![failed(false, 1)];
            }),
        ),
        (
            "The target is blocked",
            with(&|it| it.on_target = vec![failed(true, 0)]),
        ),
        (
            "The retries are exhausted",
            with(&|it| it.on_target = vec![failed(false, 5)]),
        ),
        (
            "The catalog is down",
            with(&|it| {
                it.wfe = Some(wfe(
                    "restart-2",
                    &json!({ "phase": "Pending", "conditions": no_catalog.clone() }),
                ));
            }),
        ),
        (
            "A dependency is missing",
            with(&|it| {
                it.wfe = Some(wfe("restart-2", &not_ready));
            }),
        ),
        (
            "Nobody watches the namespace",
            with(&|it| it.wfe = Some(wfe("restart-2", &Value::Null))),
        ),
        (
            "The lock was taken by hand",
            with(&|it| it.lock = locked("ops")),
        ),
    ]
}

/// BR-WE-013
#[test]
fn explain_names_cause_object_and_command() {
    for (situation, facts) in situations() {
        let why = explain(&facts);
        assert!(
            !why.cause.is_empty() && !why.object.is_empty(),
            "{situation}: {why}"
        );
        assert!(why.command.starts_with("kubectl "), "{situation}: {why}");
        assert!(!why.until.is_empty(), "{situation}: {why}");
    }
    let why = explain(&facts());
    assert!(why.cause.contains("an execution may start now"), "{why}");
}

/// A pod that has not ended keeps the target although its lock is free.
#[test]
fn explain_target_with_live_pod_names_the_pod() {
    let mut facts = facts();
    let source = Source {
        namespace: "prod".to_owned(),
        name: "gone".to_owned(),
        uid: "gone".to_owned(),
    };
    let object = "pod kubernaut-workflows/gone-1".to_owned();
    facts.alive = vec![Alive {
        source,
        object,
        timeout: None,
    }];
    let why = explain(&facts);
    assert_eq!(why.object, "pod kubernaut-workflows/gone-1");
    assert_eq!(
        why.command,
        "kubectl -n kubernaut-workflows describe pod gone-1"
    );
}

/// The lock of an ended execution is held by its pod.
#[test]
fn explain_target_of_ended_holder_with_live_pod_names_the_pod() {
    let mut facts = facts();
    facts.on_target = vec![failed(true, 0)];
    facts.lock = locked("prod/resize-1/resize-1");
    let why = explain(&facts);
    assert!(why.until.contains("it has ended"), "{why}");
    facts.alive = vec![Alive {
        source: Source::of(&facts.on_target[0]),
        object: "pod kubernaut-workflows/resize-1-x".to_owned(),
        timeout: None,
    }];
    let why = explain(&facts);
    assert_eq!(why.object, "pod kubernaut-workflows/resize-1-x");
    facts.on_target.clear();
    facts.alive.clear();
    let why = explain(&facts);
    assert!(why.until.contains("finds that it is gone"), "{why}");
}

#[test]
fn explain_target_of_unread_execution_names_it() {
    let mut facts = facts();
    let source = Source {
        namespace: "prod".to_owned(),
        name: "strange".to_owned(),
        uid: "s".to_owned(),
    };
    let error = "unknown variant".to_owned();
    facts.unread = Some(Unread { source, error });
    let why = explain(&facts);
    assert_eq!(why.object, "WorkflowExecution prod/strange");
}

/// The operations guide has the ten answers. `make generate` writes them.
#[test]
fn operations_guide_has_the_answers() {
    const BEGIN: &str = "<!-- answers of wfe-controller why: written by make generate -->\n";
    const END: &str = "<!-- end of the answers -->\n";
    let mut answers = String::new();
    for (situation, facts) in situations() {
        let what = match &facts.wfe {
            Some(wfe) => format!("{} --namespace prod", Source::of(wfe).name),
            None => facts.target.clone(),
        };
        let why = explain(&facts);
        writeln!(
            answers,
            "\n{situation}:\n\n```console\n$ wfe-controller why {what}\n{why}\n```"
        )
        .expect("memory");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let guide = std::fs::read_to_string(&path).expect("the guide");
    let (before, rest) = guide
        .split_once(BEGIN)
        .expect("the mark before the answers");
    let (_, after) = rest.split_once(END).expect("the mark after the answers");
    let expected = format!("{before}{BEGIN}{answers}\n{END}{after}");
    if std::env::var_os("WFE_WRITE_ANSWERS").is_some() {
        std::fs::write(&path, expected).expect("written");
        return;
    }
    assert!(
        guide == expected,
        "docs/operations.md is out of date: make generate"
    );
}

/// The catalog may have cut the timeout of the request.
#[test]
fn explain_running_execution_has_the_timeout_of_its_job() {
    let mut facts = facts();
    let status =
        json!({ "phase": "Running", "startTime": "2026-01-01T11:58:00Z", "executionRef": job() });
    let running = wfe("restart-1", &status);
    facts.alive = vec![Alive {
        source: Source::of(&running),
        object: "Job kubernaut-workflows/j".to_owned(),
        timeout: None,
    }];
    facts.wfe = Some(running);
    let until = |facts: &Facts| explain(facts).until;
    let says = "2026-01-01T12:28:00Z at the latest (its timeout)";
    assert_eq!(until(&facts), says, "the controller's default");
    facts.alive[0].timeout = Some(Duration::from_mins(5));
    let says = "2026-01-01T12:03:00Z at the latest (its timeout)";
    assert_eq!(until(&facts), says);
}
