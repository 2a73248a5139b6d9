//! A real Kubernetes on this machine, and how tests reach it.
//!
//! The program `wfe-cluster` boots it: etcd, the control plane, one node with containerd, a registry,
//! all built from pinned Go modules and run in namespaces of their own (network, mounts, processes):
//! the kernel itself removes everything when the program ends, however it ends. Tests run inside and
//! call [`Cluster::connect`].
//!
//! This is a tool: a failure is reported to the person who started it and ends the program. Its errors
//! are therefore `anyhow` chains, not enums to match on.

pub mod access;
pub mod args;
mod binaries;
mod boot;
mod bundle;
pub mod commands;
mod home;
mod images;
mod namespace;
mod packages;
pub mod pki;
mod processes;
mod promtool;
mod registry;
mod sandbox;
pub mod wait;

pub use access::{Cluster, WEBHOOK_CLIENT};
pub use namespace::TestNamespace;
pub use registry::{Image, Registry};
