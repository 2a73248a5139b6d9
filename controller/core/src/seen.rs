//! What is read of the Jobs and pods that watches show. Everything else of them, most of their text,
//! is skipped while they are decoded, and takes no memory.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::{ContainerState, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// A Job.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Job {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// Spec.
    pub spec: Option<JobSpec>,
    /// Status.
    pub status: Option<JobStatus>,
}

/// Spec of a Job.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// Whether the Job creates no pods now.
    pub suspend: Option<bool>,
    /// Seconds after which the Job ends its pods and fails.
    pub active_deadline_seconds: Option<i64>,
}

/// Status of a Job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// When the Job succeeded.
    pub completion_time: Option<Time>,
    /// Conditions.
    pub conditions: Option<Vec<JobCondition>>,
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    /// Metadata.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// Status.
    pub status: Option<PodStatus>,
}

/// Status of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Phase.
    pub phase: Option<String>,
    /// Why the pod is in its phase, in a word.
    pub reason: Option<String>,
    /// Why the pod is in its phase.
    pub message: Option<String>,
    /// Conditions.
    pub conditions: Option<Vec<PodCondition>>,
    /// Statuses of its containers.
    pub container_statuses: Option<Vec<ContainerStatus>>,
}

/// Status of a container.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ContainerStatus {
    /// Name of the container.
    pub name: String,
    /// Whether the container waits, runs or has ended.
    pub state: Option<ContainerState>,
}

/// Metadata without managed fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

/// Decodes metadata without managed fields.
pub fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let read = Metadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        generation: read.generation,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        labels: read.labels,
        annotations: read.annotations,
        finalizers: read.finalizers,
        owner_references: read.owner_references,
        ..ObjectMeta::default()
    })
}

/// Lets a type be requested as the kind whose fields it has.
macro_rules! is_a {
    ($seen:ty, $kind:ty) => {
        impl Resource for $seen {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind(_: &()) -> Cow<'_, str> {
                <$kind as Resource>::kind(&())
            }

            fn group(_: &()) -> Cow<'_, str> {
                <$kind as Resource>::group(&())
            }

            fn version(_: &()) -> Cow<'_, str> {
                <$kind as Resource>::version(&())
            }

            fn plural(_: &()) -> Cow<'_, str> {
                <$kind as Resource>::plural(&())
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

is_a!(Job, k8s_openapi::api::batch::v1::Job);
is_a!(Pod, k8s_openapi::api::core::v1::Pod);
