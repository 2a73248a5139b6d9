//! Parameters: what every one must be, and what a workflow declares of its own.
//!
//! Values arrive as text and are read as the declared type. A workflow's declarations are compiled
//! to one JSON Schema, offline and with linear-time patterns, and values are checked against it.

use std::collections::BTreeMap;
use std::fmt;

use jsonschema::PatternOptions;
use jsonschema::error::ValidationErrorKind;
use kube::core::Rule;
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};
use thiserror::Error;

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

/// The type a value is read as.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// Any text.
    String,
    /// A whole number of 64 bits.
    Integer,
    /// A finite number.
    Float,
    /// `true` or `false`.
    Boolean,
    /// A JSON array.
    Array,
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Boolean => "boolean",
            Self::Array => "array",
        })
    }
}

impl ParameterType {
    fn example(self) -> &'static str {
        match self {
            Self::String => "write any text",
            Self::Integer => "write a whole number, as \"3\"",
            Self::Float => "write a number, as \"0.5\"",
            Self::Boolean => "write \"true\" or \"false\"",
            Self::Array => "write a JSON array, as \"[\\\"a\\\", \\\"b\\\"]\"",
        }
    }

    fn json_type(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Float => "number",
            Self::Boolean => "boolean",
            Self::Array => "array",
        }
    }

    /// Reads `text` as this type, in JSON's spelling.
    fn read(self, text: &str) -> Option<Value> {
        if self == Self::String {
            return Some(Value::String(text.to_owned()));
        }
        // JSON allows white space around a value; an environment variable would keep it.
        if text.trim() != text {
            return None;
        }
        serde_json::from_str::<Value>(text)
            .ok()
            .filter(|value| match self {
                Self::String => true,
                Self::Integer => value.is_i64() || value.is_u64(),
                Self::Float => value.is_number(),
                Self::Boolean => value.is_boolean(),
                Self::Array => value.is_array(),
            })
    }
}

/// One parameter as a workflow declares it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParameterDeclaration {
    /// Its name.
    pub name: String,
    /// The type its value is read as.
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// Whether it must be given (a default gives it).
    #[serde(default)]
    pub required: bool,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// The values allowed.
    #[serde(default, rename = "enum")]
    pub allowed: Option<Vec<Value>>,
    /// Regular expression, unanchored, without look-around.
    #[serde(default)]
    pub pattern: Option<String>,
    /// Smallest number.
    #[serde(default)]
    pub minimum: Option<Number>,
    /// Largest number.
    #[serde(default)]
    pub maximum: Option<Number>,
    /// Used where no value is given.
    #[serde(default)]
    pub default: Option<Value>,
    /// Parameters that must be given with it.
    #[serde(default)]
    pub depends_on: Vec<String>,
}

/// What is wrong with a declaration.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DeclarationError {
    /// Not usable as an environment variable.
    #[error("name: {0:?} must be {allowed}", allowed = PARAMETER_NAME.allowed)]
    Name(String),
    /// One of ours.
    #[error("name: {RESERVED}, so {0:?} cannot be declared")]
    Reserved(String),
    /// Declared twice.
    #[error("name: {0:?} is declared twice")]
    Duplicate(String),
    /// A word that the type does not have.
    #[error("{word}: is for parameters of type {allowed}, not {kind}")]
    WrongType {
        /// The word of the declaration.
        word: &'static str,
        /// The types that have it.
        allowed: &'static str,
        /// The declared type.
        kind: ParameterType,
    },
    /// Not a regular expression of the linear kind.
    #[error(
        "pattern: {pattern:?} is no regular expression of the linear kind (no look-around, no back-references): {message}"
    )]
    Pattern {
        /// As declared.
        pattern: String,
        /// What the library says.
        message: String,
    },
    /// `minimum` over `maximum`.
    #[error("minimum: {minimum} is larger than maximum {maximum}")]
    Bounds {
        /// As declared.
        minimum: Number,
        /// As declared.
        maximum: Number,
    },
    /// Nothing allowed.
    #[error("enum: is empty: leave it out or list the allowed values")]
    EmptyEnum,
    /// An enum value of another type.
    #[error("enum: {value} is no {kind}")]
    EnumValue {
        /// As declared.
        value: Value,
        /// The declared type.
        kind: ParameterType,
    },
    /// A default that its own declaration refuses.
    #[error("default: {0}")]
    Default(ParameterViolation),
    /// Depends on something that is not there, or on itself.
    #[error("dependsOn: {0:?} is no other declared parameter")]
    DependsOn(String),
}

/// A workflow's declared parameters, compiled.
#[derive(Clone, Debug)]
pub struct Parameters {
    declarations: Vec<ParameterDeclaration>,
    schema: Value,
    validator: jsonschema::Validator,
}

impl Parameters {
    /// Compiles declarations, or says all that is wrong with them, by index.
    pub fn compile(
        declarations: Vec<ParameterDeclaration>,
    ) -> Result<Self, Vec<(usize, DeclarationError)>> {
        let mut errors = Vec::new();
        for (index, declaration) in declarations.iter().enumerate() {
            let earlier = declarations.iter().take(index);
            let mut report = |error| errors.push((index, error));
            if !PARAMETER_NAME.accepts(&declaration.name) {
                report(DeclarationError::Name(declaration.name.clone()));
            } else if is_reserved(&declaration.name) {
                report(DeclarationError::Reserved(declaration.name.clone()));
            }
            if earlier.clone().any(|other| other.name == declaration.name) {
                report(DeclarationError::Duplicate(declaration.name.clone()));
            }
            for needed in &declaration.depends_on {
                let declared = declarations.iter().any(|other| other.name == *needed);
                if !declared || *needed == declaration.name {
                    report(DeclarationError::DependsOn(needed.clone()));
                }
            }
            declaration.check(&mut report);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let schema = schema_of(&declarations);
        match validator_of(&schema) {
            Ok(validator) => Ok(Self {
                declarations,
                schema,
                validator,
            }),
            // Every pattern compiled by itself above: only their number or size can be too much together.
            Err(message) => Err(vec![(
                0,
                DeclarationError::Pattern {
                    pattern: "all patterns together".to_owned(),
                    message,
                },
            )]),
        }
    }

    /// The JSON Schema (draft 2020-12) that values are checked against.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// Checks values against the declarations; all violations, in the order of the names.
    pub fn check(&self, given: &BTreeMap<String, String>) -> Vec<ParameterViolation> {
        let mut violations = Vec::new();
        let mut instance = Map::new();
        for (name, value) in given {
            let Some(declaration) = self.declaration(name) else {
                let declared = self.declarations.iter().map(|it| it.name.clone()).collect();
                violations.push(ParameterViolation::Undeclared {
                    name: name.clone(),
                    declared,
                });
                continue;
            };
            match declaration.kind.read(value) {
                Some(read) => drop(instance.insert(name.clone(), read)),
                None => violations.push(ParameterViolation::Type {
                    name: name.clone(),
                    value: value.clone(),
                    kind: declaration.kind,
                }),
            }
        }
        let instance = Value::Object(instance);
        for error in self.validator.iter_errors(&instance) {
            violations.extend(self.violations_of(&error, given));
        }
        violations.sort_by(|a, b| a.name().cmp(b.name()));
        violations.dedup();
        violations
    }

    /// The values a run gets: what is given, and the defaults of the rest.
    pub fn with_defaults(&self, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let defaults = self
            .declarations
            .iter()
            .filter_map(|it| Some((it.name.clone(), text_of(it.default.as_ref()?))));
        defaults.chain(given.clone()).collect()
    }

    fn declaration(&self, name: &str) -> Option<&ParameterDeclaration> {
        self.declarations.iter().find(|it| it.name == name)
    }

    fn violations_of(
        &self,
        error: &jsonschema::ValidationError<'_>,
        given: &BTreeMap<String, String>,
    ) -> Vec<ParameterViolation> {
        if let ValidationErrorKind::Required { property } = error.kind() {
            let property = property.as_str().unwrap_or_default();
            return self.missing(property, given);
        }
        let name = error
            .instance_path()
            .as_str()
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default();
        let name = name.to_owned();
        let value = given.get(&name).cloned().unwrap_or_default();
        vec![match error.kind() {
            ValidationErrorKind::Enum { options } => ParameterViolation::Enum {
                name,
                value,
                allowed: options.to_string(),
            },
            ValidationErrorKind::Pattern { pattern } => ParameterViolation::Pattern {
                name,
                value,
                pattern: pattern.clone(),
            },
            ValidationErrorKind::Minimum { limit } => ParameterViolation::Minimum {
                name,
                value,
                minimum: limit.to_string(),
            },
            ValidationErrorKind::Maximum { limit } => ParameterViolation::Maximum {
                name,
                value,
                maximum: limit.to_string(),
            },
            _ => ParameterViolation::Other {
                name,
                message: error.to_string(),
            },
        }]
    }

    /// `required` and `dependentRequired` report alike: told apart by the declarations. A value
    /// that is there but unreadable has its own violation already.
    fn missing(&self, property: &str, given: &BTreeMap<String, String>) -> Vec<ParameterViolation> {
        if given.contains_key(property) {
            return Vec::new();
        }
        let required = self
            .declaration(property)
            .filter(|it| it.required)
            .map(|it| ParameterViolation::Required {
                name: it.name.clone(),
                kind: it.kind,
            });
        let dependants = self
            .declarations
            .iter()
            .filter(|it| {
                given.contains_key(&it.name)
                    && it.depends_on.iter().any(|needed| needed == property)
            })
            .map(|it| ParameterViolation::DependsOn {
                name: it.name.clone(),
                needs: property.to_owned(),
            });
        required.into_iter().chain(dependants).collect()
    }
}

impl ParameterDeclaration {
    /// Reports what is wrong with this declaration by itself.
    fn check(&self, report: &mut impl FnMut(DeclarationError)) {
        let is_number = matches!(self.kind, ParameterType::Integer | ParameterType::Float);
        for (word, present) in [
            ("minimum", self.minimum.is_some()),
            ("maximum", self.maximum.is_some()),
        ] {
            if present && !is_number {
                report(DeclarationError::WrongType {
                    word,
                    allowed: "integer and float",
                    kind: self.kind,
                });
            }
        }
        if let (Some(minimum), Some(maximum)) = (&self.minimum, &self.maximum)
            && minimum.as_f64() > maximum.as_f64()
        {
            report(DeclarationError::Bounds {
                minimum: minimum.clone(),
                maximum: maximum.clone(),
            });
        }
        let mut pattern_compiles = true;
        if let Some(pattern) = &self.pattern {
            if self.kind != ParameterType::String {
                report(DeclarationError::WrongType {
                    word: "pattern",
                    allowed: "string",
                    kind: self.kind,
                });
            }
            if let Err(message) = validator_of(&json!({ "pattern": pattern })) {
                pattern_compiles = false;
                report(DeclarationError::Pattern {
                    pattern: pattern.clone(),
                    message,
                });
            }
        }
        if self.allowed.as_ref().is_some_and(Vec::is_empty) {
            report(DeclarationError::EmptyEnum);
        }
        for value in self.allowed.iter().flatten() {
            if self.kind.read(&text_of(value)).is_none() {
                report(DeclarationError::EnumValue {
                    value: value.clone(),
                    kind: self.kind,
                });
            }
        }
        if let Some(default) = self.default.as_ref().filter(|_| pattern_compiles) {
            self.violations_of_default(default)
                .into_iter()
                .for_each(|it| report(DeclarationError::Default(it)));
        }
    }

    fn violations_of_default(&self, default: &Value) -> Vec<ParameterViolation> {
        let alone = Self {
            depends_on: Vec::new(),
            ..self.clone()
        };
        let schema = schema_of(std::slice::from_ref(&alone));
        let Ok(validator) = validator_of(&schema) else {
            return Vec::new();
        };
        let given = BTreeMap::from([(self.name.clone(), text_of(default))]);
        Parameters {
            declarations: vec![alone],
            schema,
            validator,
        }
        .check(&given)
    }

    fn property(&self) -> Value {
        let mut property = Map::from_iter([("type".to_owned(), json!(self.kind.json_type()))]);
        let mut insert = |word: &str, value: Option<Value>| {
            value.map(|value| property.insert(word.to_owned(), value))
        };
        insert(
            "enum",
            self.allowed.as_ref().map(|values| {
                values
                    .iter()
                    .filter_map(|value| self.kind.read(&text_of(value)))
                    .collect()
            }),
        );
        insert("pattern", self.pattern.clone().map(Value::String));
        insert("minimum", self.minimum.clone().map(Value::Number));
        insert("maximum", self.maximum.clone().map(Value::Number));
        insert(
            "description",
            Some(self.description.clone())
                .filter(|it| !it.is_empty())
                .map(Value::String),
        );
        Value::Object(property)
    }
}

/// A value as the text a WorkflowExecution would carry.
fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// The JSON Schema of what is *given*: a parameter with a default is never missing.
fn schema_of(declarations: &[ParameterDeclaration]) -> Value {
    let has_default = |name: &str| {
        declarations
            .iter()
            .any(|it| it.name == name && it.default.is_some())
    };
    let dependent: Map<_, _> = declarations
        .iter()
        .filter(|it| !it.depends_on.is_empty())
        .map(|it| {
            let mut needed: Vec<_> = it
                .depends_on
                .iter()
                .filter(|name| !has_default(name))
                .collect();
            needed.sort();
            needed.dedup();
            (it.name.clone(), json!(needed))
        })
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": declarations.iter().map(|it| (it.name.clone(), it.property())).collect::<Map<_, _>>(),
        "required": declarations.iter().filter(|it| it.required && it.default.is_none()).map(|it| &it.name).collect::<Vec<_>>(),
        "dependentRequired": dependent,
    })
}

fn validator_of(schema: &Value) -> Result<jsonschema::Validator, String> {
    jsonschema::draft202012::options()
        .offline()
        .with_pattern_options(PatternOptions::regex())
        .build(schema)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
