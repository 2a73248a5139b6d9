//! Compiles the parameters that a workflow declares to one JSON Schema, without network access and
//! with linear-time patterns. Values are text: each is parsed as its declared type, then validated.

use std::collections::BTreeMap;

use jsonschema::PatternOptions;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value, json};

use super::declaration::{DeclarationError, ParameterDeclaration, text_of};
use super::kind::ParameterType;
use super::violation::{PARAMETER_NAME, ParameterViolation, TARGET_PARAMETERS, is_reserved};
use crate::text::shortened;

/// Maximum size of a compiled pattern in bytes: matching takes time proportional to it, and a value may
/// have [`MAX_VALUE_LENGTH`](super::MAX_VALUE_LENGTH) characters.
const MAX_PATTERN_SIZE: usize = 512 << 10;

/// The declared parameters of a workflow, compiled.
#[derive(Clone, Debug)]
pub struct Parameters {
    declarations: Vec<ParameterDeclaration>,
    schema: Value,
    validator: jsonschema::Validator,
}

impl Parameters {
    /// Compiles declarations. The errors have the indexes of their declarations.
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
            check_declaration(declaration, &mut report);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        // Each pattern has compiled by itself, so that only their total size can be too large here.
        Self::compile_checked(declarations).map_err(|message| {
            let pattern = "all patterns together".to_owned();
            vec![(0, DeclarationError::Pattern { pattern, message })]
        })
    }

    /// Compiles checked declarations. The error is the message of the JSON Schema library.
    fn compile_checked(declarations: Vec<ParameterDeclaration>) -> Result<Self, String> {
        let schema = schema_of(&declarations);
        let validator = validator_of(&schema)?;
        Ok(Self {
            declarations,
            schema,
            validator,
        })
    }

    /// The JSON Schema (draft 2020-12) for the values.
    pub fn schema(&self) -> &Value {
        &self.schema
    }

    /// Validates values against the declarations. The violations are sorted by name.
    pub fn check(&self, given: &BTreeMap<String, String>) -> Vec<ParameterViolation> {
        let mut violations = Vec::new();
        let mut instance = Map::new();
        for (name, value) in given {
            let Some(declaration) = self.declaration(name) else {
                let declared = self.declarations.iter().map(|it| it.name.clone()).collect();
                violations.push(ParameterViolation::Undeclared {
                    name: shortened(name),
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
            for violation in self.violations_of(&error, given) {
                if !violations.contains(&violation) {
                    violations.push(violation);
                }
            }
        }
        violations.sort_by(|a, b| a.name().cmp(b.name()));
        violations
    }

    /// Validates the values of [`TARGET_PARAMETERS`] that the target has, and that a request gives.
    pub fn check_target(
        &self,
        given: &BTreeMap<String, String>,
        target: &BTreeMap<&'static str, String>,
    ) -> Vec<ParameterViolation> {
        let declared = TARGET_PARAMETERS
            .into_iter()
            .filter_map(|name| self.declaration(name));
        let declared: Vec<_> = declared.collect();
        if declared.is_empty() {
            return Vec::new();
        }
        let mut violations = Vec::new();
        let mut all = given.clone();
        for declaration in declared {
            let name = &declaration.name;
            let own = target.get(name.as_str());
            match given.get(name) {
                Some(value) => {
                    let own = own.map(String::as_str);
                    violations.extend(ParameterViolation::of_target(name, value, own));
                }
                None if own.is_none() && declaration.required => {
                    violations.push(ParameterViolation::TargetLacks { name: name.clone() });
                }
                None => all.extend(own.map(|own| (name.clone(), own.clone()))),
            }
        }
        let invalid = self.check(&all).into_iter();
        let is_reported =
            |it: &ParameterViolation| violations.iter().any(|one| one.name() == it.name());
        let ours = invalid.filter(|it| TARGET_PARAMETERS.contains(&it.name()) && !is_reported(it));
        let ours: Vec<_> = ours.collect();
        violations.extend(ours);
        violations
    }

    /// The given values and the defaults of the parameters without a value.
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

    /// Violations for a missing parameter. The library reports `required` and `dependentRequired`
    /// as the same kind of error, so that the declarations must distinguish them. A value of the
    /// wrong type is missing in the instance, but has been reported already.
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

/// Reports the errors of a declaration that do not depend on other declarations.
fn check_declaration(
    declaration: &ParameterDeclaration,
    report: &mut impl FnMut(DeclarationError),
) {
    let is_number = matches!(
        declaration.kind,
        ParameterType::Integer | ParameterType::Float
    );
    for (keyword, present) in [
        ("minimum", declaration.minimum.is_some()),
        ("maximum", declaration.maximum.is_some()),
    ] {
        if present && !is_number {
            report(DeclarationError::WrongType {
                keyword,
                allowed: "integer and float",
                kind: declaration.kind,
            });
        }
    }
    if let (Some(minimum), Some(maximum)) = (&declaration.minimum, &declaration.maximum)
        && minimum.as_f64() > maximum.as_f64()
    {
        report(DeclarationError::Bounds {
            minimum: minimum.clone(),
            maximum: maximum.clone(),
        });
    }
    if let Some(pattern) = &declaration.pattern {
        if declaration.kind != ParameterType::String {
            report(DeclarationError::WrongType {
                keyword: "pattern",
                allowed: "string",
                kind: declaration.kind,
            });
        }
        if let Err(message) = validator_of(&json!({ "pattern": pattern })) {
            report(DeclarationError::Pattern {
                pattern: pattern.clone(),
                message,
            });
        }
    }
    if declaration.allowed.as_ref().is_some_and(Vec::is_empty) {
        report(DeclarationError::EmptyEnum);
    }
    for value in declaration.allowed.iter().flatten() {
        if declaration.kind.read(&text_of(value)).is_none() {
            report(DeclarationError::EnumValue {
                value: value.clone(),
                kind: declaration.kind,
            });
        }
    }
    if let Some(default) = &declaration.default {
        for violation in violations_of_default(declaration, default) {
            report(DeclarationError::Default(violation));
        }
    }
}

fn violations_of_default(
    declaration: &ParameterDeclaration,
    default: &Value,
) -> Vec<ParameterViolation> {
    let alone = ParameterDeclaration {
        depends_on: Vec::new(),
        ..declaration.clone()
    };
    // `check` reports a pattern that does not compile.
    let Ok(parameters) = Parameters::compile_checked(vec![alone]) else {
        return Vec::new();
    };
    parameters.check(&BTreeMap::from([(
        declaration.name.clone(),
        text_of(default),
    )]))
}

/// JSON Schema of the values before defaults are applied: a parameter with a default is optional.
fn schema_of(declarations: &[ParameterDeclaration]) -> Value {
    let has_value = |name: &str| {
        declarations
            .iter()
            .any(|it| it.name == name && it.default.is_some())
            || TARGET_PARAMETERS.contains(&name)
    };
    let dependent: Map<_, _> = declarations
        .iter()
        .filter(|it| !it.depends_on.is_empty())
        .map(|it| {
            let mut needed: Vec<_> = it
                .depends_on
                .iter()
                .filter(|name| !has_value(name))
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
        // Those of the target always have a value, or are reported by `check_target`.
        "required": declarations.iter().filter(|it| it.required && it.default.is_none() && !TARGET_PARAMETERS.contains(&it.name.as_str())).map(|it| &it.name).collect::<Vec<_>>(),
        "dependentRequired": dependent,
    })
}

fn validator_of(schema: &Value) -> Result<jsonschema::Validator, String> {
    jsonschema::draft202012::options()
        .offline()
        .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN_SIZE))
        .build(schema)
        .map_err(|error| error.to_string())
}
