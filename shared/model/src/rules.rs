//! The one conversion: from what is stored to what may run.
//!
//! [`check`] is the static half, which the CRD's schema and CEL hold as well; [`validate`] adds
//! what the catalog says. Webhook and controller call the same two functions, so they cannot
//! disagree. All violations are reported together.

mod digest;
mod json;
mod violation;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Deserializer;
use thiserror::Error;

use crate::duration::ExecutionTimeout;
use crate::image::{BundleReference, Digest, ImageReference};
use crate::parameters::{self, ParameterViolation};
use crate::pattern::OBJECT_NAME;
use crate::target::{TARGET, Target};
use crate::text::shortened;
use crate::workflow::{Engine, Workflow, WorkflowStatus};
use crate::workflow_execution::{RemediationRequestRef, WorkflowExecutionSpec, limit};

pub use self::digest::{Filled, fill, lacks_digest};
pub use self::json::{JsonObject, Misshapen, parse};
pub use self::violation::Violation;
pub(crate) use self::violation::{cel_forbids, cel_needs, cel_no_substitution};

/// Why a spec cannot be changed.
pub const IMMUTABLE: &str =
    "spec is immutable: delete this WorkflowExecution and create a new one instead";

/// What happens when a workflow may not run now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WhenBlocked {
    /// It ends as Skipped.
    #[default]
    Skip,
    /// It stays Pending until it may run.
    Wait,
}

/// What is asked to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Requested {
    /// An image, as a Job.
    Job(ImageReference),
    /// A bundle, as a PipelineRun.
    Tekton(BundleReference),
}

impl Requested {
    /// The engine it takes.
    pub fn engine(&self) -> Engine {
        match self {
            Self::Job(_) => Engine::Job,
            Self::Tekton(_) => Engine::Tekton,
        }
    }
}

/// A spec that keeps every static rule.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedSpec {
    /// Engine and image.
    pub requested: Requested,
    /// Key in the catalog.
    pub workflow_id: String,
    /// Version in the catalog.
    pub version: String,
    /// What is repaired.
    pub target: Target,
    /// Values as given, without defaults.
    pub parameters: BTreeMap<String, String>,
    /// How long it may take; the controller's default where absent.
    pub timeout: Option<ExecutionTimeout>,
    /// Who it runs as; the controller's default where absent.
    pub service_account: Option<String>,
    /// What happens when it may not run now.
    pub when_blocked: WhenBlocked,
    /// Who asks.
    pub remediation_request: Option<RemediationRequestRef>,
}

/// A spec that may run: the static rules and the catalog agree. Builders of Jobs and PipelineRuns
/// take this and cannot fail.
#[derive(Clone, Debug)]
pub struct ValidatedSpec {
    /// The static half.
    pub spec: CheckedSpec,
    /// What is executed, always by the catalog's digest.
    pub image: ImageReference,
    /// Values with the workflow's defaults.
    pub parameters: BTreeMap<String, String>,
    /// The catalog's entry.
    pub workflow: Arc<Workflow>,
}

/// Nothing that keeps a spec from running, but who asks should know.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Remark {
    /// The catalog is about to drop it.
    #[error("the workflow {workflow_id:?} is deprecated: ask its maintainers what to use instead")]
    Deprecated {
        /// Key in the catalog.
        workflow_id: String,
    },
    /// Another tag than the catalog's.
    #[error(
        "the tag {found:?} is not the catalog's, {catalog:?}: what runs is the catalog's digest, {digest}"
    )]
    OtherTag {
        /// As found.
        found: String,
        /// The catalog's.
        catalog: String,
        /// What runs.
        digest: Digest,
    },
}

impl ValidatedSpec {
    /// What who asks should know.
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
        deprecated.into_iter().chain(other_tag).collect()
    }
}

/// Reads a spec from an object that nobody has looked at yet.
pub fn read<'a, D>(spec: D) -> Result<WorkflowExecutionSpec, Violation>
where
    D: Deserializer<'a, Error = serde_json::Error>,
{
    let read = parse(spec).map(|JsonObject(spec)| spec);
    read.map_err(|Misshapen { path, message }| Violation::Malformed { path, message })
}

/// The static half: everything that needs neither catalog nor cluster.
pub fn check(spec: &WorkflowExecutionSpec) -> Result<CheckedSpec, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut report = |violation| violations.push(violation);
    let workflow = &spec.workflow_ref;
    let config = &spec.execution_config;

    let requested = requested(spec, &mut report);
    text(
        &mut report,
        "workflowRef.workflowId",
        &workflow.workflow_id,
        "the workflow's key in the catalog",
        limit::WORKFLOW_ID,
    );
    text(
        &mut report,
        "workflowRef.version",
        &workflow.version,
        "the workflow's version in the catalog",
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
    check_carried(spec, &mut report);

    match (requested, target) {
        (Some(requested), Some(target)) if violations.is_empty() => Ok(CheckedSpec {
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

/// The whole: what [`check`] has said of the spec, and what the catalog says of the workflow that
/// it names.
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
        violations.extend(image_mismatch(&checked.requested, &workflow.bundle));
    }
    let too_many = spec.parameters.len() > parameters::MAX_COUNT;
    let wrong = (!too_many).then(|| workflow.parameters.check(&spec.parameters));
    let known: HashSet<_> = violations.iter().filter_map(parameter).collect();
    let wrong = wrong.into_iter().flatten();
    let wrong = wrong.filter(|it| !known.contains(it.name()));
    let wrong: Vec<_> = wrong.map(Violation::Parameter).collect();
    violations.extend(wrong);

    match checked {
        Some(spec) if violations.is_empty() => Ok(ValidatedSpec {
            image: match &spec.requested {
                Requested::Job(image) => image.clone(),
                Requested::Tekton(bundle) => bundle.clone().pinned(workflow.bundle.digest()),
            },
            parameters: workflow.parameters.with_defaults(&spec.parameters),
            workflow: workflow.clone(),
            spec,
        }),
        _ => Err(violations),
    }
}

/// The parameter that a violation is about.
fn parameter(violation: &Violation) -> Option<&str> {
    match violation {
        Violation::Parameter(violation) => Some(violation.name()),
        _ => None,
    }
}

/// What the spec asks to run and what the catalog has: same repository, same digest. Tags name
/// nothing and are not compared.
fn image_mismatch(requested: &Requested, catalog: &ImageReference) -> Option<Violation> {
    let (field, found, asked, scheme) = match requested {
        Requested::Job(image) => (
            "workflowRef.containerImage",
            image.to_string(),
            image.clone(),
            "",
        ),
        Requested::Tekton(bundle) => (
            "workflowRef.bundleRef",
            bundle.to_string(),
            bundle.clone().pinned(catalog.digest()),
            "oci://",
        ),
    };
    let same = asked.same_repository(catalog) && asked.digest() == catalog.digest();
    (!same).then(|| Violation::ImageMismatch {
        field,
        found,
        catalog: format!("{scheme}{catalog}"),
    })
}

fn requested(
    spec: &WorkflowExecutionSpec,
    report: &mut impl FnMut(Violation),
) -> Option<Requested> {
    let workflow = &spec.workflow_ref;
    let image = workflow.container_image.as_deref();
    let bundle = workflow.bundle_ref.as_deref();
    let engine = Engine::parse(&spec.execution_engine);
    match engine {
        None if spec.execution_engine.is_empty() => report(Violation::EngineMissing),
        None => report(Violation::EngineUnknown {
            found: shortened(&spec.execution_engine),
        }),
        Some(Engine::Job) => {
            image.is_none().then(|| report(Violation::ImageMissing));
            bundle.is_some().then(|| report(Violation::BundleForbidden));
        }
        Some(Engine::Tekton) => {
            bundle.is_none().then(|| report(Violation::BundleMissing));
            image.is_some().then(|| report(Violation::ImageForbidden));
        }
    }
    let read_image = image.and_then(ImageReference::parse);
    if let Some(found) = image.filter(|_| read_image.is_none()) {
        report(Violation::ImageInvalid {
            found: shortened(found),
        });
    }
    let read_bundle = bundle.and_then(BundleReference::parse);
    if let Some(found) = bundle.filter(|_| read_bundle.is_none()) {
        report(Violation::BundleInvalid {
            found: shortened(found),
        });
    }
    match engine? {
        Engine::Job => read_image.map(Requested::Job),
        Engine::Tekton => read_bundle.map(Requested::Tekton),
    }
}

fn check_parameters(spec: &WorkflowExecutionSpec, report: &mut impl FnMut(Violation)) {
    let count = spec.parameters.len();
    if count > parameters::MAX_COUNT {
        // Nobody reads what is wrong with each of them.
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
    if spec.execution_engine == Engine::Tekton.as_str() {
        for (name, value) in spec
            .parameters
            .iter()
            .filter(|(_, value)| value.contains("$("))
        {
            report(Violation::Parameter(ParameterViolation::Substitution {
                name: name.clone(),
                value: shortened(value),
            }));
        }
    }
}

/// Fields that are only carried: nothing but their size is ours to judge.
fn check_carried(spec: &WorkflowExecutionSpec, report: &mut impl FnMut(Violation)) {
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
    text(
        report,
        "remediationRequestRef.name",
        &request.name,
        "the name of the RemediationRequest",
        limit::NAME,
    );
}

fn text(
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
