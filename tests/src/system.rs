//! Installs wfe in a cluster from the chart's files. Controller and webhook run as processes on the
//! host instead of pods, with the tokens of their own ServiceAccounts and no other permissions.

mod catalog;
mod catalog_source;
mod control;
mod install;
mod look;
mod overlap;
mod people;
mod pipeline;
mod program;
mod remediation;
mod script;
mod service;
mod state;
mod tls;
mod webhook;

pub use self::catalog_source::CatalogSource;
pub use self::control::{cluster, install_crd};
pub use self::install::until_effective;
pub use self::look::{condition, dry_run, job_has_ended, message, pod_is_alive, types};
pub use self::overlap::Overlap;
pub use self::pipeline::{Task, pipeline};
pub use self::program::{Program, memory_kib, path_of};
pub use self::script::Script;
pub use self::service::Service;
pub use self::state::System;
pub use self::tls::TlsClient;
