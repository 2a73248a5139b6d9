//! Fakes, each as strict as the real thing where it matters: a kubelet and Job controller, a proxy that
//! loses requests, a Data Storage.

pub mod data_storage;
pub mod holmes;
pub mod node;
pub mod proxy;
