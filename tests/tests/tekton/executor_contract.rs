//! What every engine's executor must do, whatever it runs: the same test for `job` and `tekton` on
//! the cluster, and for an engine in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::reflector::store::WriterDropped;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use wfe_controller::executor::{Answer, Executor, Executors};
use wfe_controller::watches::{Changes, StartTimes};
use wfe_core::execution::{Alive, Created, Execution, Progress, Remains, Source, Tasks, Waiting};
use wfe_core::names::{TargetHash, Uid, execution_name};
use wfe_core::plan::Plan;
use wfe_model::engine::Engine;
use wfe_model::rules;
use wfe_model::served::ServedTarget;
use wfe_model::target::Target;
use wfe_model::workflow::{Resources, Workflow};
use wfe_model::workflow_execution::ExecutionRef;
use wfe_tests::TestNamespace;
use wfe_tests::system::{Script, Task, pipeline};

use crate::setup::cluster;

const DEADLINE: Duration = Duration::from_mins(1);
const RUNNER: &str = "runner";

/// An executor, and a signal at each change of what it knows.
struct Subject<'a> {
    executor: &'a dyn Executor,
    changed: watch::Receiver<()>,
    namespace: String,
}

impl Subject<'_> {
    /// A plan for a WorkflowExecution with this name and uid on its own target.
    fn plan(&self, workflow: &Script, name: &str, uid: &str) -> Plan {
        let request = workflow.request(name, &json!({}));
        let read = Workflow::read("workflow", &workflow.yaml).expect("a valid workflow");
        let valid = rules::validate(
            &request.spec,
            rules::check(&request.spec),
            &Arc::new(read.workflow),
        );
        let target = Target::parse(&request.spec.target_resource).expect("a target");
        Plan {
            name: execution_name(name, "the same for all"),
            namespace: self.namespace.clone(),
            source: Source {
                namespace: "prod".to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
            },
            target_hash: TargetHash::of(&target),
            target: ServedTarget {
                api_version: "apps/v1".to_owned(),
                kind: "Deployment".to_owned(),
            },
            valid: Arc::new(valid.expect("valid")),
            timeout: Duration::from_mins(5),
            service_account: RUNNER.to_owned(),
            default_resources: Resources::default(),
        }
    }

    /// Waits until the cached execution of a plan meets a condition.
    async fn until(&self, plan: &Plan, what: &str, is: impl Fn(Option<&Execution>) -> bool) {
        let mut changed = self.changed.clone();
        let uid = Uid::from(&plan.source);
        let status = || self.executor.status(&plan.name, &uid);
        let waiting = async {
            while !is(status().as_ref()) {
                changed.changed().await.expect("changes");
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        waited.unwrap_or_else(|_| panic!("not within 60 s: {what}: {:?}", status()));
    }

    async fn create(&self, plan: &Plan) -> Execution {
        match self.executor.create(plan).await.expect("an answer") {
            Created::Ours(execution) => *execution,
            other => panic!("not created: {other:?}"),
        }
    }

    async fn remains(&self, plan: &Plan) -> Remains {
        let uid = Uid::from(&plan.source);
        let remains = self.executor.remains(&plan.name, &uid, None).await;
        remains.expect("an answer")
    }

    async fn occupies(&self, plan: &Plan) -> bool {
        let occupies = self.executor.occupies(&plan.target_hash).await;
        occupies.expect("an answer")
    }
}

/// The contract: `brief` succeeds at once, `endless` runs until it is told to end.
async fn check(subject: &Subject<'_>, brief: &Script, endless: &Script) {
    let executor = subject.executor;
    assert!(executor.is_installed());

    // A create is idempotent, and starts nothing.
    let plan = subject.plan(brief, "brief", "uid-1");
    let first = subject.create(&plan).await;
    let second = subject.create(&plan).await;
    assert_eq!(first.reference, second.reference, "one object");
    assert!(first.held && first.began.is_none() && first.is_active());
    assert_eq!(first.source_uid.as_deref(), Some("uid-1"));
    assert_eq!(first.timeout, Some(plan.timeout));
    let image = plan.valid.image.to_string();
    assert_eq!(first.image.as_ref(), Some(&image), "the digest that runs");
    let (api_version, kind) = plan.valid.workflow.engine.runs_as();
    let reference = &first.reference;
    assert_eq!(
        (reference.api_version.as_str(), reference.kind.as_str()),
        (api_version, kind)
    );
    assert_eq!(
        (&reference.name, &reference.namespace),
        (&plan.name, &plan.namespace)
    );

    // The name belongs to the WorkflowExecution with this uid only.
    let mut stranger = subject.plan(brief, "brief", "uid-2");
    stranger.name.clone_from(&plan.name);
    let taken = executor.create(&stranger).await.expect("an answer");
    assert_eq!(taken, Created::NameTaken);
    assert_eq!(executor.status(&plan.name, &Uid::from("uid-2")), None);

    // It is found by name, by WorkflowExecution and by target.
    subject.until(&plan, "cached", |it| it.is_some()).await;
    let known = executor.executions();
    assert!(
        known.iter().any(|(source, _)| *source == plan.source),
        "{known:?}"
    );
    let timed = |it: Option<&Execution>| it.is_some_and(|it| it.timeout == Some(plan.timeout));
    subject.until(&plan, "cached with its timeout", timed).await;
    let alive = executor.alive_on(&plan.target_hash);
    assert!(alive.iter().any(|it| it.source == plan.source), "{alive:?}");
    assert!(subject.occupies(&plan).await);
    assert_eq!(subject.remains(&plan).await, Remains::Alive);

    // Only the object with the stored uid is started or deleted.
    let other = ExecutionRef {
        uid: "00000000-0000-0000-0000-000000000000".to_owned(),
        ..first.reference.clone()
    };
    executor.start(&other).await.expect("an answer");
    executor.delete(&other).await.expect("an answer");
    let unchanged = executor.read(&plan.name).await.expect("an answer");
    assert!(unchanged.is_some_and(|it| it.held), "still held");

    // It runs to its end, once.
    executor.start(&first.reference).await.expect("an answer");
    executor.start(&first.reference).await.expect("an answer");
    let succeeded = |it: Option<&Execution>| {
        it.is_some_and(|it| matches!(it.progress, Progress::Succeeded { at: Some(_), .. }))
    };
    subject.until(&plan, "succeeded", succeeded).await;
    let all = |it: Option<&Execution>| {
        it.is_some_and(|it| {
            it.tasks
                == Tasks {
                    completed: 1,
                    total: 1,
                }
        })
    };
    subject.until(&plan, "all tasks ended", all).await;
    let uid = Uid::from(&plan.source);
    subject
        .until(&plan, "no live pod", |_| !executor.has_live_pod(&uid))
        .await;
    assert_eq!(subject.remains(&plan).await, Remains::Ended);
    assert!(!subject.occupies(&plan).await);

    // A delete is idempotent.
    executor.delete(&first.reference).await.expect("an answer");
    executor.delete(&first.reference).await.expect("an answer");
    subject.until(&plan, "gone", |it| it.is_none()).await;
    assert_eq!(executor.read(&plan.name).await.expect("an answer"), None);
    assert_eq!(subject.remains(&plan).await, Remains::Nothing);

    // A cancelled one ends by itself or is gone.
    let plan = subject.plan(endless, "endless", "uid-3");
    let endless = subject.create(&plan).await.reference;
    executor.start(&endless).await.expect("an answer");
    let began = |it: Option<&Execution>| it.is_some_and(|it| it.began.is_some());
    subject.until(&plan, "begun", began).await;
    executor.cancel(&endless).await.expect("an answer");
    executor.cancel(&endless).await.expect("an answer");
    let ended = |it: Option<&Execution>| it.is_none_or(|it| !it.is_active());
    subject.until(&plan, "ended", ended).await;
    let uid = Uid::from(&plan.source);
    subject
        .until(&plan, "no live pod", |_| !executor.has_live_pod(&uid))
        .await;
    executor.delete(&endless).await.expect("an answer");
}

/// Polls the changes and signals each.
fn follow(mut stream: Changes) -> watch::Receiver<()> {
    let (signal, receiver) = watch::channel(());
    tokio::spawn(async move {
        while stream.next().await.is_some() {
            signal.send_replace(());
        }
    });
    receiver
}

async fn runner(namespace: &TestNamespace) {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(RUNNER.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let accounts = namespace.api::<ServiceAccount>();
    accounts
        .create(&PostParams::default(), &account)
        .await
        .expect("created");
}

/// BR-WE-014
#[tokio::test(flavor = "multi_thread")]
async fn executors_of_both_engines_keep_the_contract() {
    const ENDLESS: &str = "trap 'exit 0' TERM; sleep 300 & wait";
    let cluster = cluster().await;
    let namespace = cluster.namespace("contract").await.expect("created");
    runner(&namespace).await;
    let task = |script| [Task::of("only", &cluster, &[script])];
    let none = json!({});
    let workflows = [
        (
            Engine::Job,
            Script::push(&cluster, "contract-brief", "true", ""),
            Script::push(&cluster, "contract-endless", ENDLESS, ""),
        ),
        (
            Engine::Tekton,
            pipeline(&cluster, "contract-brief", &task("true"), &none, ""),
            pipeline(&cluster, "contract-endless", &task(ENDLESS), &none, ""),
        ),
    ];
    let (executors, stream) =
        Executors::start(&cluster.admin(), namespace.name(), &StartTimes::default());
    let changed = follow(stream);
    executors.synced().await.expect("synced");
    for (engine, brief, endless) in &workflows {
        let subject = Subject {
            executor: executors.of(*engine),
            changed: changed.clone(),
            namespace: namespace.name().to_owned(),
        };
        check(&subject, brief, endless).await;
    }
}

/// An engine that runs nothing: its executions end when they are started, or when they are told to.
#[derive(Default)]
struct Toy {
    executions: Mutex<HashMap<String, (Plan, Execution)>>,
    changed: watch::Sender<()>,
}

impl Toy {
    fn change(&self, reference: &ExecutionRef, change: impl FnOnce(&mut Execution)) {
        if let Some((_, execution)) = self.executions.lock().get_mut(&reference.name)
            && execution.reference.uid == reference.uid
        {
            change(execution);
        }
        self.changed.send_replace(());
    }

    fn ready<'a, T: Send + 'a>(value: T) -> Answer<'a, T> {
        async { Ok(value) }.boxed()
    }
}

/// The builder and the reader of the toy engine in one.
fn toy(plan: &Plan) -> Execution {
    let (api_version, kind) = plan.valid.workflow.engine.runs_as();
    Execution {
        reference: ExecutionRef {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: plan.name.clone(),
            namespace: plan.namespace.clone(),
            uid: format!("toy-{}", plan.source.uid),
        },
        source_uid: Some(plan.source.uid.clone()),
        created: Some(Timestamp::now()),
        ending: false,
        deleted_at: None,
        held: true,
        queued: false,
        resumed: None,
        began: None,
        timeout: Some(plan.timeout),
        image: Some(plan.valid.image.to_string()),
        tasks: Tasks {
            completed: 0,
            total: 1,
        },
        ends_with_pods: true,
        progress: Progress::Active { waiting: None },
    }
}

impl Executor for Toy {
    fn is_installed(&self) -> bool {
        true
    }

    fn create<'a>(&'a self, plan: &'a Plan) -> Answer<'a, Created> {
        let mut executions = self.executions.lock();
        let entry = executions.entry(plan.name.clone());
        let (owner, execution) = entry.or_insert_with(|| (plan.clone(), toy(plan)));
        Self::ready(if owner.source.uid == plan.source.uid {
            Created::Ours(Box::new(execution.clone()))
        } else {
            Created::NameTaken
        })
    }

    fn start<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.change(reference, |it| {
            it.held = false;
            it.began = Some(Timestamp::now());
            it.tasks.completed = 1;
            it.progress = Progress::Succeeded {
                at: it.began,
                summary: None,
            };
        });
        Self::ready(())
    }

    fn cancel<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.delete(reference)
    }

    fn delete<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.executions
            .lock()
            .retain(|_, (_, it)| it.reference.uid != reference.uid);
        self.changed.send_replace(());
        Self::ready(())
    }

    fn status(&self, name: &str, source: &Uid) -> Option<Execution> {
        let executions = self.executions.lock();
        let (plan, execution) = executions.get(name)?;
        (plan.source.uid == source.as_str()).then(|| execution.clone())
    }

    fn executions(&self) -> Vec<(Source, Execution)> {
        let executions = self.executions.lock();
        let all = executions.values();
        all.map(|(plan, it)| (plan.source.clone(), it.clone()))
            .collect()
    }

    fn has_live_pod(&self, _: &Uid) -> bool {
        false
    }

    fn alive_on(&self, target: &TargetHash) -> Vec<Alive> {
        let executions = self.executions.lock();
        let on_target = executions.values();
        let alive = on_target.filter(|(plan, it)| plan.target_hash == *target && it.is_active());
        let alive = alive.map(|(plan, _)| Alive {
            source: plan.source.clone(),
            object: format!("Toy {}/{}", plan.namespace, plan.name),
            timeout: Some(plan.timeout),
        });
        alive.collect()
    }

    fn synced(&self) -> BoxFuture<'_, Result<(), WriterDropped>> {
        async { Ok(()) }.boxed()
    }

    fn read<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Execution>> {
        let executions = self.executions.lock();
        Self::ready(executions.get(name).map(|(_, it)| it.clone()))
    }

    fn startup_diagnosis<'a>(
        &'a self,
        _: &'a ExecutionRef,
        _: &'a Uid,
    ) -> Answer<'a, Option<Waiting>> {
        Self::ready(None)
    }

    fn remains<'a>(
        &'a self,
        name: &'a str,
        source: &'a Uid,
        stored: Option<&'a ExecutionRef>,
    ) -> Answer<'a, Remains> {
        let executions = self.executions.lock();
        let execution = executions.get(name).map(|(_, it)| it);
        Self::ready(Remains::of(execution, source, stored))
    }

    fn occupies<'a>(&'a self, target: &'a TargetHash) -> Answer<'a, bool> {
        Self::ready(!self.alive_on(target).is_empty())
    }
}

/// BR-WE-014: a third engine is an `Executor` and nothing else.
#[tokio::test]
async fn executor_of_a_toy_engine_keeps_the_contract() {
    let toy = Toy::default();
    let changed = toy.changed.subscribe();
    let digest = "0".repeat(64);
    let workflow = Script::of("toy", format!("r.io/toy@sha256:{digest}"), "");
    let subject = Subject {
        executor: &toy,
        changed,
        namespace: "toys".to_owned(),
    };
    check(&subject, &workflow, &workflow).await;
}
