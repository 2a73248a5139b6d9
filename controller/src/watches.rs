//! Caches that watches keep up to date, and the reconcile requests that changes trigger. Nothing is
//! polled.
//!
//! For each kind, [`reflect()`] prunes unused fields and stores and indexes the objects by uid and
//! target; [`start`] turns each change into requests for the affected WorkflowExecutions. The
//! executors pass the changes of their kinds as [`Changes`], so no engine is named here.

mod ages;
mod caches;
pub mod crd_rules;
mod index;
mod owner_labels;
mod prune;
mod reflect;
mod served_crd;
mod start_times;
mod triggers;
mod unreadable;
mod written;

pub use self::ages::{WATCHES_ALIVE, WatchAges};
pub use self::caches::{Caches, gate_of};
pub use self::index::Key;
pub use self::owner_labels::{OwnerLabels, every, managed, pods_of};
pub use self::reflect::{Cache, Change, reflect};
pub use self::served_crd::ServedCrd;
pub use self::start_times::StartTimes;
pub use self::triggers::{Changes, Trigger, Triggers, owner_changes, start};
pub use self::unreadable::Watched;
pub use self::written::Written;
