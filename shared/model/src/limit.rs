//! Maximum lengths in characters, enforced both by the CRD schema and by [`rules`](crate::rules).

/// A user's name or uid.
pub const USER: usize = 1024;
/// `workflowId`.
pub const WORKFLOW_ID: usize = 255;
/// `version` of a workflow.
pub const VERSION: usize = 64;
/// Names of objects and workflows, and API versions.
pub const NAME: usize = 253;
/// Names of namespaces and kinds.
pub const LABEL: usize = 63;
/// Object uids.
pub const UID: usize = 128;
/// `rationale`.
pub const RATIONALE: usize = 16_384;
