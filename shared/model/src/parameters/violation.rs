//! Rules for parameters that do not depend on the workflow, and the violations of all rules.

use std::collections::BTreeMap;

use kube::core::Rule;
use thiserror::Error;

use super::kind::ParameterType;
use crate::engine::Engine;
use crate::pattern::pattern;
use crate::text::shortened;

pattern!(
    /// Name of a parameter, which becomes the name of an environment variable.
    PARAMETER_NAME, 128,
    "^[A-Za-z_][A-Za-z0-9_]{0,127}$",
    "letters, digits and _, not starting with a digit, at most 128 characters"
);

/// Maximum number of parameters in a WorkflowExecution.
pub const MAX_COUNT: usize = 64;
/// Maximum length of a value in characters.
pub const MAX_VALUE_LENGTH: usize = 8_192;
/// Maximum length of all values together in characters.
pub const MAX_TOTAL_LENGTH: usize = 65_536;

pub(super) const RESERVED: &str = "TARGET_RESOURCE and names starting with TARGET_RESOURCE_ or KUBERNAUT_ are reserved for the controller";
const NO_NUL: &str =
    "values must not contain the NUL character: remove it, environment variables cannot hold it";

pub(crate) fn cel_names() -> Rule {
    Rule::new(format!(
        "self.all(name, name.matches(r'{}'))",
        PARAMETER_NAME.expression
    ))
    .message(&*format!(
        "parameter names must be {}",
        PARAMETER_NAME.allowed
    ))
}

pub(crate) fn cel_reserved() -> Rule {
    let given = TARGET_PARAMETERS.map(|name| format!("'{name}'")).join(", ");
    Rule::new(format!(
        "!self.exists(name, name == 'TARGET_RESOURCE' || name.startsWith('KUBERNAUT_') || name.startsWith('TARGET_RESOURCE_') && !(name in [{given}]))"
    ))
    .message(RESERVED)
}

pub(crate) fn cel_total() -> Rule {
    Rule::new(format!(
        "self.map(name, self[name].size()).sum() <= {MAX_TOTAL_LENGTH}"
    ))
    .message(&*format!(
        "all values together must have at most {MAX_TOTAL_LENGTH} characters"
    ))
}

pub(crate) fn cel_no_nul() -> Rule {
    Rule::new(r"self.all(name, !self[name].contains('\u0000'))").message(NO_NUL)
}

pub(crate) fn no_substitution(engine: Engine) -> String {
    format!(
        "must not contain \"$(\" for executionEngine {engine}, because the engine would substitute it: write the text another way"
    )
}

/// Parameters that a workflow may declare, and whose values come from the target: a request can only
/// repeat them. `apiVersion`, kind, name and namespace.
pub const TARGET_PARAMETERS: [&str; 4] = [
    "TARGET_RESOURCE_API_VERSION",
    "TARGET_RESOURCE_KIND",
    "TARGET_RESOURCE_NAME",
    "TARGET_RESOURCE_NAMESPACE",
];

pub(super) fn is_reserved(name: &str) -> bool {
    let ours = ["TARGET_RESOURCE_", "KUBERNAUT_"];
    name == "TARGET_RESOURCE"
        || ours.iter().any(|it| name.starts_with(it)) && !TARGET_PARAMETERS.contains(&name)
}

/// A violation of the rules for one parameter of a WorkflowExecution.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ParameterViolation {
    /// The name cannot be that of an environment variable.
    #[error("invalid name {name:?}: must be {}", PARAMETER_NAME.allowed)]
    Name {
        /// Name of the parameter.
        name: String,
    },
    /// The name is reserved for the controller.
    #[error("{RESERVED}: remove {name}")]
    Reserved {
        /// Name of the parameter.
        name: String,
    },
    /// The value is not that of the target.
    #[error(
        "invalid value {value:?}: must be {target:?}, as in spec.targetResource: remove it, the controller sets it"
    )]
    OtherTarget {
        /// Name of the parameter.
        name: String,
        /// The rejected value.
        value: String,
        /// The target's value.
        target: String,
    },
    /// The workflow requires a value that the target does not have.
    #[error(
        "required value: the workflow requires a target with a namespace: use another target or workflow"
    )]
    TargetLacks {
        /// Name of the parameter.
        name: String,
    },
    /// The value is longer than [`MAX_VALUE_LENGTH`].
    #[error("too long: must have at most {MAX_VALUE_LENGTH} characters, has {length}")]
    TooLong {
        /// Name of the parameter.
        name: String,
        /// Length in characters.
        length: usize,
    },
    /// The value contains a NUL character.
    #[error("{NO_NUL}")]
    Nul {
        /// Name of the parameter.
        name: String,
    },
    /// The value contains a variable that the engine would substitute.
    #[error("invalid value {value:?}: {}", no_substitution(*engine))]
    Substitution {
        /// The requested engine.
        engine: Engine,
        /// Name of the parameter.
        name: String,
        /// The rejected value.
        value: String,
    },
    /// The workflow does not declare the parameter.
    #[error("unknown parameter: {}", advice_for_unknown(declared))]
    Undeclared {
        /// Name of the parameter.
        name: String,
        /// Names of the declared parameters.
        declared: Vec<String>,
    },
    /// The parameter is required, has no default and no value.
    #[error("required value: add this parameter (type {kind})")]
    Required {
        /// Name of the parameter.
        name: String,
        /// The declared type.
        kind: ParameterType,
    },
    /// The value is not of the declared type.
    #[error("invalid value {value:?}: must be of type {kind}: {}", kind.advice())]
    Type {
        /// Name of the parameter.
        name: String,
        /// The rejected value.
        value: String,
        /// The declared type.
        kind: ParameterType,
    },
    /// The value is not in the declared `enum`.
    #[error("unsupported value {value:?}: supported values are {allowed}")]
    Enum {
        /// Name of the parameter.
        name: String,
        /// The rejected value.
        value: String,
        /// The declared values, as a JSON array.
        allowed: String,
    },
    /// The value does not match the declared pattern.
    #[error("invalid value {value:?}: must match the pattern {pattern:?}")]
    Pattern {
        /// Name of the parameter.
        name: String,
        /// The rejected value.
        value: String,
        /// The declared pattern.
        pattern: String,
    },
    /// The value is below the declared minimum.
    #[error("invalid value {value}: must be at least {minimum}")]
    Minimum {
        /// Name of the parameter.
        name: String,
        /// The rejected value.
        value: String,
        /// The declared minimum.
        minimum: String,
    },
    /// The value is above the declared maximum.
    #[error("invalid value {value}: must be at most {maximum}")]
    Maximum {
        /// Name of the parameter.
        name: String,
        /// The rejected value.
        value: String,
        /// The declared maximum.
        maximum: String,
    },
    /// A parameter that this one depends on has no value.
    #[error("parameter {name} requires parameter {needs}: add {needs}")]
    DependsOn {
        /// Name of the parameter.
        name: String,
        /// The missing parameter.
        needs: String,
    },
    /// The value violates another keyword of the JSON Schema.
    #[error("{message}")]
    Other {
        /// Name of the parameter.
        name: String,
        /// Message of the JSON Schema library.
        message: String,
    },
}

impl ParameterViolation {
    /// What is wrong with the value given for one of [`TARGET_PARAMETERS`]; `target`: the target's own.
    pub(crate) fn of_target(name: &str, value: &str, target: Option<&str>) -> Option<Self> {
        let name = name.to_owned();
        match target {
            Some(target) if target == value => None,
            Some(target) => Some(Self::OtherTarget {
                name,
                value: value.to_owned(),
                target: target.to_owned(),
            }),
            None => Some(Self::TargetLacks { name }),
        }
    }

    /// Name of the parameter.
    pub fn name(&self) -> &str {
        match self {
            Self::Name { name }
            | Self::Reserved { name }
            | Self::OtherTarget { name, .. }
            | Self::TargetLacks { name }
            | Self::TooLong { name, .. }
            | Self::Nul { name }
            | Self::Substitution { name, .. }
            | Self::Undeclared { name, .. }
            | Self::Required { name, .. }
            | Self::Type { name, .. }
            | Self::Enum { name, .. }
            | Self::Pattern { name, .. }
            | Self::Minimum { name, .. }
            | Self::Maximum { name, .. }
            | Self::DependsOn { name, .. }
            | Self::Other { name, .. } => name,
        }
    }
}

fn advice_for_unknown(declared: &[String]) -> String {
    if declared.is_empty() {
        "remove it, the workflow declares no parameters".to_owned()
    } else {
        format!(
            "remove it, or use a parameter that the workflow declares: {}",
            declared.join(", ")
        )
    }
}

/// Checks the rules for names and values that do not depend on the workflow.
pub fn check_names_and_sizes(given: &BTreeMap<String, String>) -> Vec<ParameterViolation> {
    let mut violations = Vec::new();
    for (name, value) in given {
        let (is_valid, is_reserved) = (PARAMETER_NAME.accepts(name), is_reserved(name));
        // A name can be as long as a request.
        let name = shortened(name);
        if !is_valid {
            violations.push(ParameterViolation::Name { name: name.clone() });
        } else if is_reserved {
            violations.push(ParameterViolation::Reserved { name: name.clone() });
        }
        let length = value.chars().count();
        if length > MAX_VALUE_LENGTH {
            violations.push(ParameterViolation::TooLong {
                name: name.clone(),
                length,
            });
        }
        if value.contains('\0') {
            violations.push(ParameterViolation::Nul { name });
        }
    }
    violations
}
