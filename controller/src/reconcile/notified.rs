//! Notices that this process has published. Kept in memory: a new process publishes them again.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use wfe_core::step::Notice;

/// Notices by the uid of the WorkflowExecution.
#[derive(Default)]
pub struct Notified(Mutex<HashMap<String, HashSet<Notice>>>);

impl Notified {
    /// Remembers that `notice` was published.
    pub fn insert(&self, uid: &str, notice: Notice) {
        self.0
            .lock()
            .entry(uid.to_owned())
            .or_default()
            .insert(notice);
    }

    /// The published notices of one WorkflowExecution.
    pub fn of(&self, uid: &str) -> HashSet<Notice> {
        self.0.lock().get(uid).cloned().unwrap_or_default()
    }

    /// Forgets the notices of one WorkflowExecution.
    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}
