//! Start times of workflow containers, which are needed longer than the pods that report them
//! exist.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use wfe_core::names::Uid;

/// Start times by the uid of the WorkflowExecution. The executors record them; they are removed
/// when the WorkflowExecution is gone.
#[derive(Clone, Default)]
pub struct StartTimes(Arc<Mutex<HashMap<Uid, Timestamp>>>);

impl StartTimes {
    /// Records a start time; only the first one is kept.
    pub fn record(&self, uid: Uid, started_at: Timestamp) {
        self.0.lock().entry(uid).or_insert(started_at);
    }

    /// The start time of the first container of the workflow, if a watch has reported one.
    pub fn get(&self, uid: &Uid) -> Option<Timestamp> {
        self.0.lock().get(uid).copied()
    }

    /// Removes the start time of one WorkflowExecution.
    pub fn remove(&self, uid: &Uid) {
        self.0.lock().remove(uid);
    }

    /// Removes the start times of all WorkflowExecutions for which `keep` is false.
    pub fn retain(&self, keep: impl Fn(&Uid) -> bool) {
        self.0.lock().retain(|uid, _| keep(uid));
    }
}
