//! Engine-neutral view of a Job or PipelineRun: its progress, and what is left of it after its end.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use strum::{EnumString, IntoStaticStr};
use wfe_model::workflow_execution::{ExecutionRef, FailureReason, WorkflowExecution};

use crate::names::{SOURCE_NAMESPACE, Uid, WORKFLOW_EXECUTION, WORKFLOW_EXECUTION_UID};
use crate::seen::Pod;

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

/// An object on a target that has not ended: a Job, PipelineRun, TaskRun or pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alive {
    /// The WorkflowExecution that its labels name.
    pub source: Source,
    /// Kind, namespace and name, as `Job kubernaut-workflows/restart-1`.
    pub object: String,
    /// Timeout of a Job or PipelineRun, where it was read.
    pub timeout: Option<Duration>,
}

impl Alive {
    /// Reads the labels of `object`; `None` if they name no WorkflowExecution.
    pub fn read(kind: &str, object: &impl ResourceExt) -> Option<Self> {
        let source = Source::read(object)?;
        let namespace = object.namespace().unwrap_or_default();
        Some(Self {
            source,
            object: format!("{kind} {namespace}/{}", object.name_any()),
            timeout: None,
        })
    }
}

/// Engine-neutral view of a Job or PipelineRun.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the facts are independent of each other"
)]
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// Reference to the object.
    pub reference: ExecutionRef,
    /// Uid of the WorkflowExecution, from the object's label.
    pub source_uid: Option<String>,
    /// Creation timestamp.
    pub created: Option<Timestamp>,
    /// Whether the object was told to end: it has a deletion timestamp, or was cancelled.
    pub ending: bool,
    /// When the object was deleted, while a finalizer keeps it.
    pub deleted_at: Option<Timestamp>,
    /// Whether the object was created suspended and never started: no container has run.
    pub held: bool,
    /// A queueing system (Kueue) decides when the execution starts.
    pub queued: bool,
    /// When the execution last ceased to be suspended.
    pub resumed: Option<Timestamp>,
    /// When the workflow's container started.
    pub began: Option<Timestamp>,
    /// Timeout of the Job or PipelineRun.
    pub timeout: Option<Duration>,
    /// Image or bundle with the digest that runs.
    pub image: Option<String>,
    /// How many of its tasks have ended.
    pub tasks: Tasks,
    /// Whether the end of the object proves that its pods have ended.
    pub ends_with_pods: bool,
    /// Whether and how the execution has ended.
    pub progress: Progress,
}

/// How many tasks of an execution have ended. A Job is one task.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tasks {
    /// Tasks that have ended.
    pub completed: i32,
    /// All tasks.
    pub total: i32,
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
        /// What the workflow reports of its result.
        summary: Option<String>,
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
    /// The execution exceeded its timeout, and its pods are still ending.
    Stopping,
    /// The object's definition is invalid for its engine.
    DefinitionInvalid,
    /// Another client, as a queueing system, has suspended the execution.
    Suspended,
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
    /// Whether another client cancelled the execution.
    pub cancelled: bool,
    /// Whether the pod does not exist although it had not ended: another client deleted it.
    pub pod_gone: bool,
    /// The task that failed.
    pub task: Option<FailedTask>,
    /// How the workflow's container ended, if the pod shows it.
    pub container: Option<ContainerEnd>,
    /// Why the execution did not start or lost its pod, as last seen.
    pub waiting: Option<Waiting>,
}

/// The task of a pipeline that failed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FailedTask {
    /// Name of the task in the pipeline.
    pub name: String,
    /// Position among the pipeline's tasks.
    pub index: Option<i32>,
    /// The failed step.
    pub step: Option<String>,
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

impl Remains {
    /// What is left of an execution without a live pod. The uid in `stored` identifies the object if
    /// a user has removed its labels.
    pub fn of(execution: Option<&Execution>, source: &Uid, stored: Option<&ExecutionRef>) -> Self {
        let execution = execution.filter(|it| {
            it.source_uid.as_deref() == Some(source.as_str())
                || stored.is_some_and(|stored| stored.uid == it.reference.uid)
        });
        match execution {
            None => Self::Nothing,
            Some(execution) if execution.is_active() => Self::Alive,
            Some(_) => Self::Ended,
        }
    }
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

/// Uid of the object of `kind` that controls `object`.
pub fn controller_of<'a>(object: &'a impl ResourceExt, kind: &str) -> Option<&'a str> {
    let mut owners = object.owner_references().iter();
    let controller = owners.find(|it| it.controller == Some(true) && it.kind == kind)?;
    Some(&controller.uid)
}

/// What makes the pods of an engine.
#[derive(Clone, Copy, Debug)]
pub struct PodMaker {
    /// Kind of the controller of a pod.
    pub kind: &'static str,
    /// Label that it gives its pods. A pod keeps the label when it loses its controller, as after
    /// `kubectl delete --cascade=orphan`.
    pub label: &'static str,
}

impl PodMaker {
    /// Whether `pod` is a pod of this kind of controller, or was one. Other pods with our labels were made
    /// by hand.
    pub fn made(self, pod: &impl ResourceExt) -> bool {
        controller_of(pod, self.kind).is_some() || pod.labels().contains_key(self.label)
    }
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
    /// The bundle cannot be read.
    Bundle,
    /// The pipeline does not declare a parameter of the workflow.
    Parameters,
    /// The pipeline does not declare the workspace of a dependency.
    Workspaces,
}

impl Refusal {
    /// The failure reason of a WorkflowExecution whose create was refused.
    pub fn reason(self) -> FailureReason {
        match self {
            Self::Rights | Self::Admission => FailureReason::Forbidden,
            Self::Quota => FailureReason::ResourceExhausted,
            Self::Invalid | Self::Parameters | Self::Workspaces => {
                FailureReason::ConfigurationError
            }
            Self::Bundle => FailureReason::ImagePullBackOff,
        }
    }
}
