//! A validated workflow of the catalog.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Number;
use strum::{Display, EnumString, VariantArray};

use crate::duration::ExecutionTimeout;
use crate::engine::Engine;
use crate::image::ImageReference;
use crate::parameters::declared::Parameters;
use crate::pattern::pattern;

pattern!(
    /// A Kubernetes quantity.
    QUANTITY, 64,
    "^[0-9]+(\\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i|[eE][0-9]{1,2})?$",
    "a Kubernetes quantity, for example 250m, 0.5 or 64Mi"
);

pattern!(
    /// A kind that a workflow is for.
    TARGET_KIND, 317,
    "^[A-Z][A-Za-z0-9]{0,62}(\\.[a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$",
    "a kind, or a kind and its API group, for example Deployment or Deployment.apps"
);

/// A kind that a workflow is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TargetKind {
    /// Kind in manifests.
    pub kind: String,
    /// API group; absent: any.
    pub group: Option<String>,
}

impl TargetKind {
    /// Parses a text that [`TARGET_KIND`] accepts.
    pub fn parse(text: &str) -> Option<Self> {
        let text = Some(text).filter(|it| TARGET_KIND.accepts(it))?;
        let (kind, group) = text
            .split_once('.')
            .map_or((text, None), |(kind, group)| (kind, Some(group.to_owned())));
        Some(Self {
            kind: kind.to_owned(),
            group,
        })
    }
}

/// Formats the kind as it was written.
impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        self.group.iter().try_for_each(|it| write!(f, ".{it}"))
    }
}

/// Status of a workflow in the catalog.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Display, EnumString, Eq, PartialEq, VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
pub enum WorkflowStatus {
    /// The workflow may run.
    #[default]
    Active,
    /// The workflow may run, with an admission warning.
    Deprecated,
    /// The workflow must not run.
    Disabled,
    /// The workflow must not run.
    Archived,
    /// Not registered yet; the workflow must not run.
    Pending,
    /// Registration was refused; the workflow must not run.
    Invalid,
    /// Another version has replaced it; the workflow must not run.
    Superseded,
}

impl WorkflowStatus {
    /// The supported values, for messages.
    pub(super) fn supported() -> String {
        let all = Self::VARIANTS.iter().map(|it| format!("\"{it}\""));
        all.collect::<Vec<_>>().join(", ")
    }

    /// Whether a workflow of this status may run.
    pub fn may_run(self) -> bool {
        matches!(self, Self::Active | Self::Deprecated)
    }
}

/// Most Secrets and ConfigMaps of a workflow: each is read for each request.
pub const MAX_DEPENDENCIES: usize = 32;

/// Objects that must exist and have data in the execution namespace before the workflow runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dependencies {
    /// Names of Secrets.
    pub secrets: Vec<String>,
    /// Names of ConfigMaps.
    pub config_maps: Vec<String>,
}

/// Resource requests and limits of the container of a workflow.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Resources {
    /// Requests, by resource name, for example `cpu: 50m`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "amounts"
    )]
    #[schemars(with = "BTreeMap<String, Amount>")]
    pub requests: BTreeMap<String, String>,
    /// Limits, by resource name, for example `memory: 128Mi`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "amounts"
    )]
    #[schemars(with = "BTreeMap<String, Amount>")]
    pub limits: BTreeMap<String, String>,
}

/// A quantity may be written as a number, as everywhere in Kubernetes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(Number),
    Text(String),
}

impl JsonSchema for Amount {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

fn amounts<'de, D: Deserializer<'de>>(amounts: D) -> Result<BTreeMap<String, String>, D::Error> {
    let amounts = BTreeMap::<String, Amount>::deserialize(amounts)?;
    let text = |(name, amount)| match amount {
        Amount::Number(number) => (name, number.to_string()),
        Amount::Text(text) => (name, text),
    };
    Ok(amounts.into_iter().map(text).collect())
}

/// A validated workflow of the catalog.
#[derive(Clone, Debug)]
pub struct Workflow {
    /// Id in the catalog.
    pub workflow_id: String,
    /// Version of the workflow.
    pub version: String,
    /// What the workflow does. Informational.
    pub description: String,
    /// Type of the action, by which the analysis searches for workflows.
    pub action_type: String,
    /// Status in the catalog.
    pub status: WorkflowStatus,
    /// Engine that runs the workflow.
    pub engine: Engine,
    /// Image or bundle to run, without a scheme.
    pub bundle: ImageReference,
    /// Requests and limits; the controller's defaults if absent.
    pub resources: Option<Resources>,
    /// User id of the container; the controller's default if absent.
    pub run_as_user: Option<i64>,
    /// ServiceAccount that it runs as; absent: that of the request.
    pub service_account: Option<String>,
    /// Kinds of its targets; empty: every kind.
    pub target_kinds: Vec<TargetKind>,
    /// Longest time of an execution; absent: no limit of its own.
    pub max_timeout: Option<ExecutionTimeout>,
    /// Required Secrets and ConfigMaps.
    pub dependencies: Dependencies,
    /// Declared parameters.
    pub parameters: Parameters,
}

/// A workflow and the warnings from reading it.
#[derive(Clone, Debug)]
pub struct ReadWorkflow {
    /// The workflow.
    pub workflow: Workflow,
    /// One message for each key that has no effect.
    pub warnings: Vec<String>,
}

impl ReadWorkflow {
    /// `unknown`: the paths of unknown keys in the document `file`.
    pub(super) fn new(file: &str, workflow: Workflow, unknown: &[String]) -> Self {
        let warnings = unknown.iter().map(|path| {
            format!("{file}: {path}: unknown key is ignored: remove it or correct its name")
        });
        let engine = workflow.engine;
        let ignored = workflow.resources.is_some() && !engine.takes_resources();
        let ignored = ignored.then(|| {
            format!("{file}: execution.resources: ignored for engine {engine}: set the resources of its steps")
        });
        let warnings = warnings.chain(ignored).collect();
        Self { workflow, warnings }
    }
}
