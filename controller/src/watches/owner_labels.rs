//! Labels that name the WorkflowExecution and the target of a Job, pod or Lease.

use kube::ResourceExt;
use kube::runtime::watcher;
use wfe_core::names::{
    EXECUTION_ENGINE, MANAGED_BY, MANAGER, TARGET_HASH, TargetHash, Uid, WORKFLOW_EXECUTION_UID,
};
use wfe_model::engine::Engine;
use wfe_peers::client::WATCH_SECONDS;

use super::index::Key;

/// The WorkflowExecution and the target that the labels of an object name.
#[derive(Clone, Debug)]
pub struct OwnerLabels {
    /// Uid of the WorkflowExecution.
    pub uid: Option<Uid>,
    /// Target of the WorkflowExecution.
    pub target: Option<TargetHash>,
}

impl OwnerLabels {
    /// Reads the labels of `object`.
    pub fn of(object: &impl ResourceExt) -> Self {
        let label = |key: &str| object.labels().get(key).map(String::as_str);
        Self {
            uid: label(WORKFLOW_EXECUTION_UID).map(Uid::from),
            target: label(TARGET_HASH).map(TargetHash::from),
        }
    }

    /// Index keys of `object`.
    pub fn keys(object: &impl ResourceExt) -> Vec<Key> {
        let Self { uid, target } = Self::of(object);
        let keys = [uid.map(Key::Uid), target.map(Key::Target)];
        keys.into_iter().flatten().collect()
    }
}

/// Selects every object.
pub fn every() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// Selects the objects that the controller has created.
pub fn managed() -> watcher::Config {
    every().labels(&format!("{MANAGED_BY}={MANAGER}"))
}

/// Selects the pods of an engine's executions. Tekton sets [`MANAGED_BY`] of pods itself.
pub fn pods_of(engine: Engine) -> watcher::Config {
    every().labels(&format!("{EXECUTION_ENGINE}={engine}"))
}
