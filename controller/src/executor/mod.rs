//! How each engine runs a workflow.
//!
//! A backend is a pure builder (a validated plan becomes an object), a pure reader (the object and
//! its pods become an [`Execution`]) and thin calls. It is chosen in one place, [`Executors::of`].

pub mod job;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use wfe_model::rules::ValidatedSpec;
use wfe_model::workflow::Engine;
use wfe_model::workflow_execution::{ExecutionRef, FailureReason, WorkflowExecution};

use self::job::JobExecutor;
use crate::names::{SOURCE_NAMESPACE, WORKFLOW_EXECUTION, WORKFLOW_EXECUTION_UID};
use crate::watches::Caches;

/// All that a backend needs to make an execution.
#[derive(Clone, Debug)]
pub struct Plan {
    /// [`crate::names::execution_name`].
    pub name: String,
    /// The execution namespace.
    pub namespace: String,
    /// The WorkflowExecution: namespace, name, uid.
    pub source: Source,
    /// [`crate::names::target_hash`].
    pub target_hash: String,
    /// What may run.
    pub valid: ValidatedSpec,
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
    /// Whether it was created and not started yet: nothing of it runs until [`Executor::start`].
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

/// Why a pod does not start, or is taken away.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// The pod's word: `ImagePullBackOff`, `Unschedulable`.
    pub reason: String,
    /// The pod's sentence.
    pub message: String,
}

/// What an ended object and its pod say of a failure.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// The object's reason.
    pub reason: Option<String>,
    /// The object's sentence.
    pub message: Option<String>,
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
    /// The kubelet's reason: `OOMKilled`, `Error`, `StartError`.
    pub reason: Option<String>,
    /// What the container wrote to its termination log.
    pub message: Option<String>,
    /// Whether it ever ran (a container that could not be started says 1970).
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

/// Whether a Job or pod was made for the WorkflowExecution of this uid.
pub fn is_of(object: &impl ResourceExt, source_uid: &str) -> bool {
    let uid = object.labels().get(WORKFLOW_EXECUTION_UID);
    uid.is_some_and(|uid| uid == source_uid)
}

/// Whom a Job or pod was made for, as far as its labels say: a long name is cut there.
pub fn made_for(object: &impl ResourceExt) -> Source {
    let label = |key: &str| object.labels().get(key).cloned().unwrap_or_default();
    Source {
        namespace: label(SOURCE_NAMESPACE),
        name: label(WORKFLOW_EXECUTION),
        uid: label(WORKFLOW_EXECUTION_UID),
    }
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

/// A request that got no definite answer: to be repeated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{act}: {cause}")]
pub struct Unanswered {
    /// What was tried.
    pub act: &'static str,
    /// Why there is no answer.
    pub cause: String,
}

impl Unanswered {
    /// Of a request to the API server.
    pub fn of(act: &'static str) -> impl Fn(kube::Error) -> Self {
        move |error| Self {
            act,
            cause: error.to_string(),
        }
    }
}

/// One engine's backend.
pub trait Executor: Send + Sync {
    /// Creates the execution, suspended: nothing runs until [`start`](Self::start). May be repeated.
    /// A create that is committed late, when nothing waits for it any more, is harmless.
    fn create<'a>(&'a self, plan: &'a Plan) -> BoxFuture<'a, Result<Created, Unanswered>>;
    /// Starts exactly this object; may be repeated. An object that is gone is not started.
    fn start<'a>(&'a self, reference: &'a ExecutionRef) -> BoxFuture<'a, Result<(), Unanswered>>;
    /// The execution by name, as cached.
    fn status(&self, caches: &Caches, name: &str, source_uid: &str) -> Option<Execution>;
    /// The execution by name, from the API server itself.
    fn read<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Execution>, Unanswered>>;
    /// What the Events of an execution that does not start say about it.
    fn complaint<'a>(
        &'a self,
        reference: &'a ExecutionRef,
        source_uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<Waiting>, Unanswered>>;
    /// What is left of the execution of a WorkflowExecution, by the API server's own word.
    fn remains<'a>(
        &'a self,
        name: &'a str,
        source_uid: &'a str,
        stored: Option<&'a ExecutionRef>,
    ) -> BoxFuture<'a, Result<Remains, Unanswered>>;
    /// Deletes exactly this object, and its pods after it; one that is gone is fine.
    fn delete<'a>(&'a self, reference: &'a ExecutionRef) -> BoxFuture<'a, Result<(), Unanswered>>;
}

/// The backends that this cluster can have.
#[derive(Clone)]
pub struct Executors {
    job: Arc<JobExecutor>,
}

impl Executors {
    /// Backends for one execution namespace.
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            job: Arc::new(JobExecutor::new(client, namespace)),
        }
    }

    /// The backend of an engine; none where the engine is not installed.
    pub fn of(&self, engine: Engine) -> Option<&dyn Executor> {
        match engine {
            Engine::Job => Some(self.job.as_ref()),
            Engine::Tekton => None,
        }
    }
}
