//! Everything a decision may look at.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use enumset::EnumSet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use wfe_model::audit::EventType;
use wfe_model::dependencies::{DependencyProblem, ServiceAccountAnswer};
use wfe_model::rules::{self, ValidatedSpec, Violation};
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::{WorkflowExecution, WorkflowExecutionSpec};

use crate::execution::{Created, Execution, Remains, Source, Waiting};
use crate::history::Limits;
use crate::lock::{Lock, TargetLock};
use crate::names;
use crate::step::Notice;

/// What is known of one WorkflowExecution at one moment.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug)]
pub struct Observed {
    /// Now.
    pub now: Timestamp,
    /// The object, as cached or as the last write returned it.
    pub wfe: Arc<WorkflowExecution>,
    /// Whose execution it is: the object's namespace, name and uid.
    pub source: Source,
    /// Its Job or PipelineRun, as cached or as the create returned it.
    pub execution: Option<Execution>,
    /// Whether a pod of it is alive.
    pub pods_alive: bool,
    /// Since when a container of it runs or has run, as far as the pods that were seen told, those
    /// that are gone by now included.
    pub began: Option<Timestamp>,
    /// Whose pod or Job is alive on the target, where that is somebody else's.
    pub others_alive: Option<Source>,
    /// The target's lock, as cached or as the last write returned it.
    pub target_lock: TargetLock,
    /// How it stands for this one.
    pub lock: Lock,
    /// All others on the target.
    pub neighbours: Vec<Arc<WorkflowExecution>>,
    /// Whether nothing new may start.
    pub paused: bool,
    /// Whether the object's namespace is being deleted.
    pub namespace_ending: bool,
    /// What was told already.
    pub notified: HashSet<Notice>,
    /// Whether the engine's kind is served.
    pub engine_installed: bool,
    /// How the delivery of its audit events stands.
    pub audit: Delivery,
    /// Answers of this pass.
    pub answers: Answers,
    /// Flags.
    pub settings: Arc<Settings>,
}

/// How delivery stands for one WorkflowExecution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delivery {
    /// Has happened, and is neither delivered nor refused.
    pub waiting: EnumSet<EventType>,
    /// Whether the outbox knows of all that waits.
    pub queued: bool,
    /// What the sink refused for its content, and why.
    pub rejected: Option<(EnumSet<EventType>, String)>,
    /// Why nothing is delivered, while that is so.
    pub outage: Option<String>,
}

/// Flags that decisions depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where workflows run.
    pub execution_namespace: String,
    /// Where a WorkflowExecution names none.
    pub default_timeout: Duration,
    /// Where a WorkflowExecution names none.
    pub default_service_account: String,
    /// How long a succeeded execution is kept.
    pub retention: Duration,
    /// How long a failed execution is kept.
    pub retention_failed: Duration,
    /// How long an execution may take until a container starts.
    pub start_timeout: Duration,
    /// Cooldown, backoff, blocks.
    pub limits: Limits,
}

/// What was asked in this pass, and what came of writes.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// What is wrong with the target, if anything.
    pub target: Option<Answer<Option<Violation>>>,
    /// What the catalog says of the request.
    pub workflow: Option<Answer<Resolution>>,
    /// Whether the ServiceAccount may run workflows.
    pub service_account: Option<Answer<ServiceAccountAnswer>>,
    /// What is wrong with the dependencies.
    pub dependencies: Option<Answer<Vec<DependencyProblem>>>,
    /// The execution, uncached.
    pub execution: Option<Option<Execution>>,
    /// What the execution's Events say of why it does not start.
    pub startup_diagnosis: Option<Option<Waiting>>,
    /// What came of the create.
    pub created: Option<Created>,
    /// The execution was started in this very pass: the cache will show it.
    pub started: bool,
    /// What is left of the execution, uncached.
    pub remains: Option<Remains>,
    /// The lock was taken in this very pass.
    pub lock_taken: bool,
    /// The execution was deleted in this very pass: the cache will show it.
    pub deleted: bool,
    /// Somebody else was faster: the lock as cached is not to be believed.
    pub lock_lost: bool,
    /// The lock as it was then read, until it is written.
    pub lease: Option<Option<Arc<Lease>>>,
    /// The finalizer was taken off: the object is not ours any more, whatever the cache shows.
    pub finalizer_removed: bool,
    /// Its end is on record, or there is no place for records any more.
    pub recorded: bool,
}

impl Answers {
    /// Forgets what was seen uncached: a write makes another moment of it.
    pub fn forget_before_a_write(&mut self) {
        (self.execution, self.remains) = (None, None);
    }
}

/// What was asked, or why there is no answer: never to be taken for "no".
#[derive(Clone, Debug)]
pub enum Answer<T> {
    /// The answer.
    Known(T),
    /// Nothing is known, for this reason.
    Unavailable(String),
}

/// What the rules and the catalog say of a request: what may run, or every violation.
pub type Resolution = Result<Arc<ValidatedSpec>, Vec<Violation>>;

/// Validates a request against the catalog's entry, once for each answer of the catalog.
pub fn resolve(spec: &WorkflowExecutionSpec, workflow: Option<&Arc<Workflow>>) -> Resolution {
    let Some(workflow) = workflow else {
        let workflow_id = spec.workflow_ref.workflow_id.clone();
        return Err(vec![Violation::WorkflowNotFound { workflow_id }]);
    };
    rules::validate(spec, rules::check(spec), workflow).map(Arc::new)
}

impl Observed {
    /// The name that its execution has, or will have.
    pub fn execution_name(&self) -> String {
        names::execution_name(&self.source.name, &self.source.uid)
    }
}
