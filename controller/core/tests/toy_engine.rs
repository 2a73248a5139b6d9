//! A third engine from outside: a builder and a reader are all that the decisions need of it. No module
//! of this crate changes for a new engine but the two that are its own.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, and so do its helpers"
)]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use wfe_core::decide::decide;
use wfe_core::execution::{
    ContainerEnd, Created, Execution, Facts, Progress, Remains, Source, Tasks,
};
use wfe_core::history::Limits;
use wfe_core::lock::{self, TargetLock};
use wfe_core::names::TargetHash;
use wfe_core::observed::{Answer, Answers, Delivery, Gate, Observed, Settings, resolve};
use wfe_core::plan::Plan;
use wfe_core::step::{Effect, Question, Step};
use wfe_model::FINALIZER;
use wfe_model::dependencies::ServiceAccountAnswer;
use wfe_model::served::ServedKind;
use wfe_model::target::Target;
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::{ExecutionRef, FailureReason, Phase, WorkflowExecution};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What the toy engine stores: a machine with a switch.
#[derive(Clone, Debug)]
struct Toy {
    name: String,
    source: Source,
    image: String,
    switched_on: bool,
    exit_code: Option<i32>,
}

/// What the API server serves by the name `Deployment`.
fn deployments() -> Vec<ServedKind> {
    vec![ServedKind {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        namespaced: true,
        readable: true,
        ..ServedKind::default()
    }]
}

/// The builder: a plan becomes a toy, switched off.
fn build(plan: &Plan) -> Toy {
    Toy {
        name: plan.name.clone(),
        source: plan.source.clone(),
        image: plan.valid.image.to_string(),
        switched_on: false,
        exit_code: None,
    }
}

/// The reader: a toy becomes an execution.
fn read(toy: &Toy) -> Execution {
    let at = Some(now());
    let progress = match toy.exit_code {
        None => Progress::Active { waiting: None },
        Some(0) => Progress::Succeeded { at, summary: None },
        Some(exit_code) => Progress::Failed {
            at,
            facts: Facts {
                container: Some(ContainerEnd {
                    exit_code,
                    started: true,
                    ..ContainerEnd::default()
                }),
                ..Facts::default()
            },
        },
    };
    Execution {
        reference: ExecutionRef {
            api_version: "toys/v1".to_owned(),
            kind: "Toy".to_owned(),
            name: toy.name.clone(),
            namespace: "kubernaut-workflows".to_owned(),
            uid: "toy-1".to_owned(),
        },
        source_uid: Some(toy.source.uid.clone()),
        created: at,
        ending: false,
        deleted_at: None,
        held: !toy.switched_on,
        queued: false,
        resumed: None,
        began: at.filter(|_| toy.switched_on),
        timeout: None,
        image: Some(toy.image.clone()),
        tasks: Tasks::default(),
        ends_with_pods: true,
        progress,
    }
}

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().expect("a timestamp")
}

/// A cluster with one WorkflowExecution, one lock and at most one toy.
struct World {
    wfe: WorkflowExecution,
    lease: Option<k8s_openapi::api::coordination::v1::Lease>,
    toy: Option<Toy>,
    effects: Vec<&'static str>,
}

impl World {
    fn new() -> Self {
        let wfe = serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
            "metadata": { "name": "a", "namespace": "prod", "uid": "u", "creationTimestamp": now() },
            "spec": {
                "executionEngine": "job", "targetResource": "prod/Deployment/web",
                "workflowRef": { "workflowId": "w", "version": "1", "containerImage": format!("r.io/w@sha256:{HEX}") },
            },
        }));
        Self {
            wfe: wfe.expect("a WorkflowExecution"),
            lease: None,
            toy: None,
            effects: Vec::new(),
        }
    }

    fn observe(&self, answers: &Answers) -> Observed {
        let source = Source::of(&self.wfe);
        let target_lock = TargetLock::from(self.lease.clone().map(Arc::new));
        Observed {
            now: now(),
            wfe: Arc::new(self.wfe.clone()),
            execution: self.toy.as_ref().map(read),
            pods_alive: false,
            began: None,
            others_alive: None,
            lock: target_lock.state(&source),
            target_lock,
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
            source,
            answers: answers.clone(),
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

    fn ask(&self, question: &Question, answers: &mut Answers) {
        match question {
            Question::TargetKind(_) => answers.kinds = Some(Answer::Known(deployments())),
            Question::Workflow(_) => {
                let yaml = format!(
                    "metadata: {{workflowId: w, version: '1'}}\nexecution: {{engine: job, bundle: 'r.io/w@sha256:{HEX}'}}\n"
                );
                let workflow = Workflow::read("w.yaml", &yaml).expect("right").workflow;
                let resolution = resolve(&self.wfe.spec, Ok(&Arc::new(workflow)));
                answers.workflow = Some(Answer::Known(resolution));
            }
            Question::ServiceAccount(_) => {
                answers.service_account = Some(Answer::Known(ServiceAccountAnswer::Allowed));
            }
            Question::Dependencies(_) => answers.dependencies = Some(Answer::Known(Vec::new())),
            Question::Execution => answers.execution = Some(self.toy.as_ref().map(read)),
            Question::StartupDiagnosis(_) => answers.startup_diagnosis = Some(None),
            Question::Remains => answers.remains = Some(Remains::Nothing),
            Question::Lock => answers.lock_lost = false,
            Question::Gate => answers.gate = Some(Gate::Open),
        }
    }

    fn carry_out(&mut self, effect: Effect, answers: &mut Answers) {
        self.effects.push(effect.name());
        let source = Source::of(&self.wfe);
        match effect {
            Effect::AddFinalizer => self.wfe.metadata.finalizers = Some(vec![FINALIZER.to_owned()]),
            Effect::TakeLock => {
                let target = Target::parse(&self.wfe.spec.target_resource).expect("a target");
                let free = lock::new("kubernaut-workflows", &TargetHash::of(&target));
                let lease = self.lease.take().unwrap_or(free);
                self.lease = Some(lock::taken(lease, &source, now()));
                answers.lock_taken = true;
            }
            Effect::FreeLock(record) => {
                let lease = self.lease.take().expect("a lock");
                self.lease = Some(lock::freed(lease, record.as_deref(), now()));
            }
            Effect::Create(plan) => {
                self.toy = Some(build(&plan));
                let execution = self.toy.as_ref().map(read).map(Box::new);
                answers.created = execution.map(Created::Ours);
            }
            Effect::Start(reference) => {
                let stored = self.wfe.execution_ref();
                assert_eq!(stored, Some(&reference), "started before it was stored");
                self.toy.as_mut().expect("a toy").switched_on = true;
                answers.started = true;
            }
            Effect::Store(status) => self.wfe.status = Some(*status),
            other => panic!("unexpected: {}", other.name()),
        }
    }

    /// One pass, as the controller makes it.
    fn pass(&mut self) {
        let mut answers = Answers::default();
        for _ in 0..32 {
            match decide(&self.observe(&answers)) {
                Step::Ask(question) => self.ask(&question, &mut answers),
                Step::Do(effect) => {
                    answers.drop_uncached_reads();
                    self.carry_out(effect, &mut answers);
                }
                Step::Wait(_) | Step::Done => return,
            }
        }
        panic!("no end after 32 steps: {:?}", self.effects);
    }

    fn run(exit_code: i32) -> Self {
        let mut world = Self::new();
        world.pass();
        let toy = world.toy.as_mut().expect("a toy");
        assert!(toy.switched_on && toy.image.ends_with(HEX), "{toy:?}");
        toy.exit_code = Some(exit_code);
        world.pass();
        world
    }
}

/// Engine `toy` runs a workflow from the first look to the end.
#[test]
fn toy_engine_success_is_run_and_stored() {
    let world = World::run(0);
    assert_eq!(world.wfe.phase(), Some(Phase::Succeeded));
    let reference = world.wfe.execution_ref().expect("an execution");
    assert_eq!(reference.kind, "Toy");
    let expected = [
        "add finalizer",
        "take lock",
        "create execution",
        "store status",
        "start execution",
        "store status",
        "store status",
        "free lock",
        "store status",
    ];
    assert_eq!(world.effects, expected);
}

/// Its failures have reasons and exit codes like those of every engine.
#[test]
fn toy_engine_failure_has_reason_and_exit_code() {
    let world = World::run(3);
    let details = world.wfe.status.and_then(|it| it.failure_details);
    let details = details.expect("details");
    assert_eq!(
        (
            details.reason,
            details.exit_code,
            details.was_execution_failure
        ),
        (FailureReason::TaskFailed, Some(3), true)
    );
}
