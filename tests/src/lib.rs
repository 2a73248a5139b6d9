//! What the suites run on: a real Kubernetes ([`cluster`]), wfe installed in it ([`system`]), and fakes of
//! what cannot be had for real in a test ([`fakes`]).

pub mod chart;
pub mod cluster;
pub mod fakes;
mod folder;
pub mod system;

pub use cluster::{Cluster, Image, Registry, TestNamespace, wait};
pub use folder::workspace;
