//! Reads Secrets, ConfigMaps and ServiceAccounts of the execution namespace for reviews.
//!
//! Concurrent reviews share one read of the same object, and a positive answer is cached for a few
//! seconds. A negative answer is cached for a second, so that reviews cannot cause a read each, and a
//! retry succeeds soon after the missing object is created. The number of reads at a time is limited.

use std::hash::Hash;
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
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use wfe_model::dependencies::{Dependency, DependencyProblem, RUNNER_LABEL, ServiceAccountAnswer};
use wfe_peers::client::WATCH_SECONDS;
use wfe_peers::dependencies::{DependencyReader, ReadError};

/// Deadline of one read, short enough for a review to report it within its own deadline.
const READ_DEADLINE: Duration = Duration::from_millis(1_500);
/// How long a positive answer is cached. A stale answer is harmless: the controller reads the
/// dependencies again before it creates the Job or PipelineRun.
const ANSWER_TTL: Duration = Duration::from_secs(3);
/// How long a negative answer is cached.
const PROBLEM_TTL: Duration = Duration::from_secs(1);
/// Reads at a time.
const MAX_READS: usize = 64;
/// Bounds the memory of the cache.
const MAX_CACHED_ANSWERS: u64 = 10_000;

type Account = PartialObjectMeta<ServiceAccount>;

/// Cached reads and a ServiceAccount watch in the execution namespace.
pub struct Lookups {
    reader: DependencyReader,
    namespace: String,
    /// Dependencies that exist and have data.
    ready_dependencies: Cache<Dependency, ()>,
    /// Dependencies that are not ready, and ServiceAccounts that may not run workflows.
    problems: Cache<Dependency, DependencyProblem>,
    account_refusals: Cache<String, ServiceAccountAnswer>,
    reads: Semaphore,
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
            ready_dependencies: cache(ANSWER_TTL),
            problems: cache(PROBLEM_TTL),
            account_refusals: cache(PROBLEM_TTL),
            reads: Semaphore::new(MAX_READS),
            accounts,
            watch_healthy,
        }
    }

    /// The problem of a dependency: missing or without data. `None` if the dependency is ready.
    pub async fn dependency(
        &self,
        dependency: &Dependency,
    ) -> Result<Option<DependencyProblem>, Arc<ReadError>> {
        if self.ready_dependencies.contains_key(dependency) {
            return Ok(None);
        }
        if let Some(problem) = self.problems.get(dependency).await {
            return Ok(Some(problem));
        }
        let read = Box::pin(async {
            let _turn = self.reads.acquire().await;
            match self.reader.look(dependency).await {
                Ok(None) => Ok(()),
                Ok(Some(problem)) => {
                    let (key, known) = (dependency.clone(), problem.clone());
                    self.problems.insert(key, known).await;
                    Err(NotReady::Problem(problem))
                }
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
        } else if let Some(refused) = self.account_refusals.get(name).await {
            refused
        } else {
            let _turn = self.reads.acquire().await;
            let read = Box::pin(self.reader.service_account(name)).await?;
            if read != ServiceAccountAnswer::Allowed {
                let refused = read.clone();
                self.account_refusals.insert(name.to_owned(), refused).await;
            }
            read
        };
        Ok(answer.refusal(name, &self.namespace))
    }
}

/// A cache of answers that are used for `lifetime`.
pub(crate) fn cache<K, V>(lifetime: Duration) -> Cache<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let bounded = Cache::builder().max_capacity(MAX_CACHED_ANSWERS);
    bounded.time_to_live(lifetime).build()
}
