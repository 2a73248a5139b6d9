//! Types and reasons of a WorkflowExecution's conditions: closed sets, part of the public API.

use strum::IntoStaticStr;
use wfe_model::workflow_execution::{FailureReason, SkipReason};

/// Type of a condition.
#[derive(Clone, Copy, Debug, Eq, IntoStaticStr, PartialEq)]
#[cfg_attr(test, derive(strum::EnumIter))]
pub enum ConditionType {
    /// The catalog has the workflow and the request matches it.
    WorkflowResolved,
    /// The Secrets and ConfigMaps that the workflow depends on exist and are not empty.
    DependenciesReady,
    /// The Job or PipelineRun exists.
    ExecutionCreated,
    /// The workflow's container has started.
    ExecutionRunning,
    /// The execution has ended.
    ExecutionComplete,
    /// The namespace is paused, or the target is busy or restricted by its history.
    Blocked,
    /// Every audit event up to the end was delivered.
    AuditRecorded,
    /// The audit event of a cleared block was delivered.
    ClearanceRecorded,
    /// The workflow has succeeded.
    Ready,
    /// The WorkflowExecution has ended without success and never will succeed. Present only then,
    /// as kstatus expects.
    Stalled,
}

impl ConditionType {
    /// The value of `conditions[].type`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Reason of a condition, grouped by the type it belongs to.
#[derive(Clone, Copy, Debug, Eq, IntoStaticStr, PartialEq)]
#[cfg_attr(test, derive(strum::EnumIter))]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Reason {
    // `WorkflowResolved`
    Resolved,
    WorkflowNotFound,
    /// The catalog entry is invalid.
    WorkflowInvalid,
    WorkflowNotActive,
    VersionMismatch,
    EngineMismatch,
    ImageMismatch,
    ParametersInvalid,
    TargetInvalid,
    SpecInvalid,
    CatalogUnavailable,
    DiscoveryUnavailable,
    // `DependenciesReady`; `Ready` also of `Ready`
    Ready,
    NoneDeclared,
    DependencyMissing,
    DependencyEmpty,
    WorkspaceNotDeclared,
    ReadFailed,
    // `ExecutionCreated`
    ExecutionCreated,
    ExecutionCreationFailed,
    QuotaExceeded,
    RBACDenied,
    UnsupportedEngine,
    // `ExecutionRunning`
    ExecutionStarted,
    Waiting,
    NotStarted,
    // `ExecutionComplete`
    ExecutionSucceeded,
    ExecutionFailed,
    TaskFailed,
    DeadlineExceeded,
    OOMKilled,
    ExecutionDeleted,
    Cancelled,
    // `Stalled`, together with those of `ExecutionComplete` and `Blocked`
    ImagePullBackOff,
    ConfigurationError,
    ResourceExhausted,
    Forbidden,
    ServiceAccountNotAllowed,
    Unknown,
    // `Blocked`
    ResourceBusy,
    PreviousExecutionFailed,
    ExhaustedRetries,
    BackoffActive,
    RecentlyRemediated,
    StartDeadlineExceeded,
    Paused,
    Clear,
    // `AuditRecorded`, `ClearanceRecorded`
    AuditSucceeded,
    AuditPending,
    AuditSinkUnavailable,
    AuditEventRejected,
    // `Ready`
    NotReady,
    InProgress,
}

impl Reason {
    /// The value of `conditions[].reason`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The reason of `Blocked` for a skip reason.
impl From<SkipReason> for Reason {
    fn from(reason: SkipReason) -> Self {
        match reason {
            SkipReason::ResourceBusy => Self::ResourceBusy,
            SkipReason::PreviousExecutionFailed => Self::PreviousExecutionFailed,
            SkipReason::ExhaustedRetries => Self::ExhaustedRetries,
            SkipReason::BackoffActive => Self::BackoffActive,
            SkipReason::RecentlyRemediated => Self::RecentlyRemediated,
            SkipReason::StartDeadlineExceeded => Self::StartDeadlineExceeded,
        }
    }
}

/// The reason of `ExecutionComplete` for a failure reason.
impl From<FailureReason> for Reason {
    fn from(reason: FailureReason) -> Self {
        match reason {
            FailureReason::TaskFailed => Self::TaskFailed,
            FailureReason::DeadlineExceeded => Self::DeadlineExceeded,
            FailureReason::OOMKilled => Self::OOMKilled,
            FailureReason::ExecutionDeleted => Self::ExecutionDeleted,
            FailureReason::Cancelled => Self::Cancelled,
            _ => Self::ExecutionFailed,
        }
    }
}

impl Reason {
    /// The reason of `Stalled` for a failure reason.
    pub fn stalled(reason: FailureReason) -> Self {
        match reason {
            FailureReason::OOMKilled => Self::OOMKilled,
            FailureReason::DeadlineExceeded => Self::DeadlineExceeded,
            FailureReason::Forbidden => Self::Forbidden,
            FailureReason::ResourceExhausted => Self::ResourceExhausted,
            FailureReason::ConfigurationError => Self::ConfigurationError,
            FailureReason::ImagePullBackOff => Self::ImagePullBackOff,
            FailureReason::TaskFailed => Self::TaskFailed,
            FailureReason::UnsupportedEngine => Self::UnsupportedEngine,
            FailureReason::ServiceAccountNotAllowed => Self::ServiceAccountNotAllowed,
            FailureReason::ExecutionDeleted => Self::ExecutionDeleted,
            FailureReason::Cancelled => Self::Cancelled,
            FailureReason::Unknown => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    /// Public API: clients match on these names.
    #[test]
    fn condition_types_and_reasons_are_the_published_ones() {
        let types: Vec<_> = ConditionType::iter().map(ConditionType::as_str).collect();
        let published = "WorkflowResolved DependenciesReady ExecutionCreated ExecutionRunning ExecutionComplete Blocked AuditRecorded ClearanceRecorded Ready Stalled";
        assert_eq!(types.join(" "), published);
        let reasons: Vec<_> = Reason::iter().map(Reason::as_str).collect();
        let published = "\
            Resolved WorkflowNotFound WorkflowInvalid WorkflowNotActive VersionMismatch EngineMismatch \
            ImageMismatch ParametersInvalid TargetInvalid SpecInvalid CatalogUnavailable \
            DiscoveryUnavailable Ready NoneDeclared DependencyMissing DependencyEmpty \
            WorkspaceNotDeclared ReadFailed ExecutionCreated ExecutionCreationFailed \
            QuotaExceeded RBACDenied UnsupportedEngine ExecutionStarted Waiting NotStarted \
            ExecutionSucceeded ExecutionFailed TaskFailed DeadlineExceeded OOMKilled \
            ExecutionDeleted Cancelled ImagePullBackOff ConfigurationError ResourceExhausted \
            Forbidden ServiceAccountNotAllowed Unknown ResourceBusy PreviousExecutionFailed \
            ExhaustedRetries BackoffActive RecentlyRemediated StartDeadlineExceeded Paused Clear \
            AuditSucceeded AuditPending AuditSinkUnavailable AuditEventRejected NotReady \
            InProgress";
        assert_eq!(reasons.join(" "), published);
    }
}
