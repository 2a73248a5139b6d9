//! Shows each object that has changed to a service.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use thiserror::Error;

const RETRY_DELAY: Duration = Duration::from_secs(2);

#[derive(Debug, Error)]
#[error("{0:#}")]
struct Failure(anyhow::Error);

/// What a service does about an object.
pub(crate) trait Handle<K>: Send + Sync + 'static {
    /// Handles the object. Must be idempotent: it is called again after a crash.
    fn handle(&self, object: &K) -> impl Future<Output = Result<()>> + Send;
}

/// Shows each object of `api` to `service` at the start and after each change, one at a time; again when it
/// fails. Ends with the process.
pub(crate) async fn reconcile_each<K, S>(api: Api<K>, service: S)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    S: Handle<K>,
{
    let reconcile = |object: Arc<K>, service: Arc<S>| async move {
        service.handle(&object).await.map_err(Failure)?;
        Ok(Action::await_change())
    };
    let retry = |object: Arc<K>, error: &Failure, _: Arc<S>| {
        tracing::warn!(object = object.name_any(), %error, "reconcile failed, requeueing");
        Action::requeue(RETRY_DELAY)
    };
    Controller::new(api, watcher::Config::default())
        .with_config(Config::default().concurrency(1))
        .run(reconcile, retry, Arc::new(service))
        .for_each(async |result| {
            if let Err(error) = result {
                tracing::debug!(%error, "not reconciled");
            }
        })
        .await;
}
