//! The parts that plain documents and RemediationWorkflow objects have in common, and their
//! conversion to a validated [`Workflow`].

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::definition::{
    Dependencies, MAX_DEPENDENCIES, QUANTITY, Resources, TargetKind, Workflow, WorkflowStatus,
};
use super::problem::Problem;
use crate::duration::ExecutionTimeout;
use crate::engine::Engine;
use crate::image::ImageReference;
use crate::limit;
use crate::parameters::declaration::ParameterDeclaration;
use crate::parameters::declared::Parameters;
use crate::pattern::OBJECT_NAME;
use crate::text::shortened;

/// Maximum user id in Kubernetes.
const MAX_USER_ID: i64 = 2_147_483_647;

/// A workflow as it was written.
pub(super) struct Entry {
    /// Id in the catalog, and its path for messages.
    pub workflow_id: (&'static str, String),
    /// Version, and its path for messages.
    pub version: (&'static str, String),
    pub description: Description,
    pub action_type: String,
    pub status: WorkflowStatus,
    pub execution: Execution,
    pub dependencies: DeclaredDependencies,
    pub parameters: Vec<ParameterDeclaration>,
}

/// What the workflow is for, for people and for the analysis.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Description {
    /// What the workflow does.
    pub what: String,
    /// Conditions under which it is appropriate.
    pub when_to_use: String,
    /// Conditions under which it must not be used.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub when_not_to_use: String,
    /// What must be verified before it is used.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub preconditions: String,
}

/// How the workflow is executed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Execution {
    /// Engine that runs the workflow: `job` (one container in a Kubernetes Job) or `tekton` (a
    /// Tekton PipelineRun). There is no default.
    pub engine: String,
    /// Image (job) or Tekton bundle (tekton), with its digest: `registry/repository@sha256:...`.
    pub bundle: String,
    /// Digest of the bundle, if `bundle` has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle_digest: Option<String>,
    /// Requests and limits of the container, for engine job; the controller's defaults if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// User id of the container, not 0; the controller's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<i64>,
    /// ServiceAccount in the execution namespace that the workflow runs as; absent: that of the
    /// request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Kinds of its targets, as `Kind` or `Kind.group`; empty: every kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target_kinds: Vec<String>,
    /// Longest time that an execution may take, for example `5m`: a longer timeout of the request or
    /// of the controller is cut to it; absent: no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_timeout: Option<String>,
}

/// Secrets and ConfigMaps that must exist and have data in the execution namespace.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeclaredDependencies {
    /// Secrets; mounted at `/run/kubernaut/secrets/<name>`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Named>,
    /// ConfigMaps; mounted at `/run/kubernaut/configmaps/<name>`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config_maps: Vec<Named>,
}

/// An object by its name.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Named {
    /// Name of the object.
    pub name: String,
}

impl Entry {
    /// Validates the workflow. The error has all problems.
    pub(super) fn check(self) -> Result<Workflow, Vec<Problem>> {
        let mut problems = Vec::new();
        for ((path, text), most) in [
            (&self.workflow_id, limit::WORKFLOW_ID),
            (&self.version, limit::VERSION),
        ] {
            let path = (*path).to_owned();
            if text.is_empty() {
                problems.push(Problem::Empty { path });
            } else if text.chars().count() > most {
                problems.push(Problem::TooLong { path, most });
            }
        }
        let engine = Engine::parse(&self.execution.engine);
        if engine.is_none() {
            let found = self.execution.engine.clone();
            problems.push(if found.is_empty() {
                Problem::EngineMissing
            } else {
                Problem::UnknownEngine { found }
            });
        }
        let bundle = self.execution.bundle(&mut problems);
        let target_kinds = self.execution.check(&mut problems);
        let max_timeout = self.execution.max_timeout(&mut problems);
        let secrets = names(
            "dependencies.secrets",
            self.dependencies.secrets,
            &mut problems,
        );
        let config_maps = names(
            "dependencies.configMaps",
            self.dependencies.config_maps,
            &mut problems,
        );
        let count = secrets.len() + config_maps.len();
        if count > MAX_DEPENDENCIES {
            problems.push(Problem::TooManyDependencies { count });
        }
        let parameters = Parameters::compile(self.parameters).map_err(|errors| {
            problems.extend(
                errors
                    .into_iter()
                    .map(|(index, error)| Problem::Parameter { index, error }),
            );
        });
        if let (Some(engine), Ok(parameters)) = (engine.filter(|it| it.substitutes()), &parameters)
        {
            let defaults = parameters.with_defaults(&BTreeMap::new()).into_iter();
            let substituted = defaults.filter(|(_, value)| value.contains("$("));
            problems
                .extend(substituted.map(|(name, _)| Problem::DefaultSubstituted { name, engine }));
        }
        match (engine, bundle, parameters) {
            (Some(engine), Some(bundle), Ok(parameters)) if problems.is_empty() => Ok(Workflow {
                workflow_id: self.workflow_id.1,
                version: self.version.1,
                description: self.description.what,
                action_type: self.action_type,
                status: self.status,
                engine,
                bundle,
                resources: self.execution.resources,
                run_as_user: self.execution.run_as_user,
                service_account: self.execution.service_account_name,
                target_kinds,
                max_timeout,
                dependencies: Dependencies {
                    secrets,
                    config_maps,
                },
                parameters,
            }),
            _ => Err(problems),
        }
    }
}

impl Execution {
    /// The bundle with its digest.
    fn bundle(&self, problems: &mut Vec<Problem>) -> Option<ImageReference> {
        if self.bundle.is_empty() {
            let path = "execution.bundle".to_owned();
            problems.push(Problem::Empty { path });
            return None;
        }
        // Data Storage writes the digest without the name of its algorithm.
        let digest = self.bundle_digest.as_ref().map(|digest| {
            let algorithm = if digest.contains(':') { "" } else { "sha256:" };
            format!("{algorithm}{digest}")
        });
        let found = match (digest, self.bundle.split_once('@')) {
            (Some(found), Some((_, own))) if own != found => {
                let bundle = self.bundle.clone();
                problems.push(Problem::BundleDigest { found, bundle });
                return None;
            }
            (Some(digest), None) => format!("{}@{digest}", self.bundle),
            _ => self.bundle.clone(),
        };
        let bundle = ImageReference::parse(&found);
        if bundle.is_none() {
            problems.push(Problem::Bundle { found });
        }
        bundle
    }

    /// The longest time of an execution.
    fn max_timeout(&self, problems: &mut Vec<Problem>) -> Option<ExecutionTimeout> {
        let found = self.max_timeout.as_ref()?;
        let timeout = ExecutionTimeout::parse(found);
        if timeout.is_none() {
            let found = shortened(found);
            problems.push(Problem::MaxTimeout { found });
        }
        timeout
    }

    /// Validates what no other part of the document depends on; returns the target kinds.
    fn check(&self, problems: &mut Vec<Problem>) -> Vec<TargetKind> {
        let user = self.run_as_user;
        let user = user.filter(|user| !(1..=MAX_USER_ID).contains(user));
        problems.extend(user.map(|found| Problem::RunAsUser { found }));
        let lists = self.resources.iter();
        let lists = lists.flat_map(|it| [("requests", &it.requests), ("limits", &it.limits)]);
        for (list, amounts) in lists {
            let invalid = amounts.iter();
            let invalid = invalid.filter(|(_, amount)| !QUANTITY.accepts(amount));
            problems.extend(invalid.map(|(name, amount)| Problem::Quantity {
                path: format!("execution.resources.{list}.{name}"),
                found: amount.clone(),
            }));
        }
        let account = self.service_account_name.clone();
        let account = account.filter(|it| !OBJECT_NAME.accepts(it));
        problems.extend(account.map(|found| Problem::ServiceAccount { found }));
        let mut kinds = Vec::new();
        for (index, found) in self.target_kinds.iter().enumerate() {
            match TargetKind::parse(found) {
                Some(kind) => kinds.push(kind),
                None => problems.push(Problem::TargetKind {
                    index,
                    found: found.clone(),
                }),
            }
        }
        kinds
    }
}

/// Names of Secrets or ConfigMaps in `entries`; `list` is the path of the list.
fn names(list: &str, entries: Vec<Named>, problems: &mut Vec<Problem>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    for (index, Named { name }) in entries.iter().enumerate() {
        let path = format!("{list}[{index}].name");
        if name.is_empty() {
            problems.push(Problem::Empty { path });
        } else if !OBJECT_NAME.accepts(name) {
            problems.push(Problem::DependencyName {
                path,
                found: name.clone(),
            });
        } else if !seen.insert(name) {
            problems.push(Problem::DuplicateDependency {
                path,
                name: name.clone(),
            });
        }
    }
    entries.into_iter().map(|entry| entry.name).collect()
}
