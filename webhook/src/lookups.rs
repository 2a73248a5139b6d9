//! Reads Secrets, ConfigMaps and ServiceAccounts of the execution namespace for reviews.
//!
//! Concurrent reviews share one read of the same object, and a positive answer is cached for a few
//! seconds. A negative answer is not cached, so that a retry succeeds as soon as the missing object
//! is created.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use moka::future::Cache;
use tokio_util::sync::CancellationToken;
use wfe_model::dependencies::{Dependency, DependencyProblem, RUNNER_LABEL, ServiceAccountAnswer};
use wfe_peers::client::WATCH_SECONDS;
use wfe_peers::dependencies::{DependencyReader, ReadError};

/// Deadline of one read, short enough for a review to report it within its own deadline.
const READ_DEADLINE: Duration = Duration::from_millis(1_500);
/// How long a positive answer is cached. A stale answer is harmless: the controller reads the
/// dependencies again before it creates the Job or PipelineRun.
const ANSWER_TTL: Duration = Duration::from_secs(3);
/// Bounds the memory of the cache.
const MAX_CACHED_ANSWERS: u64 = 10_000;

type Account = PartialObjectMeta<ServiceAccount>;

/// Cached reads and a ServiceAccount watch in the execution namespace.
pub struct Lookups {
    reader: DependencyReader,
    namespace: String,
    /// Dependencies that exist and have data.
    ready_dependencies: Cache<Dependency, ()>,
    /// The watched ServiceAccounts: those with the label `RUNNER_LABEL`.
    accounts: Store<Account>,
    /// Whether the ServiceAccount watch has delivered an event since its last failure.
    watch_healthy: Arc<AtomicBool>,
}

/// Why a dependency is not ready.
enum NotReady {
    Problem(DependencyProblem),
    ReadFailed(Arc<ReadError>),
}

impl Lookups {
    /// Starts the ServiceAccount watch, which runs until `stop` is cancelled.
    pub fn start(client: &Client, namespace: &str, stop: CancellationToken) -> Self {
        let writer = reflector::store::Writer::<Account>::default();
        let accounts = writer.as_reader();
        let api: Api<Account> = Api::namespaced(client.clone(), namespace);
        let every = watcher::Config::default().timeout(WATCH_SECONDS);
        let labelled = every.labels(&format!("{RUNNER_LABEL}=true"));
        let watch_healthy = Arc::new(AtomicBool::new(false));
        let healthy = watch_healthy.clone();
        let watch = watcher(api, labelled)
            .default_backoff()
            .modify(|account| account.metadata.managed_fields = None)
            .reflect(writer)
            .take_until(stop.cancelled_owned())
            .for_each(move |event| {
                match event {
                    // The store is replaced only when the initial list is complete (`InitDone`).
                    Ok(Event::Init | Event::InitApply(_)) => {}
                    Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {
                        healthy.store(true, Ordering::Relaxed);
                    }
                    Err(error) => {
                        healthy.store(false, Ordering::Relaxed);
                        tracing::warn!(%error, "watch of ServiceAccounts failed, retrying; reviews read ServiceAccounts one by one until the watch recovers");
                    }
                }
                std::future::ready(())
            });
        tokio::spawn(watch);
        Self {
            reader: DependencyReader::new(client, namespace, READ_DEADLINE),
            namespace: namespace.to_owned(),
            ready_dependencies: Cache::builder()
                .time_to_live(ANSWER_TTL)
                .max_capacity(MAX_CACHED_ANSWERS)
                .build(),
            accounts,
            watch_healthy,
        }
    }

    /// The problem of a dependency: missing or without data. `None` if the dependency is ready.
    pub async fn dependency(
        &self,
        dependency: &Dependency,
    ) -> Result<Option<DependencyProblem>, Arc<ReadError>> {
        let read = Box::pin(async {
            match self.reader.look(dependency).await {
                Ok(None) => Ok(()),
                Ok(Some(problem)) => Err(NotReady::Problem(problem)),
                Err(error) => Err(NotReady::ReadFailed(Arc::new(error))),
            }
        });
        let answer = self
            .ready_dependencies
            .try_get_with_by_ref(dependency, read)
            .await;
        answer.map_or_else(
            |why: Arc<NotReady>| match why.as_ref() {
                NotReady::Problem(problem) => Ok(Some(problem.clone())),
                NotReady::ReadFailed(error) => Err(error.clone()),
            },
            |()| Ok(None),
        )
    }

    /// Why a ServiceAccount may not run workflows; `None` if it may. A ServiceAccount that the
    /// watch has not delivered is read from the API server, since the watch may lag behind a
    /// create.
    pub async fn account_refusal(&self, name: &str) -> Result<Option<String>, ReadError> {
        let key = ObjectRef::new(name).within(&self.namespace);
        let is_watched = || self.accounts.get(&key).is_some();
        let answer = if self.watch_healthy.load(Ordering::Relaxed) && is_watched() {
            ServiceAccountAnswer::Allowed
        } else {
            Box::pin(self.reader.service_account(name)).await?
        };
        Ok(answer.refusal(name, &self.namespace))
    }
}
