//! Parameters: what every one must be, whatever the workflow, and what can be wrong with one.
//! [`declaration`] is what a workflow says of one, [`declared`] all of them, compiled.

pub mod declaration;
pub mod declared;
pub mod kind;

use std::collections::BTreeMap;
use std::fmt;

use kube::core::Rule;
use thiserror::Error;

use self::kind::ParameterType;
use crate::pattern::pattern;

pattern!(
    /// A parameter's name: it becomes an environment variable.
    PARAMETER_NAME, 128,
    "^[A-Za-z_][A-Za-z0-9_]{0,127}$",
    "letters, digits and _, not starting with a digit, at most 128 characters"
);

/// Most parameters in one WorkflowExecution.
pub const MAX_COUNT: usize = 64;
/// Most characters in one value.
pub const MAX_VALUE_LENGTH: usize = 8_192;
/// Most characters in all values together.
pub const MAX_TOTAL_LENGTH: usize = 65_536;

const RESERVED: &str =
    "TARGET_RESOURCE and names starting with KUBERNAUT_ are set by the controller";
const NO_NUL: &str = "a value must not contain the NUL character: no environment variable can";

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
    Rule::new("!self.exists(name, name == 'TARGET_RESOURCE' || name.startsWith('KUBERNAUT_'))")
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

/// A name that may become an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterName(String);

impl ParameterName {
    /// Reads what [`PARAMETER_NAME`] allows; `None` for anything else, and for names that are ours.
    pub fn parse(text: &str) -> Option<Self> {
        (PARAMETER_NAME.accepts(text) && !is_reserved(text)).then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ParameterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_reserved(name: &str) -> bool {
    name == "TARGET_RESOURCE" || name.starts_with("KUBERNAUT_")
}

/// What is wrong with one parameter of a WorkflowExecution.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ParameterViolation {
    /// Not usable as an environment variable.
    #[error("the name {name:?} must be {}", PARAMETER_NAME.allowed)]
    Name {
        /// As found.
        name: String,
    },
    /// One of ours.
    #[error("{RESERVED}: remove {name}")]
    Reserved {
        /// As found.
        name: String,
    },
    /// Value longer than [`MAX_VALUE_LENGTH`].
    #[error("the value has {length} characters: at most {MAX_VALUE_LENGTH} are allowed")]
    TooLong {
        /// Which parameter.
        name: String,
        /// In characters.
        length: usize,
    },
    /// A NUL in the value.
    #[error("{NO_NUL}")]
    Nul {
        /// Which parameter.
        name: String,
    },
    /// Tekton would substitute within the value.
    #[error(
        "the value {value:?} contains \"$(\": Tekton would substitute it, write the text another way"
    )]
    Substitution {
        /// Which parameter.
        name: String,
        /// As found.
        value: String,
    },
    /// The workflow has no such parameter.
    #[error(
        "the workflow declares no parameter {name}: {}",
        list("it declares", declared)
    )]
    Undeclared {
        /// As found.
        name: String,
        /// What the workflow declares.
        declared: Vec<String>,
    },
    /// Required, without a default, and not given.
    #[error("the workflow requires the parameter {name} (type {kind}): add it")]
    Required {
        /// Which parameter.
        name: String,
        /// Its declared type.
        kind: ParameterType,
    },
    /// Not readable as the declared type.
    #[error("the value {value:?} is no {kind}: {}", kind.example())]
    Type {
        /// Which parameter.
        name: String,
        /// As found.
        value: String,
        /// Its declared type.
        kind: ParameterType,
    },
    /// Not one of the declared values.
    #[error("the value {value:?} is not allowed: use one of {allowed}")]
    Enum {
        /// Which parameter.
        name: String,
        /// As found.
        value: String,
        /// JSON array.
        allowed: String,
    },
    /// Does not match the declared pattern.
    #[error("the value {value:?} does not match the pattern {pattern:?}")]
    Pattern {
        /// Which parameter.
        name: String,
        /// As found.
        value: String,
        /// As declared.
        pattern: String,
    },
    /// Below the declared minimum.
    #[error("the value {value} is too small: at least {minimum} is allowed")]
    Minimum {
        /// Which parameter.
        name: String,
        /// As found.
        value: String,
        /// As declared.
        minimum: String,
    },
    /// Above the declared maximum.
    #[error("the value {value} is too large: at most {maximum} is allowed")]
    Maximum {
        /// Which parameter.
        name: String,
        /// As found.
        value: String,
        /// As declared.
        maximum: String,
    },
    /// Given without another one that it depends on.
    #[error("the parameter {name} is of use only together with {needs}: add {needs}")]
    DependsOn {
        /// Which parameter.
        name: String,
        /// The one that is missing.
        needs: String,
    },
    /// Any other word of the JSON Schema.
    #[error("{message}")]
    Other {
        /// Which parameter.
        name: String,
        /// The schema library's words.
        message: String,
    },
}

impl ParameterViolation {
    /// Which parameter it is about.
    pub fn name(&self) -> &str {
        match self {
            Self::Name { name }
            | Self::Reserved { name }
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

fn list(intro: &str, names: &[String]) -> String {
    if names.is_empty() {
        format!("{intro} none")
    } else {
        format!("{intro} {}", names.join(", "))
    }
}

/// Checks names and values without knowing the workflow.
pub fn check_names_and_sizes(given: &BTreeMap<String, String>) -> Vec<ParameterViolation> {
    let mut violations = Vec::new();
    for (name, value) in given {
        let name = name.clone();
        if !PARAMETER_NAME.accepts(&name) {
            violations.push(ParameterViolation::Name { name: name.clone() });
        } else if is_reserved(&name) {
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

#[cfg(test)]
mod tests;
