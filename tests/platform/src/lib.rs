//! Stand-ins for the services of Kubernaut that wfe works with. Each is real in what it does and small in
//! what it knows; none of them is meant for production. They share the model of the resources and the
//! format of an audit event.

pub mod authorizer;
mod controller;
pub mod data_storage;
pub mod gateway;
pub mod holmes;
pub mod notification;
pub mod receiver;
pub mod rules;
pub mod signal_processing;
