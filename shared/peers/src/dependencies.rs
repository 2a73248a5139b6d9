//! What a workflow depends on in the execution namespace: Secrets, ConfigMaps, its ServiceAccount.
//!
//! Read uncached, with `get` only: nothing of ours lists Secrets.

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::{Api, Client};
use thiserror::Error;
use wfe_model::workflow::Dependencies;

/// The label a ServiceAccount must carry to run workflows, with the value `true`.
pub const RUNNER_LABEL: &str = "kubernaut.ai/workflow-runner";

/// A dependency that is not as it must be.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DependencyProblem {
    /// Not there.
    #[error("{kind} {name:?} does not exist in namespace {namespace}: create it")]
    Missing {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// There, with nothing in it.
    #[error("{kind} {name:?} in namespace {namespace} has no data: fill it")]
    Empty {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where it is.
        namespace: String,
    },
}

/// Whether a ServiceAccount may run workflows.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceAccountAnswer {
    /// It carries the label.
    Allowed,
    /// It does not.
    NotLabelled,
    /// It does not exist.
    Missing,
}

impl ServiceAccountAnswer {
    /// Why `account` may not run workflows; none where it may.
    pub fn refusal(&self, account: &str, namespace: &str) -> Option<String> {
        let problem = match self {
            Self::Allowed => return None,
            Self::NotLabelled => "is not meant for workflows",
            Self::Missing => "does not exist",
        };
        Some(format!(
            "the ServiceAccount {account:?} in namespace {namespace} {problem}: use one with the label {RUNNER_LABEL}: \"true\""
        ))
    }
}

/// What keeps a workflow from running, in one sentence.
pub fn not_ready(workflow_id: &str, problems: &[DependencyProblem]) -> String {
    let sentences: Vec<_> = problems.iter().map(ToString::to_string).collect();
    format!(
        "the workflow {workflow_id:?} depends on something that is not ready: {}",
        sentences.join("; ")
    )
}

/// Nothing is known: the read failed. Never to be taken for "not there".
#[derive(Debug, Error)]
#[error("read {kind} {name:?} in namespace {namespace}")]
pub struct ReadError {
    kind: &'static str,
    name: String,
    namespace: String,
    source: Box<kube::Error>,
}

/// Reads from one namespace.
#[derive(Clone)]
pub struct DependencyReader {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    accounts: Api<ServiceAccount>,
    namespace: String,
}

impl DependencyReader {
    /// Reads from the execution namespace.
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client.clone(), namespace),
            accounts: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
        }
    }

    /// Every dependency that is missing or empty; all are read side by side.
    pub async fn check(
        &self,
        dependencies: &Dependencies,
    ) -> Result<Vec<DependencyProblem>, ReadError> {
        let secrets = join_all(dependencies.secrets.iter().map(|name| async move {
            let found = self.secrets.get_opt(name).await;
            self.judge("Secret", name, found, |secret| {
                secret
                    .data
                    .as_ref()
                    .is_none_or(std::collections::BTreeMap::is_empty)
            })
        }));
        let config_maps = join_all(dependencies.config_maps.iter().map(|name| async move {
            let found = self.config_maps.get_opt(name).await;
            self.judge("ConfigMap", name, found, |map| {
                map.data
                    .as_ref()
                    .is_none_or(std::collections::BTreeMap::is_empty)
                    && map
                        .binary_data
                        .as_ref()
                        .is_none_or(std::collections::BTreeMap::is_empty)
            })
        }));
        let (secrets, config_maps) = futures::future::join(secrets, config_maps).await;
        let answers: Result<Vec<_>, _> = secrets.into_iter().chain(config_maps).collect();
        Ok(answers?.into_iter().flatten().collect())
    }

    fn judge<K>(
        &self,
        kind: &'static str,
        name: &str,
        found: Result<Option<K>, kube::Error>,
        is_empty: impl FnOnce(&K) -> bool,
    ) -> Result<Option<DependencyProblem>, ReadError> {
        let (name, namespace) = (name.to_owned(), self.namespace.clone());
        match found {
            Ok(None) => Ok(Some(DependencyProblem::Missing {
                kind,
                name,
                namespace,
            })),
            Ok(Some(object)) if is_empty(&object) => Ok(Some(DependencyProblem::Empty {
                kind,
                name,
                namespace,
            })),
            Ok(Some(_)) => Ok(None),
            Err(source) => Err(ReadError {
                kind,
                name,
                namespace,
                source: Box::new(source),
            }),
        }
    }

    /// Whether `name` may run workflows.
    pub async fn service_account(&self, name: &str) -> Result<ServiceAccountAnswer, ReadError> {
        match self.accounts.get_metadata_opt(name).await {
            Ok(None) => Ok(ServiceAccountAnswer::Missing),
            Ok(Some(account)) => {
                let label = account
                    .metadata
                    .labels
                    .as_ref()
                    .and_then(|labels| labels.get(RUNNER_LABEL));
                Ok(match label.map(String::as_str) {
                    Some("true") => ServiceAccountAnswer::Allowed,
                    _ => ServiceAccountAnswer::NotLabelled,
                })
            }
            Err(source) => Err(ReadError {
                kind: "ServiceAccount",
                name: name.to_owned(),
                namespace: self.namespace.clone(),
                source: Box::new(source),
            }),
        }
    }
}
