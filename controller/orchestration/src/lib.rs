//! The reconcilers that connect wfe to Kubernaut: the orchestration takes a RemediationRequest whose
//! AIAnalysis is complete to a WorkflowExecution, and tells the request what became of it; the
//! analysis takes an AIAnalysis to HolmesGPT-API. Both are off unless they are switched on.
//!
//! Pure: [`selection`], [`outcome`] and [`decide`] for requests, [`answer`], [`verdict`] and [`investigation`] for
//! analyses. [`requests`] and [`analyses`] carry their steps out.

pub mod analyses;
pub mod answer;
pub mod decide;
pub mod investigation;
pub mod outcome;
pub mod requests;
pub mod scope;
pub mod selection;
pub mod verdict;
