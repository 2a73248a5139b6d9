//! Checks the Secrets, ConfigMaps and the ServiceAccount of a workflow in the execution namespace.
//!
//! Objects are read from the API server without a cache and with the verb `get` only, so that no
//! permission to list Secrets is needed.

use std::fmt::Debug;
use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use thiserror::Error;
use wfe_model::dependencies::{
    Dependency, DependencyKind, DependencyProblem, RESERVED_SECRET_TYPES, RUNNER_LABEL,
    ServiceAccountAnswer, each,
};
use wfe_model::workflow::Dependencies;

/// The read failed, so that it is unknown whether the object exists.
#[derive(Debug, Error)]
pub enum ReadError {
    /// RBAC denies the read.
    #[error(
        "get {what} in namespace {namespace} is forbidden: grant the verb get to this component's ServiceAccount"
    )]
    Forbidden {
        /// Kind and name of the object.
        what: String,
        /// Namespace of the object.
        namespace: String,
    },
    /// The API server did not respond in time.
    #[error("get {what} in namespace {namespace}: no response within {} ms", deadline.as_millis())]
    TimedOut {
        /// Kind and name of the object.
        what: String,
        /// Namespace of the object.
        namespace: String,
        /// Deadline of the read.
        deadline: Duration,
    },
    /// The request failed.
    #[error("get {what} in namespace {namespace}")]
    Failed {
        /// Kind and name of the object.
        what: String,
        /// Namespace of the object.
        namespace: String,
        /// The error of the client.
        source: Box<kube::Error>,
    },
}

/// Reads dependencies from one namespace.
#[derive(Clone)]
pub struct DependencyReader {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    accounts: Api<ServiceAccount>,
    namespace: String,
    deadline: Duration,
}

impl DependencyReader {
    /// Creates a reader for `namespace`, the execution namespace; each read has `deadline`.
    pub fn new(client: &Client, namespace: &str, deadline: Duration) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client.clone(), namespace),
            accounts: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            deadline,
        }
    }

    /// All dependencies that are missing or empty. They are read concurrently.
    pub async fn check(
        &self,
        dependencies: &Dependencies,
    ) -> Result<Vec<DependencyProblem>, ReadError> {
        let reads = each(dependencies).map(async |dependency| self.look(&dependency).await);
        let problems = try_join_all(reads).await?;
        Ok(problems.into_iter().flatten().collect())
    }

    /// Whether one dependency is missing or empty, or of a type that workflows do not get.
    pub async fn look(
        &self,
        dependency: &Dependency,
    ) -> Result<Option<DependencyProblem>, ReadError> {
        let (what, name) = (dependency.to_string(), &dependency.name);
        let has_data = match dependency.kind {
            DependencyKind::Secret => {
                let secret = self.read(what, get(&self.secrets, name)).await?;
                let of_type = secret.as_ref().and_then(|it| it.type_.clone());
                if let Some(of_type) =
                    of_type.filter(|it| RESERVED_SECRET_TYPES.contains(&it.as_str()))
                {
                    return Ok(Some(DependencyProblem::Reserved {
                        dependency: dependency.clone(),
                        namespace: self.namespace.clone(),
                        of_type,
                    }));
                }
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
        Ok(match has_data {
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

    /// Whether the ServiceAccount `name` may run workflows.
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
        request: impl Future<Output = Result<Option<K>, kube::Error>>,
    ) -> Result<Option<K>, ReadError> {
        let namespace = self.namespace.clone();
        match tokio::time::timeout(self.deadline, request).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => {
                Err(ReadError::Forbidden { what, namespace })
            }
            Ok(Err(source)) => Err(ReadError::Failed {
                what,
                namespace,
                source: Box::new(source),
            }),
            Err(_) => Err(ReadError::TimedOut {
                what,
                namespace,
                deadline: self.deadline,
            }),
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

    const DEADLINE: Duration = Duration::from_millis(1_500);

    /// A reader whose API server responds to each path with the result of `respond`.
    fn reader(respond: fn(&str) -> (u16, Value)) -> DependencyReader {
        let service = tower::service_fn(move |request: Request<Body>| async move {
            if request.uri().path().ends_with("/slow") {
                std::future::pending::<()>().await;
            }
            let (code, body) = respond(request.uri().path());
            let response = Response::builder().status(code);
            Ok::<_, Infallible>(
                response
                    .body(Body::from(body.to_string().into_bytes()))
                    .expect("a response"),
            )
        });
        DependencyReader::new(&Client::new(service, "run"), "run", DEADLINE)
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
            "token" => (
                200,
                json!({ "metadata": { "name": "token" }, "type": "kubernetes.io/service-account-token", "data": { "a": "YQ==" } }),
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

    /// BR-WE-014
    #[tokio::test]
    async fn check_missing_and_empty_dependencies_reports_each() {
        let dependencies = Dependencies {
            secrets: ["full", "hollow", "token"].map(str::to_owned).to_vec(),
            config_maps: ["binary", "absent", "hollow"].map(str::to_owned).to_vec(),
        };
        let problems = reader(cluster).check(&dependencies).await.expect("read");
        let messages: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "required Secret \"hollow\" in namespace run has no data: add data to it",
                "required Secret \"token\" in namespace run has the type kubernetes.io/service-account-token, which workflows do not get: use another Secret",
                "required ConfigMap \"absent\" not found in namespace run: create it",
                "required ConfigMap \"hollow\" in namespace run has no data: add data to it",
            ]
        );
    }

    /// BR-WE-014
    #[tokio::test(start_paused = true)]
    async fn look_failed_read_is_an_error_not_missing() {
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
            "get Secret \"slow\" in namespace run: no response within 1500 ms"
        );
    }
}
