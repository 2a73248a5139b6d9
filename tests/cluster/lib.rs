//! A real Kubernetes on this machine, and how tests reach it.
//!
//! The program `wfe-cluster` boots it: etcd, the control plane, one node with containerd, a
//! registry, all built from pinned Go modules and run in namespaces of their own (network, mounts,
//! processes), so that the kernel itself removes everything when the program ends, however it
//! ends. Tests run inside and say [`Cluster::connect`].
//!
//! This is a tool: whatever fails is told to the person who started it and ends the program. Its
//! errors are therefore `anyhow` chains, not enums that somebody could match on.

mod access;
pub mod args;
mod binaries;
mod boot;
#[path = "../platform/data-storage/mod.rs"]
pub mod data_storage;
mod home;
mod namespace;
mod packages;
mod pki;
mod processes;
#[path = "../faults/proxy.rs"]
pub mod proxy;
mod registry;
mod sandbox;
#[path = "../faults/stand_in.rs"]
pub mod stand_in;
#[path = "../system/mod.rs"]
pub mod system;
pub mod wait;

pub mod commands;

pub use access::Cluster;
pub use namespace::TestNamespace;
pub use registry::{Image, Registry};
