//! Everything a decision may look at.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use wfe_model::audit::AuditEvent;
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_peers::dependencies::{DependencyProblem, ServiceAccountAnswer};

use crate::execution::lock::Lock;
use crate::executor::{Created, Execution, Remains, Source};
use crate::names;

/// What is known of one WorkflowExecution at one moment.
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
    /// Whether somebody else's pod or Job is alive on the target.
    pub others_alive: bool,
    /// The target's lock, as cached or as the last write returned it.
    pub lease: Option<Arc<Lease>>,
    /// How it stands for this one.
    pub lock: Lock,
    /// The WorkflowExecution that holds it, where that is another one and known.
    pub holder: Option<Arc<WorkflowExecution>>,
    /// Whether the engine's kind is served.
    pub engine_installed: bool,
    /// Events that have been derived from the stored status and not yet been delivered.
    pub unaudited: Vec<AuditEvent>,
    /// Answers of this pass.
    pub answers: Answers,
    /// Flags.
    pub settings: Arc<Settings>,
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
}

/// What was asked in this pass, and what came of writes.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// The catalog's word.
    pub catalog: Option<Known<Option<Arc<Workflow>>>>,
    /// Whether the ServiceAccount may run workflows.
    pub service_account: Option<Known<ServiceAccountAnswer>>,
    /// What is wrong with the dependencies.
    pub dependencies: Option<Known<Vec<DependencyProblem>>>,
    /// The WorkflowExecution, uncached: whether it is the same object, not ended, not deleted.
    pub still_wanted: Option<bool>,
    /// The execution, uncached.
    pub execution: Option<Option<Execution>>,
    /// What came of the create.
    pub created: Option<Created>,
    /// What is left of the execution, uncached.
    pub remains: Option<Remains>,
    /// The lock was taken in this very pass.
    pub lock_taken: bool,
    /// The execution was deleted in this very pass: the cache will show it.
    pub deleted: bool,
    /// Somebody else was faster: the lock as cached is not to be believed.
    pub lock_lost: bool,
    /// The finalizer was taken off: the object is not ours any more, whatever the cache shows.
    pub let_go: bool,
    /// Why the audit sink did not take the events.
    pub audit_unavailable: Option<String>,
}

/// An answer, or why there is none: never to be taken for "no".
#[derive(Clone, Debug)]
pub enum Known<T> {
    /// The answer.
    Yes(T),
    /// Nothing is known.
    Not(String),
}

impl Observed {
    /// The name that its execution has, or will have.
    pub fn execution_name(&self) -> String {
        names::execution_name(&self.source.name, &self.source.uid)
    }
}
