//! Parameters of a WorkflowExecution: the rules that do not depend on the workflow, and the
//! violations. [`declaration`] is a parameter as a workflow declares it, [`declared`] compiles all
//! declarations of a workflow.

pub mod declaration;
pub mod declared;
pub mod kind;
mod violation;

pub use self::violation::{
    MAX_COUNT, MAX_TOTAL_LENGTH, MAX_VALUE_LENGTH, PARAMETER_NAME, ParameterViolation,
    TARGET_PARAMETERS, check_names_and_sizes,
};
pub(crate) use self::violation::{cel_names, cel_no_nul, cel_reserved, cel_total, no_substitution};

#[cfg(test)]
mod tests;
