//! What an investigation answers. A language model writes it: every part of it is a claim.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use wfe_model::remediation::{AIAnalysis, ResourceIdentifier, RootCauseAnalysis, SelectedWorkflow};
use wfe_model::rules;
use wfe_model::text::{cut, shortened};
use wfe_model::workflow::Workflow;
use wfe_model::workflow_execution::limit;

use crate::selection::spec;
use crate::verdict::AnalysisReason;

/// Least confidence with which a workflow is selected.
const MIN_CONFIDENCE: f64 = 0.7;
/// Severities of a cause that Kubernaut knows, beside `unknown`.
const SEVERITIES: [&str; 4] = ["critical", "high", "medium", "low"];

/// Why an answer selects no workflow: a reason and a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Unusable {
    /// The reason.
    pub reason: AnalysisReason,
    /// The sentence.
    pub message: String,
}

fn unusable(reason: AnalysisReason, message: impl Into<String>) -> Unusable {
    let message = message.into();
    Unusable { reason, message }
}

/// An answer that selects a workflow with enough confidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The selection, as claimed.
    pub claim: SelectedWorkflow,
    /// The cause of the signal.
    pub cause: RootCauseAnalysis,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    needs_human_review: Option<bool>,
    #[serde(default)]
    human_review_reason: Option<String>,
    #[serde(default)]
    selected_workflow: Option<Claim>,
    #[serde(default)]
    root_cause_analysis: Option<Cause>,
}

#[derive(Deserialize)]
struct Claim {
    workflow_id: String,
    #[serde(default)]
    action_type: Option<String>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    execution_bundle: Option<String>,
    #[serde(default)]
    execution_bundle_digest: Option<String>,
    #[serde(default)]
    confidence: Option<f64>,
    #[serde(default)]
    rationale: Option<String>,
    #[serde(default)]
    execution_engine: Option<String>,
    #[serde(default)]
    parameters: Option<BTreeMap<String, Value>>,
}

#[derive(Default, Deserialize)]
struct Cause {
    #[serde(default)]
    summary: Option<String>,
    #[serde(default)]
    severity: Option<String>,
    #[serde(default)]
    signal_name: Option<String>,
    #[serde(default, rename = "affectedResource")]
    affected_resource: Option<ResourceIdentifier>,
}

impl Answer {
    /// Reads an answer.
    pub fn read(answer: &Value, analysis: &AIAnalysis) -> Result<Self, Unusable> {
        let document = Document::deserialize(answer);
        let document = document.map_err(|error| {
            let message = format!("HolmesGPT-API's answer cannot be read: {error}");
            unusable(AnalysisReason::InvalidAnswer, message)
        })?;
        if document.needs_human_review == Some(true) {
            let reason = document.human_review_reason.unwrap_or_default();
            let reason = shortened(&reason);
            let message = match reason.as_str() {
                "" => "the analysis asks for a review by a person".to_owned(),
                reason => format!("the analysis asks for a review by a person: {reason}"),
            };
            return Err(unusable(AnalysisReason::HumanReviewRequired, message));
        }
        let Some(claim) = document.selected_workflow else {
            let message = "the analysis has selected no workflow";
            return Err(unusable(AnalysisReason::NoWorkflowSelected, message));
        };
        let confidence = claim.confidence;
        if !confidence.is_some_and(|it| (MIN_CONFIDENCE..=1.0).contains(&it)) {
            let found = confidence.map_or("missing".to_owned(), |it| it.to_string());
            let message = format!(
                "selected_workflow.confidence: {found}: must be from {MIN_CONFIDENCE} to 1 to run a workflow without a person"
            );
            return Err(unusable(AnalysisReason::LowConfidence, message));
        }
        let parameters = claim.parameters.unwrap_or_default().into_iter();
        let parameters = parameters.filter_map(|(name, value)| match value {
            Value::Null => None,
            Value::String(text) => Some((name, text)),
            other => Some((name, other.to_string())),
        });
        let context = &analysis.spec.analysis_request.signal_context;
        let cause = document.root_cause_analysis.unwrap_or_default();
        let severity = cause
            .severity
            .filter(|it| SEVERITIES.contains(&it.as_str()));
        Ok(Self {
            claim: SelectedWorkflow {
                workflow_id: claim.workflow_id,
                action_type: claim.action_type.unwrap_or_default(),
                version: claim.version.unwrap_or_default(),
                execution_bundle: claim.execution_bundle.unwrap_or_default(),
                execution_bundle_digest: claim.execution_bundle_digest.unwrap_or_default(),
                confidence,
                parameters: parameters.collect(),
                rationale: cut(&claim.rationale.unwrap_or_default(), limit::RATIONALE),
                execution_engine: claim.execution_engine.unwrap_or_default(),
                ..SelectedWorkflow::default()
            },
            cause: RootCauseAnalysis {
                summary: cause.summary.unwrap_or_default(),
                severity: severity.unwrap_or_else(|| "unknown".to_owned()),
                signal_type: cause
                    .signal_name
                    .unwrap_or_else(|| context.signal_name.clone()),
                remediation_target: cause.affected_resource.clone(),
                affected_resource: cause.affected_resource,
            },
        })
    }

    /// The selection with the engine of the catalog, and a warning for each claim that was corrected.
    /// `target`: the resource to remediate.
    pub fn checked(
        &self,
        entry: &Arc<Workflow>,
        target: &ResourceIdentifier,
    ) -> Result<(SelectedWorkflow, Vec<String>), Unusable> {
        let mut selected = self.claim.clone();
        let mut warnings = Vec::new();
        let engine = entry.engine.as_str();
        if selected.execution_engine != engine {
            let claimed = match selected.execution_engine.as_str() {
                "" => "the analysis named no engine".to_owned(),
                other => format!("the analysis named engine {:?}", shortened(other)),
            };
            let workflow_id = &entry.workflow_id;
            warnings.push(format!(
                "{claimed}: workflow {workflow_id:?} has engine \"{engine}\" in the catalog, which is used"
            ));
            engine.clone_into(&mut selected.execution_engine);
        }
        let requested = spec(&selected, target, entry);
        let violations = rules::validate(&requested, rules::check(&requested), entry).err();
        if let Some(violations) = violations {
            let all: Vec<_> = violations.iter().map(rules::Violation::sentence).collect();
            let message = format!("the selected workflow cannot be run so: {}", all.join("; "));
            return Err(unusable(AnalysisReason::SelectionInvalid, message));
        }
        selected.execution_bundle = entry.bundle.to_string();
        selected.execution_bundle_digest = entry.bundle.digest().to_string();
        Ok((selected, warnings))
    }
}
