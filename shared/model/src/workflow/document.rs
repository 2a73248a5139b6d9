//! The YAML document of a workflow, and its conversion to a validated [`Workflow`].

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::{
    Dependencies, MAX_DEPENDENCIES, Problem, QUANTITY, Resources, TargetKind, Workflow,
    WorkflowStatus,
};
use crate::engine::Engine;
use crate::image::ImageReference;
use crate::parameters::declaration::ParameterDeclaration;
use crate::parameters::declared::Parameters;
use crate::pattern::OBJECT_NAME;

/// Maximum user id in Kubernetes.
const MAX_USER_ID: i64 = 2_147_483_647;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    metadata: Metadata,
    #[serde(default)]
    action_type: String,
    #[serde(default)]
    #[expect(dead_code, reason = "known key, used by the analysis only")]
    labels: BTreeMap<String, Value>,
    #[serde(default)]
    status: WorkflowStatus,
    execution: Execution,
    #[serde(default)]
    dependencies: DocumentDependencies,
    #[serde(default)]
    parameters: Vec<ParameterDeclaration>,
}

#[derive(Deserialize)]
struct Wrapped {
    #[serde(rename = "apiVersion")]
    #[expect(dead_code, reason = "known key")]
    api_version: String,
    #[expect(dead_code, reason = "known key")]
    kind: WrappedKind,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "metadata of the Kubernetes object; that of the workflow is in spec"
    )]
    metadata: Value,
    spec: Document,
}

#[derive(Deserialize)]
enum WrappedKind {
    RemediationWorkflow,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    workflow_id: String,
    version: String,
    #[serde(default)]
    description: Description,
    #[serde(default)]
    #[expect(dead_code, reason = "known key, informational")]
    maintainers: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Description {
    what: String,
    when_to_use: String,
    when_not_to_use: String,
    preconditions: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Execution {
    engine: String,
    bundle: String,
    #[serde(default)]
    resources: Option<Resources>,
    #[serde(default)]
    run_as_user: Option<i64>,
    #[serde(default)]
    service_account_name: Option<String>,
    #[serde(default)]
    target_kinds: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DocumentDependencies {
    secrets: Vec<Named>,
    config_maps: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// Reads a plain or wrapped document. Also returns the paths of unknown keys.
pub(super) fn read(yaml: &str) -> Result<(Document, Vec<String>), Problem> {
    /// Only a wrapped document has a kind.
    #[derive(Deserialize)]
    struct Kind {
        kind: Option<String>,
    }
    let kind: Kind = parse(yaml)?.0;
    if kind.kind.is_some() {
        parse::<Wrapped>(yaml).map(|(wrapped, unknown)| (wrapped.spec, unknown))
    } else {
        parse::<Document>(yaml)
    }
}

fn parse<T: for<'de> Deserialize<'de>>(yaml: &str) -> Result<(T, Vec<String>), Problem> {
    let mut unknown = Vec::new();
    serde_saphyr::with_deserializer_from_str(yaml, |deserializer| {
        serde_ignored::deserialize(deserializer, |path| unknown.push(path.to_string()))
    })
    .map(|value| (value, unknown))
    .map_err(|error| Problem::Unreadable(error.without_snippet().to_string()))
}

impl Document {
    /// Validates the document. The error has all problems.
    pub(super) fn check(self) -> Result<Workflow, Vec<Problem>> {
        let mut problems = Vec::new();
        for (path, text) in [
            ("metadata.workflowId", &self.metadata.workflow_id),
            ("metadata.version", &self.metadata.version),
        ] {
            if text.is_empty() {
                problems.push(Problem::Empty {
                    path: path.to_owned(),
                });
            }
        }
        let engine = Engine::parse(&self.execution.engine);
        if engine.is_none() {
            problems.push(Problem::UnknownEngine {
                found: self.execution.engine.clone(),
            });
        }
        let bundle = ImageReference::parse(&self.execution.bundle);
        if bundle.is_none() {
            problems.push(Problem::Bundle {
                found: self.execution.bundle.clone(),
            });
        }
        let target_kinds = self.execution.check(&mut problems);
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
                workflow_id: self.metadata.workflow_id,
                version: self.metadata.version,
                description: self.metadata.description.what,
                action_type: self.action_type,
                status: self.status,
                engine,
                bundle,
                resources: self.execution.resources,
                run_as_user: self.execution.run_as_user,
                service_account: self.execution.service_account_name,
                target_kinds,
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
