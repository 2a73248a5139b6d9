//! What an investigation answers. A language model writes it: every part of it is a claim.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use wfe_model::engine::ReferenceField;
use wfe_model::remediation::{ResourceIdentifier, RootCauseAnalysis, SelectedWorkflow};
use wfe_model::rules;
use wfe_model::text::shortened;
use wfe_model::workflow::Workflow;

use crate::selection::spec;

/// Least confidence with which a workflow is selected.
const MIN_CONFIDENCE: f64 = 0.7;

/// Why an answer selects no workflow: a reason and a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Unusable {
    /// Reason, in `status.reason`.
    pub reason: &'static str,
    /// Sentence, in `status.message`.
    pub message: String,
}

fn unusable(reason: &'static str, message: impl Into<String>) -> Unusable {
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
    needs_human_review: bool,
    #[serde(default)]
    human_review_reason: Option<String>,
    #[serde(default)]
    selected_workflow: Option<Claim>,
    #[serde(default)]
    root_cause_analysis: Cause,
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
    #[serde(default, rename = "affectedResource")]
    affected_resource: Option<ResourceIdentifier>,
}

impl Answer {
    /// Reads an answer.
    pub fn read(answer: &Value) -> Result<Self, Unusable> {
        let document = Document::deserialize(answer);
        let document = document.map_err(|error| {
            let message = format!("HolmesGPT-API's answer cannot be read: {error}");
            unusable("InvalidAnswer", message)
        })?;
        if document.needs_human_review {
            let reason = document.human_review_reason.unwrap_or_default();
            let reason = shortened(&reason);
            let message = match reason.as_str() {
                "" => "the analysis asks for a review by a person".to_owned(),
                reason => format!("the analysis asks for a review by a person: {reason}"),
            };
            return Err(unusable("HumanReviewRequired", message));
        }
        let Some(claim) = document.selected_workflow else {
            let message = "the analysis has selected no workflow";
            return Err(unusable("NoWorkflowSelected", message));
        };
        let confidence = claim.confidence;
        if !confidence.is_some_and(|it| (MIN_CONFIDENCE..=1.0).contains(&it)) {
            let found = confidence.map_or("missing".to_owned(), |it| it.to_string());
            let message = format!(
                "selected_workflow.confidence: {found}: must be from {MIN_CONFIDENCE} to 1 to run a workflow without a person"
            );
            return Err(unusable("LowConfidence", message));
        }
        let parameters = claim.parameters.unwrap_or_default().into_iter();
        let parameters = parameters.map(|(name, value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        });
        Ok(Self {
            claim: SelectedWorkflow {
                workflow_id: claim.workflow_id,
                action_type: claim.action_type.unwrap_or_default(),
                version: claim.version.unwrap_or_default(),
                execution_bundle: claim.execution_bundle.unwrap_or_default(),
                execution_bundle_digest: claim.execution_bundle_digest.unwrap_or_default(),
                confidence,
                parameters: parameters.collect(),
                rationale: claim.rationale.unwrap_or_default(),
                execution_engine: claim.execution_engine.unwrap_or_default(),
                ..SelectedWorkflow::default()
            },
            cause: RootCauseAnalysis {
                summary: document.root_cause_analysis.summary.unwrap_or_default(),
                severity: document.root_cause_analysis.severity.unwrap_or_default(),
                affected_resource: document.root_cause_analysis.affected_resource,
                remediation_target: None,
            },
        })
    }

    /// The selection with the engine of the catalog, and a warning for each claim that was corrected.
    /// `signal`: the resource with the signal, the target unless the answer names another.
    pub fn checked(
        &self,
        entry: &Arc<Workflow>,
        signal: &ResourceIdentifier,
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
        let target = self.cause.affected_resource.as_ref().unwrap_or(signal);
        let requested = spec(&selected, target, entry);
        let violations = rules::validate(&requested, rules::check(&requested), entry).err();
        if let Some(violations) = violations {
            let all: Vec<_> = violations.iter().map(rules::Violation::sentence).collect();
            let message = format!("the selected workflow cannot be run so: {}", all.join("; "));
            return Err(unusable("SelectionInvalid", message));
        }
        let image = entry.bundle.to_string();
        match entry.engine.runs() {
            ReferenceField::ContainerImage => selected.container_image = image,
            ReferenceField::BundleRef => {
                let scheme = ReferenceField::BundleRef.scheme();
                selected.bundle_ref = format!("{scheme}{image}");
            }
        }
        Ok((selected, warnings))
    }
}
