//! What both reconcilers have in common: the namespaces that they watch, and how they ask the catalog.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::future::join_all;
use futures::{Stream, StreamExt};
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::{self, Config};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::Mutex;
use wfe_model::text::in_full;
use wfe_peers::catalog::{Catalog, Lookup, LookupError};
use wfe_peers::client::WATCH_SECONDS;

/// Objects that a reconciler handles at the same time.
const CONCURRENCY: u16 = 8;

/// Steps of a pass at most: each pass has fewer.
pub const MAX_STEPS: usize = 8;
/// Delays between passes that fail in a row, with jitter.
const MIN_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(30);

/// Delays of the passes that are repeated, by the uid of the object.
#[derive(Default)]
pub struct Delays(Mutex<HashMap<String, ExponentialBackoff>>);

impl Delays {
    /// When the next pass of an object is due.
    pub fn next(&self, object: &impl ResourceExt) -> Duration {
        let builder = ExponentialBuilder::default()
            .with_min_delay(MIN_DELAY)
            .with_max_delay(MAX_DELAY)
            .with_jitter()
            .without_max_times();
        let mut delays = self.0.lock();
        let delays = delays.entry(object.uid().unwrap_or_default());
        let next = delays.or_insert_with(|| builder.build()).next();
        next.unwrap_or(MAX_DELAY)
    }

    /// A pass of the object has succeeded.
    pub fn reset(&self, object: &impl ResourceExt) {
        self.0.lock().remove(&object.uid().unwrap_or_default());
    }
}

/// A namespace, or all.
#[derive(Clone, Copy)]
pub struct Scope<'a>(Option<&'a str>);

impl<'a> Scope<'a> {
    /// Runs `watch` for each of the namespaces, for all if there are none.
    pub async fn each<F: Future<Output = ()>>(namespaces: &'a [String], watch: impl Fn(Self) -> F) {
        let all = namespaces.is_empty().then_some(Self(None));
        let some = namespaces.iter().map(|it| Self(Some(it)));
        join_all(all.into_iter().chain(some).map(watch)).await;
    }

    /// The objects in the namespace.
    pub fn api<K>(self, client: &Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match self.0 {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }

    /// How objects are watched.
    pub fn watches() -> watcher::Config {
        watcher::Config::default().timeout(WATCH_SECONDS)
    }

    /// How objects are reconciled.
    pub fn config() -> Config {
        Config::default().concurrency(CONCURRENCY)
    }

    /// Runs passes until there are no more. Failed passes are logged where they are repeated.
    pub async fn drain<T, E: Error + 'static>(
        passes: impl Stream<Item = Result<T, controller::Error<E, watcher::Error>>>,
    ) {
        let log = async |pass| {
            if let Err(controller::Error::QueueError(error)) = pass {
                let error = in_full(&error);
                tracing::warn!(error, "watch of the platform's resources failed, retrying");
            }
        };
        passes.for_each(log).await;
    }
}

/// Looks up a workflow. A refusal does not rest on an old answer.
pub async fn look_up(catalog: &dyn Catalog, workflow_id: &str) -> Lookup {
    match catalog.lookup(workflow_id).await {
        Err(LookupError::Unusable(_)) => catalog.lookup_now(workflow_id).await,
        answer => answer,
    }
}
