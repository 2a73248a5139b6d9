//! Validation: converts a stored spec to a checked one.
//!
//! [`check`] applies the static rules, which the schema and the CEL rules of the CRD also have;
//! [`validate`] adds the rules that depend on the workflow in the catalog. The webhook and the
//! controller call the same two functions, so that they reach the same result. All violations are
//! reported together.

mod digest;
mod json;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserializer;
use strum::VariantArray;
use thiserror::Error;

use crate::duration::{self, ExecutionTimeout};
use crate::engine::{Engine, ReferenceField, Requested};
use crate::image::{Digest, ImageReference};
use crate::parameters::{self, ParameterViolation};
use crate::pattern::OBJECT_NAME;
use crate::target::{TARGET, Target};
use crate::text::shortened;
use crate::workflow::{Workflow, WorkflowStatus};
use crate::workflow_execution::{RemediationRequestRef, WorkflowExecutionSpec, limit};

pub use self::digest::{Filled, fill, lacking_digest};
pub use self::json::{JsonObject, Misshapen, parse};
pub use crate::violation::Violation;

/// What to do while a workflow may not run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WhenBlocked {
    /// End the WorkflowExecution as Skipped.
    #[default]
    Skip,
    /// Keep the WorkflowExecution Pending until the workflow may run.
    Wait,
}

/// A spec that satisfies all static rules.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedSpec {
    /// Engine that runs the workflow.
    pub engine: Engine,
    /// Requested image or bundle.
    pub requested: Requested,
    /// Id of the workflow in the catalog.
    pub workflow_id: String,
    /// Version of the workflow.
    pub version: String,
    /// Target resource.
    pub target: Target,
    /// Parameter values of the spec, without defaults.
    pub parameters: BTreeMap<String, String>,
    /// Maximum run time; the controller's default if absent.
    pub timeout: Option<ExecutionTimeout>,
    /// ServiceAccount of the pod; the controller's default if absent.
    pub service_account: Option<String>,
    /// What to do while the workflow may not run.
    pub when_blocked: WhenBlocked,
    /// The RemediationRequest that the execution belongs to.
    pub remediation_request: Option<RemediationRequestRef>,
}

/// A spec that satisfies the static rules and matches the workflow in the catalog. Building a Job
/// or a PipelineRun from it cannot fail.
#[derive(Clone, Debug)]
pub struct ValidatedSpec {
    /// The spec after the static checks.
    pub spec: CheckedSpec,
    /// The image or bundle to run, with the digest of the catalog.
    pub image: ImageReference,
    /// Parameter values including the defaults of the workflow.
    pub parameters: BTreeMap<String, String>,
    /// The workflow in the catalog.
    pub workflow: Arc<Workflow>,
}

/// A remark on a valid spec, returned as an admission warning.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Remark {
    /// The workflow is deprecated in the catalog.
    #[error("workflow {workflow_id:?} is deprecated: ask its maintainers for a replacement")]
    Deprecated {
        /// Id in the catalog.
        workflow_id: String,
    },
    /// The workflow may not run as long as the spec allows.
    #[error(
        "spec.executionConfig.timeout {} is cut to {}, the longest time of workflow {workflow_id:?}",
        duration::format(*.found),
        duration::format(*.longest)
    )]
    TimeoutCut {
        /// Timeout in the spec.
        found: Duration,
        /// Longest time in the catalog.
        longest: Duration,
        /// Id in the catalog.
        workflow_id: String,
    },
    /// The tag differs from the tag in the catalog.
    #[error(
        "tag {found:?} differs from tag {catalog:?} in the catalog and is ignored: digest {digest} runs"
    )]
    OtherTag {
        /// Tag in the spec.
        found: String,
        /// Tag in the catalog.
        catalog: String,
        /// Digest in the catalog.
        digest: Digest,
    },
}

impl ValidatedSpec {
    /// The ServiceAccount that the workflow runs as: that of the catalog, else that of the request.
    pub fn service_account<'a>(&'a self, default: &'a str) -> &'a str {
        let own = self.workflow.service_account.as_deref();
        own.or(self.spec.service_account.as_deref())
            .unwrap_or(default)
    }

    /// The execution timeout: that of the request, else `default`; at most that of the catalog.
    pub fn timeout(&self, default: Duration) -> Duration {
        let asked = self.spec.timeout.map_or(default, ExecutionTimeout::get);
        let longest = self.workflow.max_timeout.map(ExecutionTimeout::get);
        longest.map_or(asked, |it| it.min(asked))
    }

    /// Remarks for the author of the spec.
    pub fn remarks(&self) -> Vec<Remark> {
        let workflow = &self.workflow;
        let deprecated =
            (workflow.status == WorkflowStatus::Deprecated).then(|| Remark::Deprecated {
                workflow_id: workflow.workflow_id.clone(),
            });
        let tags = self.image.tag().zip(workflow.bundle.tag());
        let other_tag = tags.filter(|(found, catalog)| found != catalog);
        let other_tag = other_tag.map(|(found, catalog)| Remark::OtherTag {
            found: found.to_owned(),
            catalog: catalog.to_owned(),
            digest: workflow.bundle.digest().clone(),
        });
        let timeouts = self.spec.timeout.zip(workflow.max_timeout);
        let timeout_cut = timeouts.filter(|(found, longest)| found > longest);
        let timeout_cut = timeout_cut.map(|(found, longest)| Remark::TimeoutCut {
            found: found.get(),
            longest: longest.get(),
            workflow_id: workflow.workflow_id.clone(),
        });
        let remarks = deprecated.into_iter().chain(other_tag);
        remarks.chain(timeout_cut).collect()
    }
}

/// Reads a spec from unvalidated JSON.
pub fn read<'a, D>(spec: D) -> Result<WorkflowExecutionSpec, Violation>
where
    D: Deserializer<'a, Error = serde_json::Error>,
{
    let read = parse(spec).map(|JsonObject(spec)| spec);
    read.map_err(|Misshapen { path, message }| Violation::Malformed { path, message })
}

/// Applies the static rules: those that need neither the catalog nor the cluster.
pub fn check(spec: &WorkflowExecutionSpec) -> Result<CheckedSpec, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut report = |violation| violations.push(violation);
    let workflow = &spec.workflow_ref;
    let config = &spec.execution_config;

    let requested = check_reference(spec, &mut report);
    check_required_text(
        &mut report,
        "workflowRef.workflowId",
        &workflow.workflow_id,
        "the id of the workflow in the catalog",
        limit::WORKFLOW_ID,
    );
    check_required_text(
        &mut report,
        "workflowRef.version",
        &workflow.version,
        "the version of the workflow in the catalog",
        limit::VERSION,
    );
    let target = Target::parse(&spec.target_resource);
    if spec.target_resource.is_empty() {
        report(Violation::Missing {
            field: "targetResource",
            needs: TARGET.allowed,
        });
    } else if target.is_none() {
        report(Violation::TargetInvalid {
            found: shortened(&spec.target_resource),
        });
    }
    check_parameters(spec, &mut report);
    if let Some(target) = &target {
        check_target_parameters(spec, target, &mut report);
    }
    let timeout = config.timeout.as_deref().map(ExecutionTimeout::parse);
    if timeout == Some(None) {
        report(Violation::TimeoutInvalid {
            found: shortened(config.timeout.as_deref().unwrap_or_default()),
        });
    }
    if let Some(found) = config
        .service_account_name
        .as_deref()
        .filter(|name| !OBJECT_NAME.accepts(name))
    {
        report(Violation::ServiceAccountInvalid {
            found: shortened(found),
        });
    }
    let when_blocked = match config.when_blocked.as_deref() {
        None | Some("Skip") => WhenBlocked::Skip,
        Some("Wait") => WhenBlocked::Wait,
        Some(found) => {
            report(Violation::WhenBlockedUnknown {
                found: shortened(found),
            });
            WhenBlocked::default()
        }
    };
    if let Some(found) = spec
        .confidence
        .filter(|confidence| !(0.0..=1.0).contains(confidence))
    {
        report(Violation::ConfidenceOutOfRange { found });
    }
    check_informational(spec, &mut report);
    if let Some(requester) = &spec.requested_by {
        check_required_text(
            &mut report,
            "requestedBy.username",
            &requester.username,
            "the name of the requesting user",
            limit::USER,
        );
    }

    match (requested, target) {
        (Some((engine, requested)), Some(target)) if violations.is_empty() => Ok(CheckedSpec {
            engine,
            requested,
            workflow_id: workflow.workflow_id.clone(),
            version: workflow.version.clone(),
            target,
            parameters: spec.parameters.clone(),
            timeout: timeout.flatten(),
            service_account: config.service_account_name.clone(),
            when_blocked,
            remediation_request: spec.remediation_request_ref.clone(),
        }),
        _ => Err(violations),
    }
}

/// Applies the static rules to the spec of a WorkflowExecution in `namespace`.
pub fn check_in(
    namespace: &str,
    spec: &WorkflowExecutionSpec,
) -> Result<CheckedSpec, Vec<Violation>> {
    let found = spec.remediation_request_ref.as_ref();
    let found = found.and_then(|it| it.namespace.as_deref());
    let elsewhere = found.filter(|it| *it != namespace);
    let Some(found) = elsewhere else {
        return check(spec);
    };
    let mut violations = check(spec).err().unwrap_or_default();
    violations.push(Violation::RequestNamespace {
        found: shortened(found),
        namespace: namespace.to_owned(),
    });
    Err(violations)
}

/// Applies the rules that depend on `workflow`, the workflow in the catalog, and adds their
/// violations to those in `checked`, the result of [`check`].
pub fn validate(
    spec: &WorkflowExecutionSpec,
    checked: Result<CheckedSpec, Vec<Violation>>,
    workflow: &Arc<Workflow>,
) -> Result<ValidatedSpec, Vec<Violation>> {
    let (checked, mut violations) = match checked {
        Ok(checked) => (Some(checked), Vec::new()),
        Err(violations) => (None, violations),
    };
    if !workflow.status.may_run() {
        violations.push(Violation::WorkflowNotActive {
            workflow_id: workflow.workflow_id.clone(),
            status: workflow.status,
        });
    }
    let found = &spec.workflow_ref.version;
    if !found.is_empty() && *found != workflow.version {
        violations.push(Violation::VersionMismatch {
            found: shortened(found),
            catalog: workflow.version.clone(),
        });
    }
    if let Some(found) =
        Engine::parse(&spec.execution_engine).filter(|engine| *engine != workflow.engine)
    {
        violations.push(Violation::EngineMismatch {
            found,
            catalog: workflow.engine,
        });
    } else if let Some(checked) = &checked {
        violations.extend(image_mismatch(checked, &workflow.bundle));
    }
    let found = spec.execution_config.service_account_name.as_ref();
    if let Some((found, catalog)) = found.zip(workflow.service_account.as_ref())
        && found != catalog
    {
        violations.push(Violation::ServiceAccountMismatch {
            found: shortened(found),
            catalog: catalog.clone(),
        });
    }
    let too_many = spec.parameters.len() > parameters::MAX_COUNT;
    let invalid = (!too_many).then(|| workflow.parameters.check(&spec.parameters));
    let reported: HashSet<_> = violations.iter().filter_map(parameter).collect();
    let invalid = invalid.into_iter().flatten();
    let invalid = invalid.filter(|it| !reported.contains(it.name()));
    let invalid: Vec<_> = invalid.map(Violation::Parameter).collect();
    violations.extend(invalid);

    match checked {
        Some(spec) if violations.is_empty() => Ok(ValidatedSpec {
            image: spec.requested.pinned(workflow.bundle.digest()),
            parameters: workflow.parameters.with_defaults(&spec.parameters),
            workflow: workflow.clone(),
            spec,
        }),
        _ => Err(violations),
    }
}

/// Name of the parameter that a violation concerns.
fn parameter(violation: &Violation) -> Option<&str> {
    match violation {
        Violation::Parameter(violation) => Some(violation.name()),
        _ => None,
    }
}

/// Compares registry, repository and digest with those in the catalog. Tags are not compared: the
/// digest identifies the content.
fn image_mismatch(checked: &CheckedSpec, catalog: &ImageReference) -> Option<Violation> {
    let pinned = checked.requested.pinned(catalog.digest());
    let same = pinned.same_repository(catalog) && pinned.digest() == catalog.digest();
    let field = checked.engine.runs();
    (!same).then(|| Violation::ImageMismatch {
        field,
        found: checked.requested.to_string(),
        catalog: format!("{}{catalog}", field.scheme()),
    })
}

/// Checks engine, and image or bundle.
fn check_reference(
    spec: &WorkflowExecutionSpec,
    report: &mut impl FnMut(Violation),
) -> Option<(Engine, Requested)> {
    let engine = Engine::parse(&spec.execution_engine);
    if engine.is_none() {
        report(if spec.execution_engine.is_empty() {
            Violation::EngineMissing
        } else {
            Violation::EngineUnknown {
                found: shortened(&spec.execution_engine),
            }
        });
    }
    let mut requested = None;
    for &field in ReferenceField::VARIANTS {
        let text = spec.workflow_ref.get(field);
        let parsed = text.and_then(|text| field.parse(text));
        match engine {
            Some(engine) if engine.runs() == field && text.is_none() => {
                report(Violation::ReferenceMissing { engine });
            }
            Some(engine) if engine.runs() != field && text.is_some() => {
                report(Violation::ReferenceForbidden { engine, field });
            }
            _ => {}
        }
        if let Some(text) = text.filter(|_| parsed.is_none()) {
            report(Violation::ReferenceInvalid {
                field,
                found: shortened(text),
            });
        }
        if engine.is_some_and(|engine| engine.runs() == field) {
            requested = parsed;
        }
    }
    engine.zip(requested)
}

fn check_parameters(spec: &WorkflowExecutionSpec, report: &mut impl FnMut(Violation)) {
    let count = spec.parameters.len();
    if count > parameters::MAX_COUNT {
        // Violations of each parameter would make the message too long to read.
        return report(Violation::ParametersTooMany { count });
    }
    let length = spec
        .parameters
        .values()
        .map(|value| value.chars().count())
        .sum();
    if length > parameters::MAX_TOTAL_LENGTH {
        report(Violation::ParametersTooLarge { length });
    }
    for violation in parameters::check_names_and_sizes(&spec.parameters) {
        report(Violation::Parameter(violation));
    }
    let engine = Engine::parse(&spec.execution_engine);
    if let Some(engine) = engine.filter(|engine| engine.substitutes()) {
        let values = spec.parameters.iter();
        for (name, value) in values.filter(|(_, value)| value.contains("$(")) {
            report(Violation::Parameter(ParameterViolation::Substitution {
                engine,
                name: shortened(name),
                value: shortened(value),
            }));
        }
    }
}

/// Parameters that repeat the target. Its `apiVersion`, and how its kind is spelled, are known to the
/// cluster only: see [`crate::served`].
fn check_target_parameters(
    spec: &WorkflowExecutionSpec,
    target: &Target,
    report: &mut impl FnMut(Violation),
) {
    let [_, kind, name, namespace] = parameters::TARGET_PARAMETERS;
    for (parameter, expected) in [
        (kind, Some(target.kind())),
        (name, Some(target.name())),
        (namespace, target.namespace()),
    ] {
        let Some(value) = spec.parameters.get(parameter) else {
            continue;
        };
        if parameter == kind && expected.is_some_and(|it| it.eq_ignore_ascii_case(value)) {
            continue;
        }
        let violation = ParameterViolation::of_target(parameter, &shortened(value), expected);
        if let Some(violation) = violation {
            report(Violation::Parameter(violation));
        }
    }
}

/// Checks the length of informational fields.
fn check_informational(spec: &WorkflowExecutionSpec, report: &mut impl FnMut(Violation)) {
    let workflow = &spec.workflow_ref;
    let mut check = |field, text: Option<&str>, maximum| {
        let length = text.map_or(0, |text| text.chars().count());
        if length > maximum {
            report(Violation::TooLong {
                field,
                length,
                maximum,
            });
        }
    };
    check("workflowRef.name", workflow.name.as_deref(), limit::NAME);
    check("rationale", spec.rationale.as_deref(), limit::RATIONALE);
    if let Some(requester) = &spec.requested_by {
        check("requestedBy.uid", requester.uid.as_deref(), limit::USER);
    }
    let Some(request) = &spec.remediation_request_ref else {
        return;
    };
    check(
        "remediationRequestRef.apiVersion",
        request.api_version.as_deref(),
        limit::NAME,
    );
    check(
        "remediationRequestRef.kind",
        request.kind.as_deref(),
        limit::LABEL,
    );
    check(
        "remediationRequestRef.namespace",
        request.namespace.as_deref(),
        limit::LABEL,
    );
    check(
        "remediationRequestRef.uid",
        request.uid.as_deref(),
        limit::UID,
    );
    check_required_text(
        report,
        "remediationRequestRef.name",
        &request.name,
        "the name of the RemediationRequest",
        limit::NAME,
    );
}

fn check_required_text(
    report: &mut impl FnMut(Violation),
    field: &'static str,
    value: &str,
    needs: &'static str,
    maximum: usize,
) {
    let length = value.chars().count();
    if length == 0 {
        report(Violation::Missing { field, needs });
    } else if length > maximum {
        report(Violation::TooLong {
            field,
            length,
            maximum,
        });
    }
}

#[cfg(test)]
mod tests;
