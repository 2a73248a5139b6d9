//! What the engines made, as far as the labels say.

use kube::ResourceExt;
use kube::runtime::watcher;
use wfe_core::names::{MANAGED_BY, MANAGER, TARGET_HASH, TargetHash, Uid, WORKFLOW_EXECUTION_UID};

use super::index::Key;

/// Whom an object was made for, by its labels.
#[derive(Clone, Debug)]
pub struct Made {
    /// Uid of the WorkflowExecution.
    pub uid: Option<Uid>,
    /// Its target.
    pub target: Option<TargetHash>,
}

impl Made {
    /// Reads the labels of `object`.
    pub fn of(object: &impl ResourceExt) -> Self {
        let label = |key: &str| object.labels().get(key).map(String::as_str);
        Self {
            uid: label(WORKFLOW_EXECUTION_UID).map(Uid::from),
            target: label(TARGET_HASH).map(TargetHash::from),
        }
    }

    /// What `object` is found by.
    pub fn keys(object: &impl ResourceExt) -> Vec<Key> {
        let Self { uid, target } = Self::of(object);
        let keys = [uid.map(Key::Uid), target.map(Key::Target)];
        keys.into_iter().flatten().collect()
    }
}

/// Selects what this program has made.
pub fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"))
}
