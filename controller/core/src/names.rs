//! Names, labels and annotations of the objects that the controller reads and writes.

use sha2::{Digest, Sha256};
use wfe_model::target::Target;
use wfe_model::workflow_execution::WorkflowExecution;

/// Field manager, and the value of `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "wfe-controller";
/// Label: the program that manages the object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label: the WorkflowExecution's name, cut to a valid label. Annotation: its `namespace/name`.
pub const WORKFLOW_EXECUTION: &str = "kubernaut.ai/workflow-execution";
/// Label: the WorkflowExecution's uid.
pub const WORKFLOW_EXECUTION_UID: &str = "kubernaut.ai/workflow-execution-uid";
/// Label: `job` or `tekton`.
pub const EXECUTION_ENGINE: &str = "kubernaut.ai/execution-engine";
/// Label: [`TargetHash`].
pub const TARGET_HASH: &str = "kubernaut.ai/target-hash";
/// Label: the WorkflowExecution's namespace.
pub const SOURCE_NAMESPACE: &str = "kubernaut.ai/source-namespace";
/// Annotation: the target as written.
pub const TARGET_RESOURCE: &str = "kubernaut.ai/target-resource";
/// Annotation: the image or bundle with the digest that runs.
pub const IMAGE: &str = "kubernaut.ai/image";
/// Label that Kubernetes gives the pods of a Job.
pub const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// Annotation of an execution that the controller has started. A suspended execution without this
/// annotation has never run.
pub const STARTED: &str = "kubernaut.ai/started";
/// Label that puts a Job into a queue of Kueue, which suspends it until it is admitted.
pub const KUEUE_QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Annotation of a lock: its record of the last execution.
pub const LAST_EXECUTION: &str = "kubernaut.ai/last-execution";
/// Annotation of a lock: its records of deleted WorkflowExecutions that can still restrict a run.
pub const PAST_EXECUTIONS: &str = "kubernaut.ai/past-executions";
/// Annotation of a lock: who cleared the target after its blocking WorkflowExecution was gone.
pub const CLEARED: &str = "kubernaut.ai/target-cleared";
/// Annotation of a WorkflowExecution, guarded by a policy: its deletion does not wait for the
/// delivery of its audit events.
pub const ABANDON_AUDIT: &str = "kubernaut.ai/abandon-audit";
/// Annotation of the execution namespace: with the value `true` no execution starts.
pub const PAUSED: &str = "kubernaut.ai/paused";
/// Annotation: the workflow's key in the catalog.
pub const WORKFLOW_ID: &str = "kubernaut.ai/workflow-id";

const MAX_EXECUTION_PREFIX: usize = 46;
const MAX_LABEL: usize = 63;

/// The name of the Job or PipelineRun of a WorkflowExecution. Deterministic, so that a repeated
/// create cannot create a second object.
pub fn execution_name(name: &str, uid: &str) -> String {
    let prefix: String = name
        .replace('.', "-")
        .chars()
        .take(MAX_EXECUTION_PREFIX)
        .collect();
    format!("{}-{}", prefix.trim_end_matches('-'), sha256_prefix(uid, 8))
}

/// Identifies a target in lock, label and history: the first 32 hex digits of the SHA-256 of its
/// normalised form.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TargetHash(String);

impl TargetHash {
    /// The hash of a parsed target.
    pub fn of(target: &Target) -> Self {
        Self(sha256_prefix(&target.normalized(), 32))
    }

    /// The hash of the target of a WorkflowExecution; `None` if the target is invalid.
    pub fn of_wfe(wfe: &WorkflowExecution) -> Option<Self> {
        Target::parse(&wfe.spec.target_resource).map(|target| Self::of(&target))
    }

    /// The value of the label [`TARGET_HASH`].
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// From the value of the label [`TARGET_HASH`].
impl From<&str> for TargetHash {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The uid of a WorkflowExecution.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Uid(String);

impl Uid {
    /// The uid as the API server assigned it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// From `metadata.uid` or the label [`WORKFLOW_EXECUTION_UID`].
impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Name of the Lease that is the lock of a target.
pub fn lock_name(target: &TargetHash) -> String {
    format!("wfe-target-{}", target.as_str())
}

/// An object's name as a label value. Only the length needs care: every character of an object's
/// name is allowed in a label.
pub fn label_value(text: &str) -> String {
    let cut: String = text.chars().take(MAX_LABEL).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Volume name for a Secret or ConfigMap: `<kind>-<name>` if that is a DNS label, otherwise cut to
/// one, with a hash of the name that keeps it unique.
pub fn volume_name(kind: &str, name: &str) -> String {
    let plain = format!("{kind}-{name}");
    if plain.len() <= MAX_LABEL && !plain.contains('.') {
        return plain;
    }
    let hash = sha256_prefix(name, 8);
    let cut: String = plain
        .replace('.', "-")
        .chars()
        .take(MAX_LABEL - hash.len() - 1)
        .collect();
    format!("{}-{hash}", cut.trim_end_matches('-'))
}

fn sha256_prefix(text: &str, digits: usize) -> String {
    hex::encode(Sha256::digest(text))
        .chars()
        .take(digits)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BR-WE-014
    #[test]
    fn execution_name_is_valid_stable_and_unique_per_uid() {
        let name = execution_name("restart.web", "uid-1");
        assert_eq!(name, execution_name("restart.web", "uid-1"));
        assert!(
            name.starts_with("restart-web-") && name.len() == "restart-web-".len() + 8,
            "{name}"
        );
        assert_ne!(name, execution_name("restart.web", "uid-2"));
        let long = execution_name(&format!("{}-{}", "a".repeat(45), "b".repeat(200)), "uid");
        assert!(long.starts_with(&format!("{}-", "a".repeat(45))), "{long}");
        assert!(!long.contains("--"), "{long}");
        // Pod names have a suffix of 6 characters.
        assert!(long.len() <= 63 - 6, "{long}");
    }

    /// BR-WE-009
    #[test]
    fn target_hash_ignores_case_of_kind() {
        let hash = |text: &str| TargetHash::of(&Target::parse(text).expect("a target"));
        assert_eq!(hash("prod/Deployment/web"), hash("prod/deployment/web"));
        assert_ne!(hash("prod/Deployment/web"), hash("dev/Deployment/web"));
        assert_eq!(hash("prod/Deployment/web").as_str().len(), 32);
    }

    #[test]
    fn volume_name_is_valid_and_unique() {
        assert_eq!(volume_name("secret", "registry"), "secret-registry");
        let (dots, dashes) = (volume_name("secret", "a.b"), volume_name("secret", "a-b"));
        assert_ne!(dots, dashes);
        for name in ["a.b", &"x".repeat(253), &format!("{}.y", "x".repeat(50))] {
            let volume = volume_name("configmap", name);
            assert!(
                volume.len() <= 63 && !volume.contains('.') && !volume.ends_with('-'),
                "{volume}"
            );
        }
    }

    #[test]
    fn label_value_long_name_is_cut() {
        assert_eq!(label_value("web"), "web");
        assert_eq!(
            label_value(&format!("{}.{}", "a".repeat(62), "b".repeat(9))),
            "a".repeat(62)
        );
    }
}
