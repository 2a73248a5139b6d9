//! Since when the workflow of a WorkflowExecution has run. Pods say it; this outlives them.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use wfe_core::names::Uid;

/// Start times by the uid of the WorkflowExecution: written by the engines, forgotten when the
/// WorkflowExecution is gone.
#[derive(Clone, Default)]
pub struct Began(Arc<Mutex<HashMap<Uid, Timestamp>>>);

impl Began {
    /// Remembers the first start.
    pub fn note(&self, uid: Uid, since: Timestamp) {
        self.0.lock().entry(uid).or_insert(since);
    }

    /// Since when a container of the workflow runs or has run, as far as was seen.
    pub fn of(&self, uid: &Uid) -> Option<Timestamp> {
        self.0.lock().get(uid).copied()
    }

    /// Forgets one.
    pub fn forget(&self, uid: &Uid) {
        self.0.lock().remove(uid);
    }

    /// Forgets all but those that `wanted` names.
    pub fn retain(&self, wanted: impl Fn(&Uid) -> bool) {
        self.0.lock().retain(|uid, _| wanted(uid));
    }
}
