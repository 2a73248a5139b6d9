//! Interface of an engine's executor.

use futures::future::BoxFuture;
use kube::runtime::reflector::store::WriterDropped;
use wfe_core::execution::{Alive, Created, Execution, Remains, Source, Waiting};
use wfe_core::names::{TargetHash, Uid};
use wfe_core::plan::Plan;
use wfe_model::workflow_execution::ExecutionRef;

use super::unanswered::Unanswered;

/// A result that takes a definite answer of the API server.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Unanswered>>;

/// One engine: its watches, caches and requests. Methods that return [`Answer`] make requests, the
/// others read the caches and own writes.
pub trait Executor: Send + Sync {
    /// Whether the cluster serves the kind that the engine creates, by a watch.
    fn is_installed(&self) -> bool;

    /// Creates the execution suspended: nothing runs until [`start`](Self::start). Repeatable. A
    /// create that is committed after the controller has given up on it is harmless, because
    /// nothing starts it.
    fn create<'a>(&'a self, plan: &'a Plan) -> Answer<'a, Created>;
    /// Starts the object with this uid. Repeatable; does nothing if the object is gone.
    fn start<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()>;
    /// Ends the object with this uid as gently as the engine can, if it has not ended. Repeatable.
    fn cancel<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()>;
    /// Deletes the object with this uid and then its pods. Succeeds if the object is gone.
    fn delete<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()>;

    /// The cached execution with this name, if it belongs to the WorkflowExecution `source`.
    fn status(&self, name: &str, source: &Uid) -> Option<Execution>;
    /// Every cached execution with its WorkflowExecution.
    fn executions(&self) -> Vec<(Source, Execution)>;
    /// Whether the caches have a live pod of a WorkflowExecution, or something that may still create
    /// one after its execution has ended.
    fn has_live_pod(&self, source: &Uid) -> bool;
    /// The cached objects on the target that have not ended, executions first.
    fn alive_on(&self, target: &TargetHash) -> Vec<Alive>;
    /// Waits until the caches have been filled once.
    fn synced(&self) -> BoxFuture<'_, Result<(), WriterDropped>>;

    /// Reads the execution with this name and its pods from the API server.
    fn read<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Execution>>;
    /// Reads the Events of an execution that does not start, and derives the cause.
    fn startup_diagnosis<'a>(
        &'a self,
        reference: &'a ExecutionRef,
        source: &'a Uid,
    ) -> Answer<'a, Option<Waiting>>;
    /// Reads from the API server what is left of the execution of a WorkflowExecution.
    fn remains<'a>(
        &'a self,
        name: &'a str,
        source: &'a Uid,
        stored: Option<&'a ExecutionRef>,
    ) -> Answer<'a, Remains>;
    /// Reads from the API server whether an execution or a pod is alive on the target.
    fn occupies<'a>(&'a self, target: &'a TargetHash) -> Answer<'a, bool>;
}
