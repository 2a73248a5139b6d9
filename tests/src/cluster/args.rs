//! The command line.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

/// A real Kubernetes on this machine, for tests and for trying things out.
///
/// It lives in namespaces of its own and is gone without a trace when it ends. Binaries are built
/// once, from pinned Go modules, and kept in `$WFE_CLUSTER_HOME` (default `~/.cache/wfe-cluster`).
#[derive(Debug, Parser)]
#[command(name = "wfe-cluster", version)]
pub struct Args {
    /// Only etcd and the API server: no node, no controllers, no root needed.
    #[arg(long, global = true)]
    pub api_only: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot the cluster and leave it running.
    Up,
    /// End the running cluster, and clean up after one that died.
    Down,
    /// Open a shell with kubectl in the running cluster, or in one of its own.
    Shell,
    /// Run a command in the running cluster, or boot one for it and remove it afterwards.
    Run {
        /// The command and its arguments, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Install the packages and build the binaries, and nothing else.
    Build,
    /// (internal) Hold a cluster until a signal ends it: what `up` leaves running.
    #[command(hide = true)]
    Serve,
    /// (internal) The first process inside the namespaces.
    #[command(hide = true)]
    Inside {
        /// Process id of the program outside.
        #[arg(long)]
        supervisor: u32,
        /// Run this, then end; without it, hold the cluster until a signal.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}
