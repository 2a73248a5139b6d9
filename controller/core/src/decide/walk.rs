//! Runs the real decisions from every combination of facts that a decision can find, each to its
//! end, against a simulated cluster. Asserts at each write that it is allowed, and at the end that
//! the WorkflowExecution has ended and nothing of it is left.
//!
//! The simulation is as coarse as the facts that decisions see. Every combination is an initial
//! state, so a crash at any moment is covered by one of them.

#![expect(
    clippy::struct_excessive_bools,
    reason = "the facts are independent, and all combinations are tested"
)]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use itertools::iproduct;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;
use wfe_model::FINALIZER;
use wfe_model::workflow_execution::{
    BlockClearance, ClearMethod, ExecutionRef, FailureReason, Phase, SkipReason, WorkflowExecution,
    WorkflowExecutionStatus,
};

use super::decide;
use super::tests::{deployments, execution, not_found, now, other, other_alive, ready, wfe};
use crate::condition::ConditionType;
use crate::execution::{ContainerEnd, Created, Execution, Facts, Progress, Remains, Source};
use crate::history::History;
use crate::line::cancel_reason;
use crate::lock::{self, Lock, TargetLock};
use crate::observed::{Answer, Answers, Gate, Observed, resolve};
use crate::status::time;
use crate::status::{holds, stored};
use crate::step::{Effect, Notice, Question, Step};

/// A valid request with every answer given; an initial state changes single facts.
static BASE: LazyLock<Observed> = LazyLock::new(ready);

/// State of the execution.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Job {
    None,
    Held,
    Starting,
    Running,
    Succeeded,
    Failed,
}

/// Answer of the catalog.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Catalog {
    Found,
    NotFound,
    Unavailable,
}

/// The previous execution on the target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Past {
    Nothing,
    Succeeded,
    FailedAfterStart,
    Cleared,
    FailedBeforeStart,
    Exhausted,
}

const PHASES: [Option<Phase>; 6] = [
    None,
    Some(Phase::Pending),
    Some(Phase::Running),
    Some(Phase::Succeeded),
    Some(Phase::Failed),
    Some(Phase::Skipped),
];
const JOBS: [Job; 6] = [
    Job::None,
    Job::Held,
    Job::Starting,
    Job::Running,
    Job::Succeeded,
    Job::Failed,
];
const CATALOGS: [Catalog; 3] = [Catalog::Found, Catalog::NotFound, Catalog::Unavailable];
const PASTS: [Past; 6] = [
    Past::Nothing,
    Past::Succeeded,
    Past::FailedAfterStart,
    Past::Cleared,
    Past::FailedBeforeStart,
    Past::Exhausted,
];

/// The facts that a run of decisions starts from.
#[derive(Clone, Copy, Debug)]
struct InitialState {
    phase: Option<Phase>,
    /// Holder of the lock: none, this WorkflowExecution (`true`) or another one (`false`).
    holder: Option<bool>,
    job: Job,
    pod: bool,
    catalog: Catalog,
    deleted: bool,
    cancelled: bool,
    cleared: bool,
    past: Past,
    waits: bool,
    /// Whether the caches do not show the Job and the pod yet.
    behind: bool,
    /// Whether a pod of another WorkflowExecution is alive on the target.
    other: bool,
}

impl InitialState {
    /// Whether a run, with or without crashes, can reach this state.
    fn is_reachable(&self) -> bool {
        let ran = matches!(
            self.phase,
            Some(Phase::Running | Phase::Succeeded | Phase::Failed)
        );
        let ours = self.holder == Some(true);
        // Only a failure is cleared, only a Job has a pod, only a holder of the lock creates a Job.
        (!self.cleared || self.phase == Some(Phase::Failed))
            && (!self.pod || ran || self.job != Job::None)
            && (matches!(self.job, Job::None | Job::Held) || ran || ours)
            // An ended Job has no live pod, a running Job has one.
            && !(matches!(self.job, Job::Succeeded | Job::Failed) && self.pod)
            && (self.job != Job::Running || self.pod)
            // A Job is started only after the status stores its uid; a held Job has no pod.
            && (self.job != Job::Held || !self.pod)
            && (ran || matches!(self.job, Job::None | Job::Held))
            && (!self.behind || self.job != Job::None || self.pod)
            // The lock is held while the execution runs, and is freed only when nothing is alive.
            && (self.phase != Some(Phase::Running) || ours)
            && (ours || !self.pod && !matches!(self.job, Job::Starting | Job::Running))
            && (self.phase != Some(Phase::Succeeded) || !matches!(self.job, Job::Starting | Job::Running | Job::Failed))
            && (self.phase != Some(Phase::Skipped) || matches!(self.job, Job::None | Job::Held))
            // While the previous execution blocks the target, no Job is created.
            && !(matches!(self.past, Past::FailedAfterStart | Past::Exhausted) && (self.job != Job::None || ran))
    }
}

/// The simulated cluster: everything outside of the controller.
struct World {
    wfe: WorkflowExecution,
    gone: bool,
    lease: Option<Lease>,
    job: Option<Execution>,
    pod: bool,
    began: bool,
    catalog: Catalog,
    past: Past,
    neighbours: Vec<Arc<WorkflowExecution>>,
    starts: usize,
    now: Timestamp,
    notified: std::collections::HashSet<Notice>,
    behind: bool,
    other: bool,
}

fn execution_of(job: Job) -> Option<Execution> {
    let at = Some(now());
    let (began, progress) = match job {
        Job::None => return None,
        Job::Held | Job::Starting => (None, Progress::Active { waiting: None }),
        Job::Running => (at, Progress::Active { waiting: None }),
        Job::Succeeded => (at, Progress::Succeeded { at, summary: None }),
        Job::Failed => {
            let container = Some(ContainerEnd {
                exit_code: 1,
                started: true,
                ..ContainerEnd::default()
            });
            let facts = Facts {
                container,
                ..Facts::default()
            };
            (at, Progress::Failed { at, facts })
        }
    };
    Some(Execution {
        began,
        held: job == Job::Held,
        queued: false,
        resumed: None,
        ..execution(progress)
    })
}

fn neighbour(past: Past) -> Option<WorkflowExecution> {
    let (phase, failures, ran) = match past {
        Past::Nothing => return None,
        Past::Succeeded => ("Succeeded", 0, true),
        Past::FailedAfterStart | Past::Cleared => ("Failed", 0, true),
        Past::FailedBeforeStart => ("Failed", 1, false),
        Past::Exhausted => ("Failed", 5, false),
    };
    let mut wfe = wfe(json!({ "phase": phase, "completionTime": "2026-01-01T11:59:30Z" }));
    wfe.metadata.name = Some("before".to_owned());
    wfe.metadata.uid = Some("before".to_owned());
    let status = wfe.status.as_mut().expect("a status");
    status.execution_ref = Some(execution(Progress::Active { waiting: None }).reference);
    status.consecutive_failures = (failures > 0).then_some(failures);
    if phase == "Failed" {
        status.failure_details = serde_json::from_value(json!({
            "reason": "TaskFailed", "message": "", "failedAt": "2026-01-01T11:59:30Z", "naturalLanguageSummary": "", "wasExecutionFailure": ran,
        }))
        .expect("details");
    }
    status.block_clearance = (past == Past::Cleared).then(clearance);
    Some(wfe)
}

fn clearance() -> BlockClearance {
    BlockClearance {
        cleared_by: "ann".to_owned(),
        cleared_by_uid: None,
        cleared_at: time(now()),
        clear_reason: "looked at it".to_owned(),
        clear_method: ClearMethod::KubernetesAdmissionWebhook,
    }
}

impl World {
    fn of(initial: InitialState) -> Self {
        let mut wfe = wfe(json!(null));
        let reference = execution(Progress::Active { waiting: None }).reference;
        if let Some(phase) = initial.phase {
            let status = wfe.status.get_or_insert_default();
            status.phase = Some(phase);
            if matches!(phase, Phase::Running | Phase::Succeeded | Phase::Failed) {
                status.start_time = Some(time(now()));
                status.execution_ref = Some(reference);
            }
            if phase.is_final() {
                status.completion_time = Some(time(now()));
            }
            if phase == Phase::Failed {
                status.failure_details = serde_json::from_value(json!({
                    "reason": "TaskFailed", "message": "", "failedAt": now(), "naturalLanguageSummary": "", "wasExecutionFailure": true,
                }))
                .expect("details");
            }
        }
        if initial.cleared {
            wfe.status.as_mut().expect("a status").block_clearance = Some(clearance());
        }
        if initial.deleted {
            wfe.metadata.deletion_timestamp = Some(time(now()));
        }
        if initial.cancelled {
            let annotations = wfe.metadata.annotations.get_or_insert_default();
            annotations.insert(wfe_model::CANCEL.to_owned(), "enough".to_owned());
        }
        if initial.waits {
            wfe.spec.execution_config.when_blocked = Some("Wait".to_owned());
        }
        let lease = initial.holder.map(|ours| {
            let holder = if ours { Source::of(&wfe) } else { other() };
            lock::taken(lock::new("n", &"abc".into()), &holder, now())
        });
        Self {
            gone: false,
            lease,
            job: execution_of(initial.job),
            pod: initial.pod,
            began: initial.job == Job::Running,
            catalog: initial.catalog,
            past: initial.past,
            neighbours: neighbour(initial.past).into_iter().map(Arc::new).collect(),
            starts: usize::from(
                !matches!(initial.job, Job::None | Job::Held)
                    || initial.job == Job::None && wfe.execution_ref().is_some(),
            ),
            now: now(),
            notified: std::collections::HashSet::new(),
            behind: initial.behind,
            other: initial.other,
            wfe,
        }
    }

    fn target_lock(&self) -> TargetLock {
        TargetLock::from(self.lease.clone().map(Arc::new))
    }

    fn lock(&self) -> Lock {
        self.target_lock().state(&Source::of(&self.wfe))
    }

    fn is_alive(&self) -> bool {
        self.pod || self.job.as_ref().is_some_and(Execution::is_active)
    }

    fn observe(&self, answers: &Answers) -> Observed {
        Observed {
            now: self.now,
            wfe: Arc::new(self.wfe.clone()),
            execution: self.job.clone().filter(|_| !self.behind),
            pods_alive: self.pod && !self.behind,
            began: now_if(self.began && !self.behind),
            others_alive: self.other.then(other_alive),
            lock: self.lock(),
            target_lock: self.target_lock(),
            neighbours: self.neighbours.clone(),
            notified: self.notified.clone(),
            answers: answers.clone(),
            ..BASE.clone()
        }
    }

    /// Answers a question from the simulated cluster.
    fn ask(&self, question: &Question, answers: &mut Answers) {
        match question {
            Question::TargetKind(_) => answers.kinds = Some(Answer::Known(deployments())),
            Question::Workflow(_) => {
                answers.workflow = Some(match self.catalog {
                    Catalog::Found => BASE.answers.workflow.clone().expect("the workflow"),
                    Catalog::NotFound => Answer::Known(resolve(&self.wfe.spec, Err(not_found()))),
                    Catalog::Unavailable => Answer::Unavailable("down".to_owned()),
                });
            }
            Question::ServiceAccount(_) => {
                answers
                    .service_account
                    .clone_from(&BASE.answers.service_account);
            }
            Question::Dependencies(_) => answers.dependencies = Some(Answer::Known(Vec::new())),
            Question::StartupDiagnosis(_) => answers.startup_diagnosis = Some(None),
            Question::Execution => answers.execution = Some(self.job.clone()),
            Question::Remains => {
                answers.remains = Some(if self.is_alive() {
                    Remains::Alive
                } else if self.job.is_some() {
                    Remains::Ended
                } else {
                    Remains::Nothing
                });
            }
            Question::Lock => answers.lock_lost = false,
            Question::Gate => answers.gate = Some(Gate::Open),
        }
    }

    /// Carries out an effect on the simulated cluster, and asserts that it is allowed.
    fn carry_out(&mut self, effect: Effect, answers: &mut Answers) {
        match effect {
            Effect::AddFinalizer => self.wfe.metadata.finalizers = Some(vec![FINALIZER.to_owned()]),
            Effect::RemoveFinalizer => {
                assert!(
                    self.wfe.metadata.deletion_timestamp.is_some(),
                    "finalizer removed without a deletion"
                );
                assert!(
                    self.wfe.phase().is_some_and(Phase::is_final),
                    "finalizer removed before a final phase"
                );
                assert!(
                    holds(&self.wfe, ConditionType::AuditRecorded),
                    "finalizer removed before delivery of the audit events"
                );
                // The sweep deletes a held Job that the caches do not show yet.
                let held = self.job.as_ref().is_some_and(|it| it.held) && self.behind;
                assert!(
                    (self.job.is_none() || held) && !self.pod,
                    "finalizer removed with a Job or pod left"
                );
                self.job = None;
                assert_ne!(
                    self.lock(),
                    Lock::Ours,
                    "finalizer removed while holding the lock"
                );
                answers.finalizer_removed = true;
                self.gone = true;
            }
            Effect::Expire => unreachable!("nothing expires by default"),
            Effect::TakeLock => {
                assert!(
                    !matches!(self.lock(), Lock::Held(_)),
                    "lock taken from another holder"
                );
                let lease = self
                    .lease
                    .take()
                    .unwrap_or_else(|| lock::new("n", &"abc".into()));
                self.lease = Some(lock::taken(lease, &Source::of(&self.wfe), self.now));
                answers.lock_taken = true;
            }
            Effect::LabelLock => unreachable!("every Lease of the walk has its labels"),
            Effect::FreeLock(record) => {
                assert_eq!(
                    self.lock(),
                    Lock::Ours,
                    "lock freed that another WorkflowExecution holds"
                );
                let held = self.job.as_ref().is_some_and(|it| it.held);
                assert!(
                    (held && !self.pod || !self.is_alive()) && !self.other,
                    "lock freed while a Job or pod is alive"
                );
                let lease = self.lease.take().expect("a lock");
                self.lease = Some(lock::freed(lease, record.as_deref(), self.now));
            }
            Effect::Record(entry) => {
                let lease = self
                    .lease
                    .take()
                    .unwrap_or_else(|| lock::new("n", &"abc".into()));
                let limits = BASE.settings.limits;
                self.lease = Some(lock::recorded(lease, &entry, &limits, self.now));
                answers.recorded = true;
            }
            Effect::Create(_) => self.create(answers),
            Effect::Start(reference) => self.start(&reference, answers),
            Effect::Cancel(_) | Effect::Delete(_) => {
                let is_final = self.wfe.phase().is_some_and(Phase::is_final);
                let held = self.job.as_ref().is_none_or(|it| it.held);
                let stored = self.wfe.execution_ref().is_some();
                assert!(
                    is_final || held && !stored,
                    "execution deleted before a final phase is stored"
                );
                self.job = None;
                answers.deleted = true;
            }
            Effect::Store(status) => self.store(*status),
            Effect::Audit => unreachable!("all audit events are delivered"),
            Effect::Notify(notice) => drop(self.notified.insert(notice)),
        }
    }

    fn create(&mut self, answers: &mut Answers) {
        assert_eq!(self.lock(), Lock::Ours, "created without the lock");
        let none_started = self.job.as_ref().is_none_or(|it| it.held);
        assert!(none_started, "created twice");
        assert!(!self.other, "created while another execution is alive");
        assert!(
            self.wfe.metadata.deletion_timestamp.is_none(),
            "created for a deleted WorkflowExecution"
        );
        assert!(
            cancel_reason(&self.wfe).is_none(),
            "created for a cancelled WorkflowExecution"
        );
        assert_eq!(
            self.catalog,
            Catalog::Found,
            "created without a catalog entry"
        );
        let history = History::of(self.neighbours.iter().map(AsRef::as_ref), []);
        let limits = BASE.settings.limits;
        let restriction = history.restriction("w", self.now, &limits);
        assert_eq!(
            restriction, None,
            "created against a restriction of the history"
        );
        self.job = execution_of(Job::Held);
        answers.created = self.job.clone().map(|it| Created::Ours(Box::new(it)));
    }

    fn start(&mut self, reference: &ExecutionRef, answers: &mut Answers) {
        assert_eq!(self.lock(), Lock::Ours, "started without the lock");
        assert_eq!(self.starts, 0, "started twice");
        assert!(!self.other, "started while another execution is alive");
        assert_eq!(
            self.wfe.phase(),
            Some(Phase::Running),
            "started before phase Running is stored"
        );
        assert_eq!(self.wfe.execution_ref(), Some(reference));
        let wanted = self.wfe.metadata.deletion_timestamp.is_none();
        assert!(
            wanted && cancel_reason(&self.wfe).is_none(),
            "started although deleted or cancelled"
        );
        self.starts += 1;
        self.job = execution_of(Job::Starting);
        answers.started = true;
    }

    fn store(&mut self, status: WorkflowExecutionStatus) {
        let before = self.wfe.phase();
        let job = self.job.as_ref().map(|it| &it.progress);
        if before.is_some_and(Phase::is_final) {
            assert_eq!(status.phase, before, "a final phase was changed");
        } else {
            match status.phase {
                Some(Phase::Running) => assert!(job.is_some() || before == Some(Phase::Running)),
                Some(Phase::Succeeded) => {
                    assert!(
                        matches!(job, Some(Progress::Succeeded { .. })),
                        "Succeeded without a succeeded Job"
                    );
                }
                Some(Phase::Failed) => {
                    let details = status.failure_details.as_ref().expect("details");
                    self.assert_justified(details.reason);
                }
                Some(Phase::Skipped) => {
                    let details = status.skip_details.as_ref().expect("details");
                    assert!(self.starts == 0, "skipped after a start");
                    let busy = self.other || matches!(self.lock(), Lock::Held(_));
                    let reason = match self.past {
                        _ if busy => Some(SkipReason::ResourceBusy),
                        Past::Nothing | Past::Cleared => None,
                        Past::Succeeded => Some(SkipReason::RecentlyRemediated),
                        Past::FailedAfterStart => Some(SkipReason::PreviousExecutionFailed),
                        Past::FailedBeforeStart => Some(SkipReason::BackoffActive),
                        Past::Exhausted => Some(SkipReason::ExhaustedRetries),
                    };
                    let stale = details.reason == SkipReason::StartDeadlineExceeded;
                    assert!(
                        stale || Some(details.reason) == reason,
                        "{:?}",
                        details.reason
                    );
                }
                Some(Phase::Pending) | None => {}
            }
        }
        assert_ne!(
            self.wfe.status.as_ref(),
            Some(&status),
            "status write without a change"
        );
        self.wfe.status = Some(status);
    }

    fn assert_justified(&self, reason: FailureReason) {
        let job = self.job.as_ref().map(|it| &it.progress);
        let requested =
            self.wfe.metadata.deletion_timestamp.is_some() || cancel_reason(&self.wfe).is_some();
        match reason {
            FailureReason::Cancelled => {
                assert!(requested, "Cancelled without a deletion or cancellation");
                assert!(
                    !matches!(
                        job,
                        Some(Progress::Succeeded { .. } | Progress::Failed { .. })
                    ),
                    "Cancelled although the execution had ended"
                );
            }
            FailureReason::ExecutionDeleted => assert!(job.is_none(), "the execution exists"),
            FailureReason::TaskFailed => assert!(matches!(job, Some(Progress::Failed { .. }))),
            FailureReason::ConfigurationError => assert_eq!(self.catalog, Catalog::NotFound),
            other => panic!("the simulated cluster gives no reason for {other:?}"),
        }
    }

    /// Decides and carries out until no step is left; returns the last step.
    fn pass(&mut self) -> Step {
        let mut answers = Answers::default();
        for _ in 0..32 {
            match decide(&self.observe(&answers)) {
                Step::Ask(question) => self.ask(&question, &mut answers),
                Step::Do(effect) => {
                    answers.drop_uncached_reads();
                    self.carry_out(effect, &mut answers);
                }
                end => return end,
            }
        }
        panic!("the pass has more than 32 steps");
    }

    /// Makes one change that the cluster makes without the controller; returns whether there was
    /// one.
    fn advance(&mut self) -> bool {
        let terminal = self.wfe.phase().is_some_and(Phase::is_final);
        if self.job.is_none() && self.pod {
            self.pod = false;
        } else if self
            .job
            .as_ref()
            .is_some_and(|it| it.is_active() && !it.held)
        {
            self.job = execution_of(Job::Succeeded);
            (self.pod, self.began) = (false, true);
        } else if self.other {
            self.other = false;
        } else if self.catalog == Catalog::Unavailable && !terminal {
            self.catalog = Catalog::Found;
        } else if matches!(self.lock(), Lock::Held(_)) {
            self.lease = self
                .lease
                .take()
                .map(|lease| lock::freed(lease, None, self.now));
        } else if terminal
            && stored(&self.wfe, ConditionType::Blocked).is_none_or(|it| it.status != "True")
            && self
                .wfe
                .status
                .as_ref()
                .is_some_and(|it| it.block_clearance.is_none())
            && self.wfe.phase() == Some(Phase::Failed)
        {
            self.wfe.status.as_mut().expect("a status").block_clearance = Some(clearance());
        } else {
            return false;
        }
        true
    }

    /// Runs passes, changes of the cluster and the clock until none of them changes anything.
    fn run_to_end(&mut self) {
        for _ in 0..24 {
            let end = self.pass();
            if self.gone {
                return;
            }
            match end {
                _ if self.behind => self.behind = false,
                _ if self.advance() => {}
                Step::Wait(until) => self.now = until.max(self.now + Duration::from_secs(1)),
                _ => return,
            }
        }
        panic!("more than 24 passes change something");
    }
}

fn now_if(is: bool) -> Option<Timestamp> {
    is.then(now)
}

fn initial_states() -> impl Iterator<Item = InitialState> {
    const BOTH: [bool; 2] = [false, true];
    const HOLDERS: [Option<bool>; 3] = [None, Some(true), Some(false)];
    let found = iproduct!(PHASES, HOLDERS, JOBS, BOTH, BOTH, CATALOGS, PASTS);
    let asked = iproduct!(BOTH, BOTH, BOTH, BOTH, BOTH);
    let all =
        iproduct!(found, asked).map(|(found, (deleted, cancelled, cleared, waits, other))| {
            let (phase, holder, job, pod, behind, catalog, past) = found;
            InitialState {
                phase,
                holder,
                job,
                pod,
                catalog,
                deleted,
                cancelled,
                cleared,
                past,
                waits,
                behind,
                other,
            }
        });
    all.filter(InitialState::is_reachable)
}

/// BR-WE-009
#[test]
fn every_reachable_state_ends_without_violation() {
    let mut count = 0;
    for initial in initial_states() {
        count += 1;
        let result = std::panic::catch_unwind(|| {
            let mut world = World::of(initial);
            world.run_to_end();
            assert!(
                world.gone || world.wfe.phase().is_some_and(Phase::is_final),
                "no final phase"
            );
            assert_ne!(world.lock(), Lock::Ours, "the lock is still held");
            assert!(
                world.gone || !initial.deleted,
                "the finalizer is still there"
            );
            assert!(!world.is_alive(), "a Job or pod is still alive");
            assert!(world.starts <= 1);
        });
        assert!(result.is_ok(), "{initial:?}");
    }
    assert!(count > 3_000, "only {count} combinations");
}
