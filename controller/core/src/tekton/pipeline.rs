//! Compares the pipeline in a bundle with what the catalog declares, before it runs: Tekton ignores
//! params and workspaces that a pipeline does not declare, so a workflow would run without them.

use itertools::Itertools;
use serde::Deserialize;

use super::build::workspaces;
use super::objects::{Named, PipelineSpec, ResolutionRequest, succeeded};
use crate::execution::Refusal;
use crate::plan::Plan;

/// A pipeline as a bundle has it.
#[derive(Debug, Deserialize)]
struct Pipeline {
    spec: PipelineSpec,
}

/// Answer of a resolver.
pub enum Resolved<'a> {
    /// The request is not answered yet.
    Not,
    /// The resolver failed, for this reason.
    Failed(&'a str),
    /// The pipeline, in base64.
    Data(&'a str),
}

/// The answer to a request.
pub fn answer(request: &ResolutionRequest) -> Resolved<'_> {
    let Some(status) = &request.status else {
        return Resolved::Not;
    };
    let succeeded = succeeded(&status.conditions);
    match succeeded.map(|it| it.status.as_str()) {
        Some("True") => Resolved::Data(status.data.as_deref().unwrap_or_default()),
        Some("False") => {
            let message = succeeded.and_then(|it| it.message.as_deref());
            Resolved::Failed(message.unwrap_or("without a message"))
        }
        _ => Resolved::Not,
    }
}

/// Why the pipeline, read from this JSON or YAML text, must not run with the plan.
pub fn misfit(plan: &Plan, pipeline: &[u8]) -> Option<(Refusal, String)> {
    let pipeline: Pipeline = match serde_saphyr::from_slice(pipeline) {
        Ok(pipeline) => pipeline,
        Err(error) => {
            let message = format!("the bundle has no valid pipeline: {error}");
            return Some((Refusal::Bundle, message));
        }
    };
    let missing = |declared: &[Named], needed: Vec<String>| {
        let missing = needed.into_iter();
        let mut missing = missing.filter(|name| !declared.iter().any(|it| it.name == *name));
        missing.join(", ")
    };
    let workspaces = workspaces(plan).into_iter().map(|it| it.name).collect();
    let workspaces = missing(&pipeline.spec.workspaces, workspaces);
    if !workspaces.is_empty() {
        let message = format!(
            "the pipeline does not declare the workspaces of its dependencies: declare {workspaces}, or remove the dependencies from the catalog entry"
        );
        return Some((Refusal::Workspaces, message));
    }
    let parameters = plan.valid.parameters.keys().cloned().collect();
    let parameters = missing(&pipeline.spec.params, parameters);
    if !parameters.is_empty() {
        let message = format!(
            "the pipeline does not declare the params of its catalog entry: declare {parameters}, or remove the parameters from the catalog entry"
        );
        return Some((Refusal::Parameters, message));
    }
    None
}
