//! Names, labels and annotations that others see.

use sha2::{Digest, Sha256};
use wfe_model::target::Target;

/// Field manager, and the value of `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "wfe-controller";
/// Who made it.
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
/// Annotation of a Job: the controller has started it. A Job that is suspended and lacks this
/// annotation has never run.
pub const STARTED: &str = "kubernaut.ai/started";
/// Annotation of a lock: its record of the last execution.
pub const LAST_EXECUTION: &str = "kubernaut.ai/last-execution";
/// Annotation of a lock: its records of WorkflowExecutions that are gone and still say something.
pub const PAST_EXECUTIONS: &str = "kubernaut.ai/past-executions";
/// Annotation of a WorkflowExecution: cancel it; the value says why.
pub const CANCEL: &str = "kubernaut.ai/cancel";
/// Annotation of a WorkflowExecution, guarded by a policy: when it is deleted, its audit events are
/// not waited for.
pub const ABANDON_AUDIT: &str = "kubernaut.ai/abandon-audit";
/// Annotation of the execution namespace: with the value `true` nothing new starts.
pub const PAUSED: &str = "kubernaut.ai/paused";
/// Annotation: key in the catalog.
pub const WORKFLOW_ID: &str = "kubernaut.ai/workflow-id";

const MAX_EXECUTION_PREFIX: usize = 46;
const MAX_LABEL: usize = 63;

/// The name of the Job or PipelineRun of a WorkflowExecution: the same one each time, so that a
/// create can be repeated.
pub fn execution_name(name: &str, uid: &str) -> String {
    let prefix: String = name
        .replace('.', "-")
        .chars()
        .take(MAX_EXECUTION_PREFIX)
        .collect();
    format!("{}-{}", prefix.trim_end_matches('-'), sha256_prefix(uid, 8))
}

/// What lock, label and history of a target go by: the first 32 hex digits of the SHA-256 of its
/// normalised form.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TargetHash(String);

impl TargetHash {
    /// The hash of a checked target; an invalid one has none.
    pub fn of(target: &Target) -> Self {
        Self(sha256_prefix(&target.normalized(), 32))
    }

    /// The value of the label [`TARGET_HASH`].
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As in a label.
impl From<&str> for TargetHash {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The uid of a WorkflowExecution.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Uid(String);

impl Uid {
    /// As the API server wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As in metadata or a label.
impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The Lease that is the lock of a target.
pub fn lock_name(target: &TargetHash) -> String {
    format!("wfe-target-{}", target.as_str())
}

/// A text as a label value; names of objects have only characters that labels may have.
pub fn label_value(text: &str) -> String {
    let cut: String = text.chars().take(MAX_LABEL).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// A volume's name for a Secret or ConfigMap: `<kind>-<name>`, or, where that is no DNS label, one
/// that is, and still belongs to this name only.
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

    #[test]
    fn br_we_014_execution_names_are_valid_stable_and_of_one_uid() {
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
        // A Job's pods get 6 more characters.
        assert!(long.len() <= 63 - 6, "{long}");
    }

    #[test]
    fn br_we_009_spellings_of_a_kind_share_a_hash() {
        let hash = |text: &str| TargetHash::of(&Target::parse(text).expect("a target"));
        assert_eq!(hash("prod/Deployment/web"), hash("prod/deployment/web"));
        assert_ne!(hash("prod/Deployment/web"), hash("dev/Deployment/web"));
        assert_eq!(hash("prod/Deployment/web").as_str().len(), 32);
    }

    #[test]
    fn volume_names_are_labels_and_stay_different() {
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
    fn labels_are_cut_to_what_labels_may_be() {
        assert_eq!(label_value("web"), "web");
        assert_eq!(
            label_value(&format!("{}.{}", "a".repeat(62), "b".repeat(9))),
            "a".repeat(62)
        );
    }
}
