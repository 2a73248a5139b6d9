//! Shows each object that has changed to a service.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use kube::runtime::controller::{Action, Controller};
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
    /// Does it. It may have been done before.
    fn handle(&self, object: &K) -> impl Future<Output = Result<()>> + Send;
}

/// Shows each object of `api` to `service` at the start and after each change; again when it fails. Ends
/// with the process.
pub(crate) async fn each<K, S>(api: Api<K>, service: S)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    S: Handle<K>,
{
    let reconcile = |object: Arc<K>, service: Arc<S>| async move {
        service.handle(&object).await.map_err(Failure)?;
        Ok(Action::await_change())
    };
    let retry = |object: Arc<K>, error: &Failure, _: Arc<S>| {
        tracing::warn!(object = object.name_any(), %error, "failed, trying again");
        Action::requeue(RETRY_DELAY)
    };
    Controller::new(api, watcher::Config::default())
        .run(reconcile, retry, Arc::new(service))
        .for_each(async |_| {})
        .await;
}
