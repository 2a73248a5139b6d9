//! What a `WorkflowExecution` is and which are valid.
//!
//! Types and rules only: no client, no clock, no I/O, so that the webhook, the controller and the
//! tests judge with the same functions. The manifest enforces it: `kube` comes without its client.
//!
//! [`workflow_execution`] is the stored shape (strings, lenient), [`rules`] the one way from there
//! to checked types, [`workflow`] and [`parameters`] what the catalog says, [`crd`] the schema the
//! API server enforces by itself, [`audit`] the events that report what happened.

pub mod audit;
pub mod crd;
pub mod dependencies;
pub mod duration;
pub mod image;
pub mod parameters;
pub mod pattern;
pub mod rules;
pub mod target;
pub mod text;
pub mod workflow;
pub mod workflow_execution;

/// Keeps a WorkflowExecution until its execution is ended and its audit events are delivered.
pub const FINALIZER: &str = "kubernaut.ai/workflow-execution";
