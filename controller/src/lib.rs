//! Runs WorkflowExecutions. So far: prints the CustomResourceDefinitions it works with.

pub mod args;
pub mod crds;
