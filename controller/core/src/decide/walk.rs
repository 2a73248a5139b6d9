//! Every combination of what a decision can find, each played to its end: what must never happen
//! does not, and there is always a way forward.
//!
//! The world is simulated as coarsely as decisions see it; decisions are the real ones. Since every
//! combination is a beginning, a crash at any moment is one of them.

#![expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and all combinations are meant"
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
use super::ending::cancel_reason;
use super::tests::{execution, now, other, ready, wfe};
use crate::condition::ConditionType;
use crate::execution::{ContainerEnd, Created, Execution, Facts, Progress, Remains, Source};
use crate::history::History;
use crate::lock::{self, Lock, TargetLock};
use crate::names;
use crate::observed::{Answer, Answers, Observed, resolve};
use crate::status::time;
use crate::status::{holds, stored};
use crate::step::{Effect, Notice, Question, Step};

/// Everything is right, but for what a beginning says.
static BASE: LazyLock<Observed> = LazyLock::new(ready);

/// What the execution of this one is found as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Job {
    None,
    Held,
    Starting,
    Running,
    Succeeded,
    Failed,
}

/// What the catalog answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Catalog {
    Has,
    HasNot,
    Silent,
}

/// What happened on the target before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Past {
    Nothing,
    Succeeded,
    FailedMidway,
    Cleared,
    FailedBefore,
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
const CATALOGS: [Catalog; 3] = [Catalog::Has, Catalog::HasNot, Catalog::Silent];
const PASTS: [Past; 6] = [
    Past::Nothing,
    Past::Succeeded,
    Past::FailedMidway,
    Past::Cleared,
    Past::FailedBefore,
    Past::Exhausted,
];

/// One beginning.
#[derive(Clone, Copy, Debug)]
struct Beginning {
    phase: Option<Phase>,
    /// Whose the lock is: none, ours, somebody else's.
    holder: Option<bool>,
    job: Job,
    pod: bool,
    catalog: Catalog,
    deleted: bool,
    cancelled: bool,
    cleared: bool,
    past: Past,
    waits: bool,
    /// Whether the caches show neither Job nor pod yet.
    behind: bool,
    /// Whether somebody else's pod is alive on the target.
    other: bool,
}

impl Beginning {
    /// Whether a run, with or without crashes, can come to this.
    fn is_reachable(&self) -> bool {
        let ran = matches!(
            self.phase,
            Some(Phase::Running | Phase::Succeeded | Phase::Failed)
        );
        let ours = self.holder == Some(true);
        // Only what failed is cleared, only what has a Job has a pod, only a holder makes a Job.
        (!self.cleared || self.phase == Some(Phase::Failed))
            && (!self.pod || ran || self.job != Job::None)
            && (matches!(self.job, Job::None | Job::Held) || ran || ours)
            // A Job that has ended has no live pod, one that runs has one.
            && !(matches!(self.job, Job::Succeeded | Job::Failed) && self.pod)
            && (self.job != Job::Running || self.pod)
            // Started only when it is stored, and then it has no pod yet.
            && (self.job != Job::Held || !self.pod)
            && (ran || matches!(self.job, Job::None | Job::Held))
            && (!self.behind || self.job != Job::None || self.pod)
            // The lock is ours while it runs, and is freed only when nothing is alive.
            && (self.phase != Some(Phase::Running) || ours)
            && (ours || !self.pod && !matches!(self.job, Job::Starting | Job::Running))
            && (self.phase != Some(Phase::Succeeded) || !matches!(self.job, Job::Starting | Job::Running | Job::Failed))
            && (self.phase != Some(Phase::Skipped) || matches!(self.job, Job::None | Job::Held))
            // While the last execution blocks, nothing is made.
            && !(matches!(self.past, Past::FailedMidway | Past::Exhausted) && (self.job != Job::None || ran))
    }
}

/// What there is outside of the controller.
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
    told: std::collections::HashSet<Notice>,
    behind: bool,
    other: bool,
}

fn finding(job: Job) -> Option<Execution> {
    let at = Some(now());
    let (began, progress) = match job {
        Job::None => return None,
        Job::Held | Job::Starting => (None, Progress::Active { waiting: None }),
        Job::Running => (at, Progress::Active { waiting: None }),
        Job::Succeeded => (at, Progress::Succeeded { at }),
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
        ..execution(progress)
    })
}

fn neighbour(past: Past) -> Option<WorkflowExecution> {
    let (phase, failures, ran) = match past {
        Past::Nothing => return None,
        Past::Succeeded => ("Succeeded", 0, true),
        Past::FailedMidway | Past::Cleared => ("Failed", 0, true),
        Past::FailedBefore => ("Failed", 1, false),
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
    fn of(beginning: Beginning) -> Self {
        let mut wfe = wfe(json!(null));
        let reference = execution(Progress::Active { waiting: None }).reference;
        if let Some(phase) = beginning.phase {
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
        if beginning.cleared {
            wfe.status.as_mut().expect("a status").block_clearance = Some(clearance());
        }
        if beginning.deleted {
            wfe.metadata.deletion_timestamp = Some(time(now()));
        }
        if beginning.cancelled {
            let annotations = wfe.metadata.annotations.get_or_insert_default();
            annotations.insert(names::CANCEL.to_owned(), "enough".to_owned());
        }
        if beginning.waits {
            wfe.spec.execution_config.when_blocked = Some("Wait".to_owned());
        }
        let lease = beginning.holder.map(|ours| {
            let holder = if ours { Source::of(&wfe) } else { other() };
            lock::taken(lock::new("n", &"abc".into()), &holder, now())
        });
        Self {
            gone: false,
            lease,
            job: finding(beginning.job),
            pod: beginning.pod,
            began: beginning.job == Job::Running,
            catalog: beginning.catalog,
            past: beginning.past,
            neighbours: neighbour(beginning.past)
                .into_iter()
                .map(Arc::new)
                .collect(),
            starts: usize::from(
                !matches!(beginning.job, Job::None | Job::Held)
                    || beginning.job == Job::None && wfe.execution_ref().is_some(),
            ),
            now: now(),
            told: std::collections::HashSet::new(),
            behind: beginning.behind,
            other: beginning.other,
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
            others_alive: self.other.then(other),
            lock: self.lock(),
            target_lock: self.target_lock(),
            neighbours: self.neighbours.clone(),
            notified: self.told.clone(),
            answers: answers.clone(),
            ..BASE.clone()
        }
    }

    /// Answers as the real world would.
    fn ask(&self, question: &Question, answers: &mut Answers) {
        match question {
            Question::TargetKind(_) => answers.target = Some(Answer::Known(None)),
            Question::Workflow(_) => {
                answers.workflow = Some(match self.catalog {
                    Catalog::Has => BASE.answers.workflow.clone().expect("the workflow"),
                    Catalog::HasNot => Answer::Known(resolve(&self.wfe.spec, None)),
                    Catalog::Silent => Answer::Unavailable("down".to_owned()),
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
        }
    }

    /// Does what was decided, and says what must not be.
    fn carry_out(&mut self, effect: Effect, answers: &mut Answers) {
        match effect {
            Effect::AddFinalizer => self.wfe.metadata.finalizers = Some(vec![FINALIZER.to_owned()]),
            Effect::RemoveFinalizer => {
                assert!(
                    self.wfe.metadata.deletion_timestamp.is_some(),
                    "let go undeleted"
                );
                assert!(
                    self.wfe.phase().is_some_and(Phase::is_final),
                    "let go unended"
                );
                assert!(
                    holds(&self.wfe, ConditionType::AuditRecorded),
                    "let go unaudited"
                );
                // What the caches do not show yet and was never started is left to the sweep.
                let held = self.job.as_ref().is_some_and(|it| it.held) && self.behind;
                assert!(
                    (self.job.is_none() || held) && !self.pod,
                    "let go with something left"
                );
                self.job = None;
                assert_ne!(self.lock(), Lock::Ours, "let go with the lock");
                answers.finalizer_removed = true;
                self.gone = true;
            }
            Effect::TakeLock => {
                assert!(
                    !matches!(self.lock(), Lock::Held(_)),
                    "taken from its holder"
                );
                let lease = self
                    .lease
                    .take()
                    .unwrap_or_else(|| lock::new("n", &"abc".into()));
                self.lease = Some(lock::taken(lease, &Source::of(&self.wfe), self.now));
                answers.lock_taken = true;
            }
            Effect::FreeLock(record) => {
                assert_eq!(self.lock(), Lock::Ours, "freed somebody else's");
                let held = self.job.as_ref().is_some_and(|it| it.held);
                assert!(
                    (held && !self.pod || !self.is_alive()) && !self.other,
                    "freed while something lives"
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
            Effect::Delete(_) => {
                assert!(
                    self.wfe.phase().is_some_and(Phase::is_final),
                    "deleted before the end is said"
                );
                self.job = None;
                answers.deleted = true;
            }
            Effect::Store(status) => self.store(*status),
            Effect::Audit => unreachable!("nothing is left to deliver"),
            Effect::Tell(notice) => drop(self.told.insert(notice)),
        }
    }

    fn create(&mut self, answers: &mut Answers) {
        assert_eq!(self.lock(), Lock::Ours, "made without the lock");
        let earlier = self.job.as_ref().is_none_or(|it| it.held);
        assert!(earlier, "made twice");
        assert!(!self.other, "made beside another one");
        assert!(
            self.wfe.metadata.deletion_timestamp.is_none(),
            "made for a deleted one"
        );
        assert!(
            cancel_reason(&self.wfe).is_none(),
            "made for a cancelled one"
        );
        assert_eq!(
            self.catalog,
            Catalog::Has,
            "made without the catalog's word"
        );
        let history = History::of(self.neighbours.iter().map(AsRef::as_ref), []);
        let limits = BASE.settings.limits;
        let obstacle = history.obstacle("w", self.now, &limits);
        assert_eq!(obstacle, None, "made against the history");
        self.job = finding(Job::Held);
        answers.created = self.job.clone().map(|it| Created::Ours(Box::new(it)));
    }

    fn start(&mut self, reference: &ExecutionRef, answers: &mut Answers) {
        assert_eq!(self.lock(), Lock::Ours, "started without the lock");
        assert_eq!(self.starts, 0, "started twice");
        assert!(!self.other, "started beside another one");
        assert_eq!(self.wfe.phase(), Some(Phase::Running), "started unstored");
        assert_eq!(self.wfe.execution_ref(), Some(reference));
        let wanted = self.wfe.metadata.deletion_timestamp.is_none();
        assert!(
            wanted && cancel_reason(&self.wfe).is_none(),
            "started though cancelled"
        );
        self.starts += 1;
        self.job = finding(Job::Starting);
        answers.started = true;
    }

    fn store(&mut self, status: WorkflowExecutionStatus) {
        let before = self.wfe.phase();
        let job = self.job.as_ref().map(|it| &it.progress);
        if before.is_some_and(Phase::is_final) {
            assert_eq!(status.phase, before, "an end was changed");
        } else {
            match status.phase {
                Some(Phase::Running) => assert!(job.is_some() || before == Some(Phase::Running)),
                Some(Phase::Succeeded) => {
                    assert!(
                        matches!(job, Some(Progress::Succeeded { .. })),
                        "a success without evidence"
                    );
                }
                Some(Phase::Failed) => {
                    let details = status.failure_details.as_ref().expect("details");
                    self.justify(details.reason);
                }
                Some(Phase::Skipped) => {
                    let details = status.skip_details.as_ref().expect("details");
                    assert!(self.starts == 0, "skipped after it ran");
                    let busy = self.other || matches!(self.lock(), Lock::Held(_));
                    let reason = match self.past {
                        _ if busy => Some(SkipReason::ResourceBusy),
                        Past::Nothing | Past::Cleared => None,
                        Past::Succeeded => Some(SkipReason::RecentlyRemediated),
                        Past::FailedMidway => Some(SkipReason::PreviousExecutionFailed),
                        Past::FailedBefore => Some(SkipReason::BackoffActive),
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
            "a write that changes nothing"
        );
        self.wfe.status = Some(status);
    }

    fn justify(&self, reason: FailureReason) {
        let job = self.job.as_ref().map(|it| &it.progress);
        let asked =
            self.wfe.metadata.deletion_timestamp.is_some() || cancel_reason(&self.wfe).is_some();
        match reason {
            FailureReason::Cancelled => {
                assert!(asked, "cancelled unasked");
                assert!(
                    !matches!(
                        job,
                        Some(Progress::Succeeded { .. } | Progress::Failed { .. })
                    ),
                    "an end was called cancelled"
                );
            }
            FailureReason::ExecutionDeleted => assert!(job.is_none(), "it is there"),
            FailureReason::TaskFailed => assert!(matches!(job, Some(Progress::Failed { .. }))),
            FailureReason::ConfigurationError => assert_eq!(self.catalog, Catalog::HasNot),
            other => panic!("nothing in this world is a reason for {other:?}"),
        }
    }

    /// Takes it as far as it goes; how the pass ended.
    fn pass(&mut self) -> Step {
        let mut answers = Answers::default();
        for _ in 0..32 {
            match decide(&self.observe(&answers)) {
                Step::Ask(question) => self.ask(&question, &mut answers),
                Step::Do(effect) => {
                    answers.forget_before_a_write();
                    self.carry_out(effect, &mut answers);
                }
                end => return end,
            }
        }
        panic!("no end after 32 steps");
    }

    /// What the world does by itself, one thing at a time; whether there was anything.
    fn goes_on(&mut self) -> bool {
        let terminal = self.wfe.phase().is_some_and(Phase::is_final);
        if self.job.is_none() && self.pod {
            self.pod = false;
        } else if self
            .job
            .as_ref()
            .is_some_and(|it| it.is_active() && !it.held)
        {
            self.job = finding(Job::Succeeded);
            (self.pod, self.began) = (false, true);
        } else if self.other {
            self.other = false;
        } else if self.catalog == Catalog::Silent && !terminal {
            self.catalog = Catalog::Has;
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

    /// Until nothing happens any more, by us, by the world or by the clock.
    fn play(&mut self) {
        for _ in 0..24 {
            let end = self.pass();
            if self.gone {
                return;
            }
            match end {
                _ if self.behind => self.behind = false,
                _ if self.goes_on() => {}
                Step::Wait(until) => self.now = until.max(self.now + Duration::from_secs(1)),
                _ => return,
            }
        }
        panic!("it does not come to rest");
    }
}

fn now_if(is: bool) -> Option<Timestamp> {
    is.then(now)
}

fn beginnings() -> impl Iterator<Item = Beginning> {
    const BOTH: [bool; 2] = [false, true];
    const HOLDERS: [Option<bool>; 3] = [None, Some(true), Some(false)];
    let found = iproduct!(PHASES, HOLDERS, JOBS, BOTH, BOTH, CATALOGS, PASTS);
    let asked = iproduct!(BOTH, BOTH, BOTH, BOTH, BOTH);
    let all =
        iproduct!(found, asked).map(|(found, (deleted, cancelled, cleared, waits, other))| {
            let (phase, holder, job, pod, behind, catalog, past) = found;
            Beginning {
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
    all.filter(Beginning::is_reachable)
}

#[test]
fn br_we_009_from_whatever_is_found_nothing_forbidden_happens_and_everything_comes_to_an_end() {
    let mut count = 0;
    for beginning in beginnings() {
        count += 1;
        let played = std::panic::catch_unwind(|| {
            let mut world = World::of(beginning);
            world.play();
            assert!(
                world.gone || world.wfe.phase().is_some_and(Phase::is_final),
                "it does not end"
            );
            assert_ne!(world.lock(), Lock::Ours, "the lock is kept");
            assert!(world.gone || !beginning.deleted, "it is not let go");
            assert!(!world.is_alive(), "something lives on");
            assert!(world.starts <= 1);
        });
        assert!(played.is_ok(), "{beginning:?}");
    }
    assert!(count > 3_000, "only {count} combinations");
}
