//! Input of a decision: the cached objects, the answers of this pass, the flags and the time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use enumset::EnumSet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use wfe_model::audit::EventType;
use wfe_model::dependencies::{DependencyProblem, ServiceAccountAnswer};
use wfe_model::duration::ExecutionTimeout;
use wfe_model::rules::{self, ValidatedSpec, Violation};
use wfe_model::served::ServedKind;
use wfe_model::workflow::{Resources, Workflow};
use wfe_model::workflow_execution::{WorkflowExecution, WorkflowExecutionSpec};

use crate::execution::{Alive, Created, Execution, Remains, Source, Waiting};
use crate::history::Limits;
use crate::lock::{Lock, TargetLock};
use crate::names;
use crate::step::Notice;

/// What is known of one WorkflowExecution at one moment.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the facts are independent of each other"
)]
#[derive(Clone, Debug)]
pub struct Observed {
    /// Current time.
    pub now: Timestamp,
    /// The object, as cached or as the last write returned it.
    pub wfe: Arc<WorkflowExecution>,
    /// The WorkflowExecution's namespace, name and uid.
    pub source: Source,
    /// Job or PipelineRun of the WorkflowExecution, as cached or as the create returned it.
    pub execution: Option<Execution>,
    /// Whether a pod of the execution has not ended.
    pub pods_alive: bool,
    /// When the workflow's container started, by every pod that the watch has shown, deleted ones
    /// included.
    pub began: Option<Timestamp>,
    /// An object of another WorkflowExecution on the target that has not ended.
    pub others_alive: Option<Alive>,
    /// The target's lock, as cached or as the last write returned it.
    pub target_lock: TargetLock,
    /// Who holds the lock, relative to this WorkflowExecution.
    pub lock: Lock,
    /// The other WorkflowExecutions with the same target.
    pub neighbours: Vec<Arc<WorkflowExecution>>,
    /// Uids of those neighbours whose last pass failed.
    pub failing: HashSet<String>,
    /// Whether the passes of this WorkflowExecution fail again and again.
    pub stuck: bool,
    /// A WorkflowExecution with the same target that cannot be read.
    pub unread: Option<Unread>,
    /// Whether executions may start in the execution namespace.
    pub gate: Gate,
    /// Whether `gate` may be outdated: its watch is dead.
    pub gate_doubtful: bool,
    /// Whether the WorkflowExecution's namespace is being deleted.
    pub namespace_terminating: bool,
    /// Notices that this process has sent already.
    pub notified: HashSet<Notice>,
    /// Whether the API server serves the engine's kind.
    pub engine_installed: bool,
    /// Delivery of the WorkflowExecution's audit events.
    pub audit: Delivery,
    /// Answers to the questions of this pass, and results of its writes.
    pub answers: Answers,
    /// Flags.
    pub settings: Arc<Settings>,
}

/// Whether executions may start in the execution namespace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Gate {
    /// They may.
    #[default]
    Open,
    /// The namespace has the annotation [`names::PAUSED`].
    Paused,
    /// The namespace is being deleted.
    Ending,
    /// The namespace does not exist.
    Missing,
}

impl Gate {
    /// Why no execution starts in `namespace`, and until when; `None` if executions may start.
    pub fn closed(self, namespace: &str) -> Option<(String, String)> {
        let (cause, until) = match self {
            Self::Open => return None,
            Self::Paused => (
                format!("namespace {namespace} is paused: no execution starts"),
                format!("its annotation {} is removed", names::PAUSED),
            ),
            Self::Ending => (
                format!("namespace {namespace} is being deleted: no execution starts"),
                "it exists again".to_owned(),
            ),
            Self::Missing => (
                format!("namespace {namespace} does not exist: no execution starts"),
                "it is created".to_owned(),
            ),
        };
        Some((cause, until))
    }
}

/// A WorkflowExecution that this version cannot read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unread {
    /// Its identity.
    pub source: Source,
    /// Why it cannot be read.
    pub error: String,
}

/// Delivery of the audit events of one WorkflowExecution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivery {
    /// Events that are neither delivered nor rejected.
    pub waiting: EnumSet<EventType>,
    /// Whether the outbox has all events in `waiting`.
    pub queued: bool,
    /// Events that the sink rejected for their content, and why.
    pub rejected: Option<(EnumSet<EventType>, String)>,
    /// Why the sink accepts no events; `None` while it does.
    pub outage: Option<String>,
}

/// Flags that decisions depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of Jobs, PipelineRuns and locks.
    pub execution_namespace: String,
    /// Timeout of a WorkflowExecution that names none.
    pub default_timeout: Duration,
    /// ServiceAccount of a WorkflowExecution that names none.
    pub default_service_account: String,
    /// Requests and limits of resources that a catalog entry does not name.
    pub default_resources: Resources,
    /// How long a succeeded execution is kept.
    pub retention: Duration,
    /// How long a failed execution is kept.
    pub retention_failed: Duration,
    /// Time between the create and the start of a container after which the execution is deleted.
    pub start_timeout: Duration,
    /// How long an ended WorkflowExecution is kept once nothing needs it any more; `None`: for ever.
    pub ttl_after_finished: Option<Duration>,
    /// Number of requests that may wait for one target; 0: any number.
    pub max_waiting_per_target: u32,
    /// Cooldown, backoff, blocks.
    pub limits: Limits,
}

impl Settings {
    /// The execution timeout: from the spec, else the default.
    pub fn timeout_of(&self, wfe: &WorkflowExecution) -> Duration {
        let stored = wfe.spec.execution_config.timeout.as_deref();
        let parsed = stored.and_then(ExecutionTimeout::parse);
        parsed.map_or(self.default_timeout, ExecutionTimeout::get)
    }
}

/// Answers to the questions of this pass, and results of its writes. `None`: not asked yet.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the facts are independent of each other"
)]
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// The kinds that the API server serves by the name of the target's.
    pub kinds: Option<Answer<Vec<ServedKind>>>,
    /// The request validated against its catalog entry.
    pub workflow: Option<Answer<Resolution>>,
    /// Whether the ServiceAccount may run workflows.
    pub service_account: Option<Answer<ServiceAccountAnswer>>,
    /// Dependencies that are missing or empty.
    pub dependencies: Option<Answer<Vec<DependencyProblem>>>,
    /// Uncached read of the execution; `Some(None)`: it does not exist.
    pub execution: Option<Option<Execution>>,
    /// Why the execution does not start, by its Events; `Some(None)`: the Events give no reason.
    pub startup_diagnosis: Option<Option<Waiting>>,
    /// Result of the create.
    pub created: Option<Created>,
    /// The execution was started in this pass; the cache may not show it yet.
    pub started: bool,
    /// What is left of the execution, by an uncached read.
    pub remains: Option<Remains>,
    /// Uncached read of whether executions may start.
    pub gate: Option<Gate>,
    /// The lock was not taken, because as many executions run as may.
    pub full: Option<Full>,
    /// The lock was taken in this pass.
    pub lock_taken: bool,
    /// The execution was cancelled or deleted in this pass; the cache may not show it yet.
    pub deleted: bool,
    /// A write of the Lease was refused with 404 or 409: the cached lock is stale.
    pub lock_lost: bool,
    /// Uncached read of the Lease after `lock_lost`, used until the next write of the Lease.
    pub lease: Option<Option<Arc<Lease>>>,
    /// The finalizer was removed in this pass; the cache may not show it yet.
    pub finalizer_removed: bool,
    /// The lock has a record of the outcome, or can have none because its namespace is gone.
    pub recorded: bool,
}

impl Answers {
    /// Drops the uncached reads before a write, which may make them stale.
    pub fn drop_uncached_reads(&mut self) {
        (self.execution, self.remains, self.gate) = (None, None, None);
    }
}

/// As many executions run at the same time as may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// In the whole cluster.
    Cluster(u32),
    /// Of the WorkflowExecutions in one namespace.
    Namespace(u32),
}

/// A value, or why it could not be read. `Unavailable` must never be taken for "no".
#[derive(Clone, Debug)]
pub enum Answer<T> {
    /// The value that was read.
    Known(T),
    /// The read failed, for this reason.
    Unavailable(String),
}

/// A validated request, or every rule that it violates.
pub type Resolution = Result<Arc<ValidatedSpec>, Vec<Violation>>;

/// Validates a request against its catalog entry, or says why the catalog has none that can be run.
pub fn resolve(
    spec: &WorkflowExecutionSpec,
    workflow: Result<&Arc<Workflow>, Violation>,
) -> Resolution {
    let workflow = workflow.map_err(|violation| vec![violation])?;
    rules::validate(spec, rules::check(spec), workflow).map(Arc::new)
}

impl Observed {
    /// The name of the Job or PipelineRun, also before it is created.
    pub fn execution_name(&self) -> String {
        names::execution_name(&self.source.name, &self.source.uid)
    }
}
