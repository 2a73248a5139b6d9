//! The next step: a question, a write, or nothing to do.

use jiff::Timestamp;
use wfe_model::target::Target;
use wfe_model::workflow::Dependencies;
use wfe_model::workflow_execution::{ExecutionRef, WorkflowExecutionStatus};

use crate::execution::Plan;
use crate::history::Entry;

/// The next step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Something must be known first.
    Ask(Question),
    /// One write.
    Do(Effect),
    /// Nothing to do until then, or until something changes.
    Wait(Timestamp),
    /// Nothing to do until something changes.
    Done,
}

/// One read.
#[derive(Clone, Debug)]
pub enum Question {
    /// Whether the target's kind is served.
    TargetKind(Target),
    /// The catalog's entry.
    Workflow(String),
    /// Whether a ServiceAccount may run workflows.
    ServiceAccount(String),
    /// Whether Secrets and ConfigMaps are there.
    Dependencies(Dependencies),
    /// The execution, uncached.
    Execution,
    /// What its Events say of an execution that does not start.
    StartupDiagnosis(ExecutionRef),
    /// What is left of the execution, uncached.
    Remains,
    /// The target's lock, uncached.
    Lock,
}

/// One write.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Keeps the WorkflowExecution until all is cleaned up.
    AddFinalizer,
    /// Lets it go.
    RemoveFinalizer,
    /// Takes the target's lock.
    TakeLock,
    /// Frees it, leaving a record of what was executed.
    FreeLock(Option<Box<Entry>>),
    /// Leaves a record of one that is about to go.
    Record(Box<Entry>),
    /// Creates the Job or PipelineRun, suspended.
    Create(Box<Plan>),
    /// Starts it, once it is stored that it is the execution.
    Start(ExecutionRef),
    /// Deletes it.
    Delete(ExecutionRef),
    /// Stores a status.
    Store(Box<WorkflowExecutionStatus>),
    /// Has delivered what has happened.
    Audit,
    /// Tells that something takes longer than it should.
    Tell(Notice),
}

/// What an operator should hear of, once.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Notice {
    /// The execution has not ended, long after its timeout.
    Overdue,
    /// Its pod has not ended, long after the end: the target stays locked.
    PodRemains,
    /// It was deleted and blocks its target: it stays until it is cleared.
    DeletionWaits,
    /// It was deleted and somebody has said that its audit events are not to be waited for.
    AuditAbandoned,
}

impl Effect {
    /// For logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "add finalizer",
            Self::RemoveFinalizer => "remove finalizer",
            Self::TakeLock => "take lock",
            Self::FreeLock(_) => "free lock",
            Self::Record(_) => "record the end",
            Self::Create(_) => "create execution",
            Self::Start(_) => "start execution",
            Self::Delete(_) => "delete execution",
            Self::Store(_) => "store status",
            Self::Audit => "deliver audit events",
            Self::Tell(_) => "tell",
        }
    }
}
