//! The command line.

use clap::{Parser, Subcommand};

/// Runs WorkflowExecutions as Kubernetes Jobs or Tekton PipelineRuns.
#[derive(Debug, Parser)]
#[command(name = "wfe-controller", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinitions as YAML, for `kubectl apply -f -`.
    Crds,
}
