//! Engine-neutral view of a Job or PipelineRun: what it is made from, where it stands, what is left
//! of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use strum::{EnumString, IntoStaticStr};
use wfe_model::rules::ValidatedSpec;
use wfe_model::workflow_execution::{ExecutionRef, FailureReason, WorkflowExecution};

use crate::names::{SOURCE_NAMESPACE, TargetHash, Uid, WORKFLOW_EXECUTION, WORKFLOW_EXECUTION_UID};

/// All that a backend needs to make an execution.
#[derive(Clone, Debug)]
pub struct Plan {
    /// [`crate::names::execution_name`].
    pub name: String,
    /// The execution namespace.
    pub namespace: String,
    /// The WorkflowExecution: namespace, name, uid.
    pub source: Source,
    /// Of the target.
    pub target_hash: TargetHash,
    /// What may run.
    pub valid: Arc<ValidatedSpec>,
    /// How long it may take.
    pub timeout: Duration,
    /// Who it runs as.
    pub service_account: String,
}

/// Whose execution it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// Namespace of the WorkflowExecution.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Source {
    /// The source that `wfe` is.
    pub fn of(wfe: &WorkflowExecution) -> Self {
        let metadata = &wfe.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// Whom a Job, PipelineRun or pod was made for: the annotation has the full name; a label is cut
    /// to 63 characters.
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

/// A Job or PipelineRun, as far as anybody needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// Which object.
    pub reference: ExecutionRef,
    /// Uid of the WorkflowExecution it says it is for.
    pub source_uid: Option<String>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether somebody has deleted it already.
    pub deleting: bool,
    /// Whether it was created and not started yet: nothing of it runs yet.
    pub held: bool,
    /// Since when a container of the workflow runs or has run.
    pub began: Option<Timestamp>,
    /// Where it stands.
    pub progress: Progress,
}

impl Execution {
    /// Whether it has not ended.
    pub fn is_active(&self) -> bool {
        matches!(self.progress, Progress::Active { .. })
    }
}

/// Where an execution stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Not ended.
    Active {
        /// What keeps it from getting off the ground, where that is not just a matter of seconds, or
        /// takes its pod away.
        waiting: Option<Waiting>,
    },
    /// Ended well.
    Succeeded {
        /// By its own account.
        at: Option<Timestamp>,
    },
    /// Ended otherwise.
    Failed {
        /// By its own account.
        at: Option<Timestamp>,
        /// What is known of it.
        facts: Facts,
    },
}

/// Why an execution does not start, or is taken away. The engine's reader assigns it; its name is
/// stored in `executionStatus.reason`, so it is known after a restart.
#[derive(Clone, Copy, Debug, EnumString, Eq, IntoStaticStr, PartialEq)]
#[cfg_attr(test, derive(strum::EnumIter))]
pub enum Cause {
    /// The image cannot be pulled.
    ImageNotPulled,
    /// The container cannot be created or started as it is configured.
    ContainerConfigInvalid,
    /// A volume cannot be mounted.
    VolumeNotMounted,
    /// No node has room for the pod.
    Unschedulable,
    /// The quota of the namespace has no room for the pod.
    QuotaExceeded,
    /// Another admission plugin refuses the pod.
    PodRefused,
    /// The node refuses the pod that was bound to it.
    NodeRejected,
    /// The cluster takes the pod away: eviction, preemption, a lost node.
    Disrupted,
    /// No container started within the start timeout, for a reason that is not known.
    NotStarted,
    /// None of the above.
    Other,
}

impl Cause {
    /// As in `executionStatus.reason`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What keeps an execution from starting, or takes it away.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// The class.
    pub cause: Cause,
    /// Word and sentence of the pod or Event, as `ImagePullBackOff: Back-off pulling image "x"`.
    pub message: String,
}

/// What an ended object and its pod say of a failure.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// The object's reason.
    pub reason: Option<String>,
    /// The object's sentence.
    pub message: Option<String>,
    /// Whether the object ended because it was over its deadline.
    pub over_deadline: bool,
    /// How the workflow's container ended, if it did.
    pub container: Option<ContainerEnd>,
    /// Why it did not start, or was taken away, as last seen.
    pub waiting: Option<Waiting>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ContainerEnd {
    /// Exit code.
    pub exit_code: i32,
    /// Whether it was killed because it used more memory than its limit.
    pub oom_killed: bool,
    /// What the container wrote to its termination log.
    pub message: Option<String>,
    /// Whether it ever ran.
    pub started: bool,
}

/// What is left of an execution.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Remains {
    /// Neither object nor live pod.
    Nothing,
    /// The object, which has ended; no live pod.
    Ended,
    /// A live pod, or an object that will make one.
    Alive,
}

/// Whether a pod may still do something: it holds its target until its containers have ended.
pub fn is_alive(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether an object was made for the WorkflowExecution of this uid.
pub fn is_of(object: &impl ResourceExt, source: &Uid) -> bool {
    let uid = object.labels().get(WORKFLOW_EXECUTION_UID);
    uid.is_some_and(|uid| uid == source.as_str())
}

/// What came of a create.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// It is there, and ours: made now, or by an earlier try.
    Ours(Box<Execution>),
    /// Something else has the name.
    NameTaken,
    /// The API server will not have it.
    Refused {
        /// What is in the way.
        refusal: Refusal,
        /// Its sentence.
        message: String,
    },
}

/// Why the API server does not make an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The controller lacks the right.
    Rights,
    /// The quota of the execution namespace is used up.
    Quota,
    /// PodSecurity, a policy or a webhook does not want it.
    Admission,
    /// It is no valid object.
    Invalid,
}

impl Refusal {
    /// The class of failure.
    pub fn reason(self) -> FailureReason {
        match self {
            Self::Rights | Self::Admission => FailureReason::Forbidden,
            Self::Quota => FailureReason::ResourceExhausted,
            Self::Invalid => FailureReason::ConfigurationError,
        }
    }
}
