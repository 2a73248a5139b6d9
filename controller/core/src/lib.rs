//! Decides the controller's next step for one WorkflowExecution, from facts that the caller
//! observed.
//!
//! This crate has no client, no runtime, no clock and no logs. Its manifest enforces that, so a
//! decision cannot do I/O by accident.
//!
//! [`observed`] is the input of a decision, [`decide`] makes it, [`step`] is its output.
//! [`execution`] is the engine-neutral view of a Job or PipelineRun, [`job`] reads and builds Jobs.
//! [`lock`], [`history`] and [`failure`] have the rules, [`status`] builds a status, [`condition`]
//! names its conditions, [`audit`] derives audit events from a stored status. [`certificates`] decides when the
//! webhook's certificate is renewed.

pub mod adoption;
pub mod audit;
pub mod certificates;
pub mod clearing;
pub mod condition;
pub mod decide;
pub mod election;
pub mod execution;
pub mod failure;
pub mod history;
pub mod job;
pub mod line;
pub mod lock;
#[cfg(test)]
mod model;
pub mod names;
pub mod observed;
pub mod plan;
pub mod pod;
pub mod seen;
pub mod status;
pub mod step;
pub mod tekton;
pub mod trace;
pub mod why;
