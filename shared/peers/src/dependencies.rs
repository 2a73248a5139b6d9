//! What a workflow depends on in the execution namespace: Secrets, ConfigMaps, its ServiceAccount.
//!
//! Read uncached, with `get` only: nothing of ours lists Secrets.

use std::fmt::Debug;
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use thiserror::Error;
use wfe_model::dependencies::{
    Dependency, DependencyKind, DependencyProblem, RUNNER_LABEL, ServiceAccountAnswer, each,
};
use wfe_model::workflow::Dependencies;

/// For one read, so that a review that waits for it can still say so within its own deadline.
const READ_DEADLINE: Duration = Duration::from_millis(1_500);

/// Nothing is known: the read failed. Never to be taken for "not there".
#[derive(Debug, Error)]
pub enum ReadError {
    /// By RBAC.
    #[error(
        "{what} in namespace {namespace} may not be read: allow this program's ServiceAccount to get it"
    )]
    Forbidden {
        /// Kind and name.
        what: String,
        /// Where.
        namespace: String,
    },
    /// No answer.
    #[error("{what} in namespace {namespace} was not read within {} ms", READ_DEADLINE.as_millis())]
    TimedOut {
        /// Kind and name.
        what: String,
        /// Where.
        namespace: String,
    },
    /// No answer of use.
    #[error("read {what} in namespace {namespace}")]
    Failed {
        /// Kind and name.
        what: String,
        /// Where.
        namespace: String,
        /// What the client says.
        source: Box<kube::Error>,
    },
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
        let reads = each(dependencies).map(async |dependency| self.look(&dependency).await);
        let problems = try_join_all(reads).await?;
        Ok(problems.into_iter().flatten().collect())
    }

    /// What is wrong with one dependency, if anything.
    pub async fn look(
        &self,
        dependency: &Dependency,
    ) -> Result<Option<DependencyProblem>, ReadError> {
        let (what, name) = (dependency.to_string(), &dependency.name);
        let filled = match dependency.kind {
            DependencyKind::Secret => {
                let secret = self.read(what, get(&self.secrets, name)).await?;
                secret.map(|it| it.data.is_some_and(|data| !data.is_empty()))
            }
            DependencyKind::ConfigMap => {
                let map = self.read(what, get(&self.config_maps, name)).await?;
                map.map(|it| {
                    it.data.is_some_and(|data| !data.is_empty())
                        || it.binary_data.is_some_and(|data| !data.is_empty())
                })
            }
        };
        let (dependency, namespace) = (dependency.clone(), self.namespace.clone());
        Ok(match filled {
            Some(true) => None,
            Some(false) => Some(DependencyProblem::Empty {
                dependency,
                namespace,
            }),
            None => Some(DependencyProblem::Missing {
                dependency,
                namespace,
            }),
        })
    }

    /// Whether `name` may run workflows.
    pub async fn service_account(&self, name: &str) -> Result<ServiceAccountAnswer, ReadError> {
        let what = format!("ServiceAccount {name:?}");
        let account = self
            .read(what, self.accounts.get_metadata_opt(name))
            .await?;
        let Some(account) = account else {
            return Ok(ServiceAccountAnswer::Missing);
        };
        let labels = account.metadata.labels.unwrap_or_default();
        Ok(match labels.get(RUNNER_LABEL).map(String::as_str) {
            Some("true") => ServiceAccountAnswer::Allowed,
            _ => ServiceAccountAnswer::NotLabelled,
        })
    }

    async fn read<K>(
        &self,
        what: String,
        asked: impl Future<Output = Result<Option<K>, kube::Error>>,
    ) -> Result<Option<K>, ReadError> {
        let namespace = self.namespace.clone();
        match tokio::time::timeout(READ_DEADLINE, asked).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => {
                Err(ReadError::Forbidden { what, namespace })
            }
            Ok(Err(source)) => Err(ReadError::Failed {
                what,
                namespace,
                source: Box::new(source),
            }),
            Err(_) => Err(ReadError::TimedOut { what, namespace }),
        }
    }
}

async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    api.get_opt(name).await
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// Reads of a namespace in which each object is what `answer` says of its path.
    fn reader(answer: fn(&str) -> (u16, Value)) -> DependencyReader {
        let service = tower::service_fn(move |request: Request<Body>| async move {
            if request.uri().path().ends_with("/slow") {
                std::future::pending::<()>().await;
            }
            let (code, body) = answer(request.uri().path());
            let response = Response::builder().status(code);
            Ok::<_, Infallible>(
                response
                    .body(Body::from(body.to_string().into_bytes()))
                    .expect("a response"),
            )
        });
        DependencyReader::new(&Client::new(service, "run"), "run")
    }

    fn status(code: u16, reason: &str) -> (u16, Value) {
        let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "" });
        (code, body)
    }

    fn cluster(path: &str) -> (u16, Value) {
        match path.rsplit('/').next().unwrap_or_default() {
            "full" => (
                200,
                json!({ "metadata": { "name": "full" }, "data": { "a": "YQ==" } }),
            ),
            "binary" => (
                200,
                json!({ "metadata": { "name": "binary" }, "binaryData": { "a": "YQ==" } }),
            ),
            "hollow" => (200, json!({ "metadata": { "name": "hollow" }, "data": {} })),
            "closed" => status(403, "Forbidden"),
            "broken" => status(500, "InternalError"),
            _ => status(404, "NotFound"),
        }
    }

    fn dependency(kind: DependencyKind, name: &str) -> Dependency {
        Dependency {
            kind,
            name: name.to_owned(),
        }
    }

    #[tokio::test]
    async fn br_we_014_missing_and_empty_are_told_apart_and_named() {
        let dependencies = Dependencies {
            secrets: ["full", "hollow"].map(str::to_owned).to_vec(),
            config_maps: ["binary", "absent", "hollow"].map(str::to_owned).to_vec(),
        };
        let problems = reader(cluster).check(&dependencies).await.expect("read");
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "the workflow needs the Secret \"hollow\", which has no data in namespace run: fill it",
                "the workflow needs the ConfigMap \"absent\", which does not exist in namespace run: create it",
                "the workflow needs the ConfigMap \"hollow\", which has no data in namespace run: fill it",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn br_we_014_what_cannot_be_read_is_not_called_missing() {
        let look = async |name: &str| {
            let secret = dependency(DependencyKind::Secret, name);
            reader(cluster).look(&secret).await.expect_err("not read")
        };
        assert!(matches!(look("closed").await, ReadError::Forbidden { .. }));
        assert!(matches!(look("broken").await, ReadError::Failed { .. }));
        let late = look("slow").await;
        assert!(matches!(late, ReadError::TimedOut { .. }));
        assert_eq!(
            late.to_string(),
            "Secret \"slow\" in namespace run was not read within 1500 ms"
        );
    }
}
