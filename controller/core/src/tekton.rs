//! Engine `tekton`: runs a workflow as a Tekton PipelineRun, from the pipeline in a bundle.

pub mod build;
pub mod objects;
pub mod pipeline;
pub mod prune;
pub mod read;

#[cfg(test)]
mod tests;
