//! What a review asks of the execution namespace, as seldom as can be: the same question is asked
//! once however many reviews wait for it, and a good answer is kept for a few seconds. A bad one is
//! not kept: whoever mends what was missing is not told twice that it is.

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
use wfe_peers::dependencies::{DependencyReader, ReadError};

/// How long what was there is taken to be there still; the controller looks again before it runs.
const KEPT: Duration = Duration::from_secs(3);
/// Most answers kept.
const MOST: u64 = 10_000;

type Account = PartialObjectMeta<ServiceAccount>;

/// Reads in the execution namespace.
pub struct Lookups {
    reader: DependencyReader,
    namespace: String,
    filled: Cache<Dependency, ()>,
    /// Those that may run workflows, as far as the watch has heard.
    accounts: Store<Account>,
    /// Whether the watch has heard something since it failed.
    current: Arc<AtomicBool>,
}

/// Why a dependency is not known to be as it must be.
enum NotFilled {
    Problem(DependencyProblem),
    Unread(Arc<ReadError>),
}

impl Lookups {
    /// Reads, and watches ServiceAccounts until `stop`.
    pub fn start(client: &Client, namespace: &str, stop: CancellationToken) -> Self {
        let writer = reflector::store::Writer::<Account>::default();
        let accounts = writer.as_reader();
        let api: Api<Account> = Api::namespaced(client.clone(), namespace);
        let labelled = watcher::Config::default().labels(&format!("{RUNNER_LABEL}=true"));
        let current = Arc::new(AtomicBool::new(false));
        let hears = current.clone();
        let watch = watcher(api, labelled)
            .default_backoff()
            .modify(|account| account.metadata.managed_fields = None)
            .reflect(writer)
            .take_until(stop.cancelled_owned())
            .for_each(move |event| {
                match event {
                    // A list that is being read says nothing yet.
                    Ok(Event::Init | Event::InitApply(_)) => {}
                    Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {
                        hears.store(true, Ordering::Relaxed);
                    }
                    Err(error) => {
                        hears.store(false, Ordering::Relaxed);
                        tracing::warn!(%error, "the watch of ServiceAccounts failed and is begun again: meanwhile they are read one by one");
                    }
                }
                std::future::ready(())
            });
        tokio::spawn(watch);
        Self {
            reader: DependencyReader::new(client, namespace),
            namespace: namespace.to_owned(),
            filled: Cache::builder()
                .time_to_live(KEPT)
                .max_capacity(MOST)
                .build(),
            accounts,
            current,
        }
    }

    /// What is wrong with a dependency, if anything.
    pub async fn dependency(
        &self,
        dependency: &Dependency,
    ) -> Result<Option<DependencyProblem>, Arc<ReadError>> {
        let read = Box::pin(async {
            match self.reader.look(dependency).await {
                Ok(None) => Ok(()),
                Ok(Some(problem)) => Err(NotFilled::Problem(problem)),
                Err(error) => Err(NotFilled::Unread(Arc::new(error))),
            }
        });
        let answer = self.filled.try_get_with_by_ref(dependency, read).await;
        answer.map_or_else(
            |why: Arc<NotFilled>| match why.as_ref() {
                NotFilled::Problem(problem) => Ok(Some(problem.clone())),
                NotFilled::Unread(error) => Err(error.clone()),
            },
            |()| Ok(None),
        )
    }

    /// Why a ServiceAccount may not run workflows, if so. What the watch has not heard of is read.
    pub async fn account_refusal(&self, name: &str) -> Result<Option<String>, ReadError> {
        let key = ObjectRef::new(name).within(&self.namespace);
        let heard_of = || self.accounts.get(&key).is_some();
        let answer = if self.current.load(Ordering::Relaxed) && heard_of() {
            ServiceAccountAnswer::Allowed
        } else {
            Box::pin(self.reader.service_account(name)).await?
        };
        Ok(answer.refusal(name, &self.namespace))
    }
}
