//! The engines that run workflows. Schema, rules and messages take what differs between engines
//! from here, so that a new engine is a new variant.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use strum::VariantArray;

use crate::image::{BUNDLE, BundleReference, Digest, IMAGE, ImageReference};
use crate::pattern::Pattern;

/// Engine that runs a workflow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, VariantArray)]
pub enum Engine {
    /// A Kubernetes Job.
    Job,
    /// A Tekton PipelineRun.
    Tekton,
}

impl Engine {
    /// Parses the value of `spec.executionEngine`. There is no default, and case matters.
    pub fn parse(text: &str) -> Option<Self> {
        let mut all = Self::VARIANTS.iter().copied();
        all.find(|engine| engine.as_str() == text)
    }

    /// The name in `spec.executionEngine`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Tekton => "tekton",
        }
    }

    /// API version and kind of the object that the engine creates.
    pub fn runs_as(self) -> (&'static str, &'static str) {
        match self {
            Self::Job => ("batch/v1", "Job"),
            Self::Tekton => ("tekton.dev/v1", "PipelineRun"),
        }
    }

    /// The field with what the engine runs.
    pub fn runs(self) -> ReferenceField {
        match self {
            Self::Job => ReferenceField::ContainerImage,
            Self::Tekton => ReferenceField::BundleRef,
        }
    }

    /// Whether the engine substitutes `$(…)` in parameter values.
    pub fn substitutes(self) -> bool {
        match self {
            Self::Job => false,
            Self::Tekton => true,
        }
    }

    /// Whether the engine applies `execution.resources` of a catalog entry.
    pub fn takes_resources(self) -> bool {
        match self {
            Self::Job => true,
            Self::Tekton => false,
        }
    }

    /// What `kubectl logs` takes to print the logs of an execution with this name.
    pub fn logs_of(self, name: &str) -> String {
        match self {
            Self::Job => format!("job/{name}"),
            Self::Tekton => format!("-l tekton.dev/pipelineRun={name} --all-containers"),
        }
    }

    /// The supported values of `spec.executionEngine`, for messages.
    pub fn supported() -> String {
        let all = Self::VARIANTS.iter();
        let all: Vec<_> = all.map(|engine| format!("\"{engine}\"")).collect();
        all.join(", ")
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The schema of `spec.executionEngine`. The derived one would describe each value.
impl JsonSchema for Engine {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Engine".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let values: Vec<_> = Self::VARIANTS.iter().map(|it| it.as_str()).collect();
        json_schema!({ "type": "string", "enum": values })
    }
}

/// A field of `workflowRef` with what an engine runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, VariantArray)]
pub enum ReferenceField {
    /// `containerImage`
    ContainerImage,
    /// `bundleRef`
    BundleRef,
}

impl ReferenceField {
    /// Name of the field.
    pub fn name(self) -> &'static str {
        match self {
            Self::ContainerImage => "containerImage",
            Self::BundleRef => "bundleRef",
        }
    }

    /// Path of the field in the spec.
    pub fn path(self) -> &'static str {
        match self {
            Self::ContainerImage => "workflowRef.containerImage",
            Self::BundleRef => "workflowRef.bundleRef",
        }
    }

    /// Format of the value.
    pub fn format(self) -> &'static Pattern {
        match self {
            Self::ContainerImage => &IMAGE,
            Self::BundleRef => &BUNDLE,
        }
    }

    /// Prefix of the value, which references in the catalog do not have.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::ContainerImage => "",
            Self::BundleRef => "oci://",
        }
    }

    /// Whether the value must have a digest; if not, the digest of the catalog runs.
    pub fn needs_digest(self) -> bool {
        match self {
            Self::ContainerImage => true,
            Self::BundleRef => false,
        }
    }

    /// Parses a value that the [format](Self::format) accepts.
    pub fn parse(self, text: &str) -> Option<Requested> {
        match self {
            Self::ContainerImage => ImageReference::parse(text).map(Requested::Image),
            Self::BundleRef => BundleReference::parse(text).map(Requested::Bundle),
        }
    }
}

/// The requested image or bundle.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Requested {
    /// A container image, with its digest.
    Image(ImageReference),
    /// A bundle, with or without a digest.
    Bundle(BundleReference),
}

impl Requested {
    /// The image or bundle with its own digest, or with `digest` if it has none.
    pub fn pinned(&self, digest: &Digest) -> ImageReference {
        match self {
            Self::Image(image) => image.clone(),
            Self::Bundle(bundle) => bundle.clone().pinned(digest),
        }
    }
}

impl fmt::Display for Requested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(image) => image.fmt(f),
            Self::Bundle(bundle) => bundle.fmt(f),
        }
    }
}
