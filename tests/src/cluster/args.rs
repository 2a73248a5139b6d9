//! The command line.

use std::ffi::OsString;

use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};

use super::images::Profile;

/// Runs a real Kubernetes cluster on this machine, for tests and experiments.
///
/// The cluster runs in Linux namespaces of its own and leaves nothing behind when it ends. Binaries
/// are built once, from pinned Go modules, and kept in `$WFE_CLUSTER_HOME` (default
/// `~/.cache/wfe-cluster`).
#[derive(Debug, Parser)]
#[command(name = "wfe-cluster", version)]
pub struct Args {
    /// Start only etcd and the API server: no node, no controllers, no root needed.
    #[arg(long, global = true, conflicts_with = "tekton")]
    pub api_only: bool,
    /// Also install Tekton Pipelines: its controller, webhook and resolvers as pods.
    #[arg(long, global = true)]
    pub tekton: bool,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// What the cluster consists of.
    pub(crate) fn extent(&self) -> Extent {
        match (self.api_only, self.tekton) {
            (true, _) => Extent::ApiServer,
            (false, false) => Extent::Node,
            (false, true) => Extent::Tekton,
        }
    }
}

/// What a cluster consists of; each includes what precedes it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum Extent {
    /// etcd and the API server.
    ApiServer,
    /// Controllers, one node and a registry.
    Node,
    /// Tekton Pipelines.
    Tekton,
}

impl Extent {
    /// The flag of this program that selects the extent.
    pub(crate) fn flag(self) -> Option<&'static str> {
        match self {
            Self::ApiServer => Some("--api-only"),
            Self::Node => None,
            Self::Tekton => Some("--tekton"),
        }
    }

    /// Whether the cluster can run pods.
    pub(crate) fn has_node(self) -> bool {
        self >= Self::Node
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot the cluster and leave it running.
    Up,
    /// End the running cluster, or clean up after a cluster that was killed.
    Down,
    /// Open a shell with kubectl in the running cluster, or in a new one.
    Shell,
    /// Run a command in the running cluster, or in a new one that ends with the command.
    Run {
        /// The command and its arguments, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Install packages and build binaries, without starting a cluster.
    Build,
    /// Build the images of both programs and push them to a registry.
    ///
    /// With docker or buildah where one of them runs, else from binaries that are built here.
    Images {
        /// `host:port`, or a host with a path, of the registry.
        registry: String,
        /// Tag of the images.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
        /// How the programs are compiled.
        #[arg(long, value_enum, default_value_t = Profile::Release)]
        profile: Profile,
        /// Also build the stand-ins for the services of Kubernaut, from binaries: `kubernaut/wfe-platform`.
        #[arg(long)]
        stand_ins: bool,
    },
    /// Run a command with Helm and the other tools for the chart, without starting a cluster.
    ///
    /// Their directories are put on the PATH. They are built once, like the cluster's binaries.
    Tools {
        /// The command and its arguments, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// (internal) Boot a cluster and run it until a signal: the background process of `up`.
    #[command(hide = true)]
    Serve,
    /// (internal) Run as the first process inside the namespaces.
    #[command(hide = true)]
    Inside {
        /// Process id of the supervisor, outside the namespaces.
        #[arg(long)]
        supervisor: u32,
        /// Command to run in the cluster; without a command, the cluster runs until a signal.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}
