//! Caches of what the API server has, kept by watches, and the queue of WorkflowExecutions to
//! reconcile. Nothing is polled.
//!
//! Per kind: watch, prune what is not read, store, index by uid and target ([`follow()`]), and a trigger
//! for each WorkflowExecution that the change may matter to ([`start`]). What engines watch comes in as
//! [`Changes`]: nothing here names an engine.

mod began;
mod caches;
mod follow;
mod index;
mod made;
mod prune;
mod triggers;
mod written;

pub use self::began::Began;
pub use self::caches::{Caches, target_of};
pub use self::follow::{Cache, Touched, follow};
pub use self::index::Key;
pub use self::made::{Made, ours};
pub use self::triggers::{Changes, Triggers, start};
pub use self::written::Written;
