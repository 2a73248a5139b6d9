//! The `WorkflowExecution` API: types, validation rules and CRD.
//!
//! This crate has no client, no clock and no I/O, so that the webhook, the controller and the tests
//! validate with the same functions. The manifest enforces this: `kube` is used without its client.
//!
//! [`workflow_execution`] has the types as stored (text, read leniently), [`rules`] converts them
//! to checked types, [`workflow`] and [`parameters`] describe an entry of the catalog, [`crd`] is
//! the schema that the API server enforces, [`audit`] has the audit events.

pub mod audit;
pub mod crd;
pub mod dependencies;
pub mod duration;
pub mod engine;
pub mod image;
pub mod limit;
pub mod parameters;
pub mod pattern;
pub mod remediation;
pub mod rules;
pub mod served;
pub mod target;
pub mod text;
mod violation;
pub mod workflow;
pub mod workflow_execution;

/// Finalizer that keeps a WorkflowExecution until its execution has ended and its audit events are
/// delivered.
pub const FINALIZER: &str = "kubernaut.ai/workflow-execution";
/// Annotation of a WorkflowExecution that cancels it, with the reason as value.
pub const CANCEL: &str = "kubernaut.ai/cancel";
/// Annotation of a WorkflowExecution: the user who cancelled it.
pub const CANCELLED_BY: &str = "kubernaut.ai/cancelled-by";
