//! What the controller does next for one WorkflowExecution: facts in, next step out.
//!
//! Pure: no client, no runtime, no clock, no logs. The manifest enforces it, so a decision cannot do
//! I/O by accident.
//!
//! [`observed`] is everything a decision may look at, [`decide`] says the next [`step`]. [`execution`]
//! is the engine-neutral view of a Job or PipelineRun, [`job`] what is special to Jobs. [`lock`],
//! [`history`] and [`failure`] have the rules, [`status`] changes a status, [`condition`] names its conditions, [`audit`] derives events
//! from a stored one.

pub mod audit;
pub mod condition;
pub mod decide;
pub mod execution;
pub mod failure;
pub mod history;
pub mod job;
pub mod lock;
#[cfg(test)]
mod model;
pub mod names;
pub mod observed;
pub mod status;
pub mod step;
