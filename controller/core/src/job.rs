//! Engine `job`: runs a workflow as one container in a Kubernetes Job.

pub mod build;
pub mod read;

#[cfg(test)]
mod tests;
