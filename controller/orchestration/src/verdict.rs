//! The reasons why an analysis fails.

use strum::AsRefStr;

/// Why an analysis has failed or is delayed. Leads `status.message`: `status.reason` is a closed set of
/// Kubernaut that says less.
#[derive(AsRefStr, Clone, Copy, Debug, Eq, PartialEq)]
pub enum AnalysisReason {
    /// The spec lacks what is to be analysed.
    InvalidSpec,
    /// The resource is in another namespace than the AIAnalysis may name.
    TargetNotAllowed,
    /// HolmesGPT-API does not respond.
    HolmesUnavailable,
    /// HolmesGPT-API has refused the incident.
    AnalysisRefused,
    /// HolmesGPT-API has lost too many sessions.
    SessionLost,
    /// The investigation has failed.
    InvestigationFailed,
    /// The investigation took too long.
    InvestigationTimeout,
    /// The answer cannot be read.
    InvalidAnswer,
    /// The analysis asks for a person.
    HumanReviewRequired,
    /// The analysis has selected no workflow.
    NoWorkflowSelected,
    /// The analysis is not sure enough.
    LowConfidence,
    /// The catalog does not have the workflow, or cannot run it.
    WorkflowNotUsable,
    /// The workflow cannot be run so.
    SelectionInvalid,
    /// The catalog cannot be asked.
    CatalogUnavailable,
}

impl AnalysisReason {
    /// The word of Kubernaut, one of its closed set.
    pub fn category(self) -> &'static str {
        match self {
            Self::HolmesUnavailable | Self::CatalogUnavailable => "TransientError",
            Self::AnalysisRefused
            | Self::SessionLost
            | Self::InvestigationFailed
            | Self::InvestigationTimeout => "APIError",
            Self::NoWorkflowSelected => "NoWorkflowSelected",
            Self::InvalidSpec
            | Self::TargetNotAllowed
            | Self::InvalidAnswer
            | Self::HumanReviewRequired
            | Self::LowConfidence
            | Self::WorkflowNotUsable
            | Self::SelectionInvalid => "WorkflowResolutionFailed",
        }
    }
}
