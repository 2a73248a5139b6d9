//! Output of a decision: a read, a write, or a requeue.

use jiff::Timestamp;
use strum::IntoStaticStr;
use wfe_model::target::Target;
use wfe_model::workflow::Dependencies;
use wfe_model::workflow_execution::{ExecutionRef, WorkflowExecutionStatus};

use crate::history::Entry;
use crate::plan::Plan;

/// The next step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Read this, then decide again.
    Ask(Question),
    /// Write this, then decide again.
    Do(Effect),
    /// Requeue at this time; a watch may trigger a reconcile earlier.
    Wait(Timestamp),
    /// No requeue: a watch triggers the next reconcile.
    Done,
}

impl Step {
    /// Requeues at `deadline` if this step does not before.
    pub(crate) fn at_latest(self, deadline: Timestamp) -> Self {
        match self {
            Self::Done => Self::Wait(deadline),
            Self::Wait(until) => Self::Wait(until.min(deadline)),
            step => step,
        }
    }
}

/// A read that a decision needs.
#[derive(Clone, Debug)]
pub enum Question {
    /// The kinds that the API server serves by the name of this target's.
    TargetKind(Target),
    /// The catalog entry of this workflow id.
    Workflow(String),
    /// Whether this ServiceAccount may run workflows.
    ServiceAccount(String),
    /// Whether these Secrets and ConfigMaps exist and are not empty.
    Dependencies(Dependencies),
    /// The execution, uncached.
    Execution,
    /// Why this execution does not start, by its Events.
    StartupDiagnosis(ExecutionRef),
    /// What is left of the execution, uncached.
    Remains,
    /// The target's lock, uncached.
    Lock,
    /// Whether executions may start in the execution namespace, uncached.
    Gate,
}

/// A write that carries out a decision.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Adds the finalizer, which keeps a deleted WorkflowExecution until its cleanup is done.
    AddFinalizer,
    /// Removes the finalizer.
    RemoveFinalizer,
    /// Deletes the WorkflowExecution, whose time to live is over.
    Expire,
    /// Takes the target's lock.
    TakeLock,
    /// Adds the missing labels of the target's lock, which another client has created: without them
    /// no watch shows it.
    LabelLock,
    /// Frees the target's lock, with a record of the execution if there was one.
    FreeLock(Option<Box<Entry>>),
    /// Adds a record of a deleted WorkflowExecution to the target's lock.
    Record(Box<Entry>),
    /// Creates the Job or PipelineRun, suspended.
    Create(Box<Plan>),
    /// Starts the suspended Job or PipelineRun whose uid is stored in the status.
    Start(ExecutionRef),
    /// Ends the Job or PipelineRun, which has not ended by itself.
    Cancel(ExecutionRef),
    /// Deletes the Job or PipelineRun.
    Delete(ExecutionRef),
    /// Replaces the status.
    Store(Box<WorkflowExecutionStatus>),
    /// Gives the audit events to the outbox.
    Audit,
    /// Publishes an Event and counts it in a metric.
    Notify(Notice),
}

/// A situation that needs an operator's attention, published once by each process.
#[derive(Clone, Copy, Debug, Eq, Hash, IntoStaticStr, PartialEq)]
#[cfg_attr(test, derive(strum::EnumIter))]
pub enum Notice {
    /// The execution has not ended although its timeout is exceeded.
    Overdue,
    /// A pod is still alive long after its execution ended: the target stays locked.
    PodRemains,
    /// The ended execution was deleted but a finalizer of another client keeps it.
    DeletionStuck,
    /// The WorkflowExecution was deleted but blocks its target: the finalizer stays until the block
    /// is cleared.
    DeletionWaits,
    /// The WorkflowExecution was deleted with the annotation [`crate::names::ABANDON_AUDIT`]: its
    /// undelivered audit events are lost.
    AuditAbandoned,
    /// The passes of the WorkflowExecution fail again and again.
    ReconcileFails,
}

impl Notice {
    /// As in the label `reason` of the metric `workflowexecution_notice_total`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Question {
    /// For logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TargetKind(_) => "target kind",
            Self::Workflow(_) => "workflow",
            Self::ServiceAccount(_) => "service account",
            Self::Dependencies(_) => "dependencies",
            Self::Execution => "execution",
            Self::StartupDiagnosis(_) => "startup diagnosis",
            Self::Remains => "remains of the execution",
            Self::Lock => "lock",
            Self::Gate => "execution namespace",
        }
    }
}

impl Effect {
    /// Name of the effect in logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "add finalizer",
            Self::RemoveFinalizer => "remove finalizer",
            Self::Expire => "delete expired WorkflowExecution",
            Self::TakeLock => "take lock",
            Self::LabelLock => "label lock",
            Self::FreeLock(_) => "free lock",
            Self::Record(_) => "record outcome",
            Self::Create(_) => "create execution",
            Self::Start(_) => "start execution",
            Self::Cancel(_) => "cancel execution",
            Self::Delete(_) => "delete execution",
            Self::Store(_) => "store status",
            Self::Audit => "deliver audit events",
            Self::Notify(_) => "notify",
        }
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    /// Alerts select notices by these labels.
    #[test]
    fn notice_labels_are_the_published_ones() {
        let labels: Vec<_> = Notice::iter().map(Notice::as_str).collect();
        let published =
            "Overdue PodRemains DeletionStuck DeletionWaits AuditAbandoned ReconcileFails";
        assert_eq!(labels.join(" "), published);
    }
}
