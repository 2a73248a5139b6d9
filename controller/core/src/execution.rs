//! Engine-neutral view of a Job or PipelineRun: the plan it is built from, its progress, and what
//! is left of it after its end.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use strum::{EnumString, IntoStaticStr};
use wfe_model::rules::ValidatedSpec;
use wfe_model::workflow_execution::{ExecutionRef, FailureReason, WorkflowExecution};

use crate::names::{SOURCE_NAMESPACE, TargetHash, Uid, WORKFLOW_EXECUTION, WORKFLOW_EXECUTION_UID};

/// Everything that an engine needs to build a Job or PipelineRun.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the object, by [`crate::names::execution_name`].
    pub name: String,
    /// The execution namespace.
    pub namespace: String,
    /// The WorkflowExecution that the object is created for.
    pub source: Source,
    /// Hash of the target.
    pub target_hash: TargetHash,
    /// The request, validated against its catalog entry.
    pub valid: Arc<ValidatedSpec>,
    /// Execution timeout.
    pub timeout: Duration,
    /// ServiceAccount of the pod.
    pub service_account: String,
}

/// Identity of the WorkflowExecution that an object belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// Namespace of the WorkflowExecution.
    pub namespace: String,
    /// Name of the WorkflowExecution.
    pub name: String,
    /// Uid of the WorkflowExecution.
    pub uid: String,
}

/// The uid as caches are keyed by it.
impl From<&Source> for Uid {
    fn from(source: &Source) -> Self {
        Self::from(source.uid.as_str())
    }
}

impl Source {
    /// Identity of `wfe`.
    pub fn of(wfe: &WorkflowExecution) -> Self {
        let metadata = &wfe.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// The WorkflowExecution that a Job, PipelineRun or pod was created for. The annotation has the
    /// full name; a label is cut to 63 characters.
    pub fn read(object: &impl ResourceExt) -> Option<Self> {
        let uid = object.labels().get(WORKFLOW_EXECUTION_UID)?.clone();
        let full = object.annotations().get(WORKFLOW_EXECUTION);
        let (namespace, name) = if let Some(full) = full.and_then(|full| full.split_once('/')) {
            (full.0.to_owned(), full.1.to_owned())
        } else {
            let label = |key: &str| object.labels().get(key).cloned().unwrap_or_default();
            (label(SOURCE_NAMESPACE), label(WORKFLOW_EXECUTION))
        };
        Some(Self {
            namespace,
            name,
            uid,
        })
    }
}

/// Engine-neutral view of a Job or PipelineRun.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// Reference to the object.
    pub reference: ExecutionRef,
    /// Uid of the WorkflowExecution, from the object's label.
    pub source_uid: Option<String>,
    /// Creation timestamp.
    pub created: Option<Timestamp>,
    /// Whether the object has a deletion timestamp.
    pub deleting: bool,
    /// Whether the object was created suspended and never started: no container has run.
    pub held: bool,
    /// When the workflow's container started.
    pub began: Option<Timestamp>,
    /// Whether and how the execution has ended.
    pub progress: Progress,
}

impl Execution {
    /// Whether the execution has not ended.
    pub fn is_active(&self) -> bool {
        matches!(self.progress, Progress::Active { .. })
    }
}

/// Whether and how an execution has ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Not ended.
    Active {
        /// Why no container starts, unless the cause usually passes within seconds; or the
        /// disruption that removes the pod.
        waiting: Option<Waiting>,
    },
    /// Ended with success.
    Succeeded {
        /// When the execution ended, by the object's own status.
        at: Option<Timestamp>,
    },
    /// Ended with a failure.
    Failed {
        /// When the execution ended, by the object's own status.
        at: Option<Timestamp>,
        /// What the object and its pod report about the failure.
        facts: Facts,
    },
}

/// Why an execution does not start, or loses its pod. The engine's reader assigns the cause; its
/// name is stored in `executionStatus.reason`, so that it is known after a restart.
#[derive(Clone, Copy, Debug, EnumString, Eq, IntoStaticStr, PartialEq)]
#[cfg_attr(test, derive(strum::EnumIter))]
pub enum Cause {
    /// The image cannot be pulled.
    ImageNotPulled,
    /// The container cannot be created or started with its configuration.
    ContainerConfigInvalid,
    /// A volume cannot be mounted.
    VolumeNotMounted,
    /// No node has room for the pod.
    Unschedulable,
    /// The pod would exceed a quota of the namespace.
    QuotaExceeded,
    /// An admission plugin other than the quota refuses the pod.
    PodRefused,
    /// The kubelet refuses the pod that was bound to its node.
    NodeRejected,
    /// The cluster removes the pod: eviction, preemption, a lost node.
    Disrupted,
    /// No container started within the start timeout, for an unknown reason.
    NotStarted,
    /// None of the above.
    Other,
}

impl Cause {
    /// The value of `executionStatus.reason`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Why an execution does not start, or loses its pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// The class of the cause.
    pub cause: Cause,
    /// Reason and message of the pod or Event, as `ImagePullBackOff: Back-off pulling image "x"`.
    pub message: String,
}

/// What an ended object and its pod report about a failure.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Reason of the object's condition.
    pub reason: Option<String>,
    /// Message of the object's condition.
    pub message: Option<String>,
    /// Whether the object exceeded its deadline.
    pub over_deadline: bool,
    /// How the workflow's container ended, if the pod shows it.
    pub container: Option<ContainerEnd>,
    /// Why the execution did not start or lost its pod, as last seen.
    pub waiting: Option<Waiting>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ContainerEnd {
    /// Exit code.
    pub exit_code: i32,
    /// Whether the container was killed for exceeding its memory limit.
    pub oom_killed: bool,
    /// What the container wrote to its termination log.
    pub message: Option<String>,
    /// Whether the container ran at all.
    pub started: bool,
}

/// What is left of an execution.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Remains {
    /// Neither the object nor a pod that has not ended.
    Nothing,
    /// The object, which has ended, and no pod that has not.
    Ended,
    /// A pod that has not ended, or an object that can still create one.
    Alive,
}

/// Whether a pod has not ended: until then its containers may change the target.
pub fn is_alive(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether an object was created for the WorkflowExecution with this uid.
pub fn is_of(object: &impl ResourceExt, source: &Uid) -> bool {
    let uid = object.labels().get(WORKFLOW_EXECUTION_UID);
    uid.is_some_and(|uid| uid == source.as_str())
}

/// Result of a create.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// The execution exists: created now, or by an earlier attempt.
    Ours(Box<Execution>),
    /// Another object has the name.
    NameTaken,
    /// The API server refused the create.
    Refused {
        /// Class of the refusal.
        refusal: Refusal,
        /// Message of the API server.
        message: String,
    },
}

/// Why the API server refused a create.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// RBAC does not allow the controller to create the object.
    Rights,
    /// The object would exceed a quota of the execution namespace.
    Quota,
    /// PodSecurity, a policy or a webhook denied the object.
    Admission,
    /// The object is invalid.
    Invalid,
}

impl Refusal {
    /// The failure reason of a WorkflowExecution whose create was refused.
    pub fn reason(self) -> FailureReason {
        match self {
            Self::Rights | Self::Admission => FailureReason::Forbidden,
            Self::Quota => FailureReason::ResourceExhausted,
            Self::Invalid => FailureReason::ConfigurationError,
        }
    }
}
