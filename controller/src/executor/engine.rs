//! What the controller asks of an engine.

use futures::future::BoxFuture;
use kube::runtime::reflector::store::WriterDropped;
use wfe_core::execution::{Created, Execution, Plan, Remains, Source, Waiting};
use wfe_core::names::{TargetHash, Uid};
use wfe_model::workflow_execution::ExecutionRef;

use super::unanswered::Unanswered;

/// An answer of the API server, or none.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Unanswered>>;

/// One engine: its watches, its caches, its calls.
pub trait Executor: Send + Sync {
    /// Creates the execution, suspended: nothing runs until [`start`](Self::start). May be repeated.
    /// A create that is committed late, when nothing waits for it any more, is harmless.
    fn create<'a>(&'a self, plan: &'a Plan) -> Answer<'a, Created>;
    /// Starts exactly this object; may be repeated. An object that is gone is not started.
    fn start<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()>;
    /// Deletes exactly this object, and its pods after it; an object that is gone is fine.
    fn delete<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()>;

    /// The execution by name, as cached.
    fn status(&self, name: &str, source: &Uid) -> Option<Execution>;
    /// Every execution and whose it is, as cached.
    fn executions(&self) -> Vec<(Source, Execution)>;
    /// Whether a pod made for a WorkflowExecution is alive, as cached.
    fn has_live_pod(&self, source: &Uid) -> bool;
    /// For whom an execution or a pod is alive on the target, as cached: executions first.
    fn alive_on(&self, target: &TargetHash) -> Vec<Source>;
    /// Until the caches have been filled once.
    fn synced(&self) -> BoxFuture<'_, Result<(), WriterDropped>>;

    /// The execution by name, from the API server itself.
    fn read<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Execution>>;
    /// What the Events of an execution that does not start say about it.
    fn startup_diagnosis<'a>(
        &'a self,
        reference: &'a ExecutionRef,
        source: &'a Uid,
    ) -> Answer<'a, Option<Waiting>>;
    /// What is left of the execution of a WorkflowExecution, from the API server itself.
    fn remains<'a>(
        &'a self,
        name: &'a str,
        source: &'a Uid,
        stored: Option<&'a ExecutionRef>,
    ) -> Answer<'a, Remains>;
    /// Whether an execution or a pod is alive on the target, from the API server itself.
    fn occupies<'a>(&'a self, target: &'a TargetHash) -> Answer<'a, bool>;
}
