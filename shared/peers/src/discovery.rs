//! Which kinds the cluster serves: asked once, and again when something does not fit (a CRD may
//! have been installed since).

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use kube::Client;
use kube::core::discovery::v2::{APIGroupDiscoveryList, APIResourceDiscovery};
use thiserror::Error;
use tokio::sync::Mutex;
use wfe_model::rules::Violation;
use wfe_model::target::{ServedKind, Target, misfit};

/// How often one wrong target after the other may have the API server asked.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// It is not known what the cluster serves.
#[derive(Debug, Error)]
pub enum DiscoveryError {
    /// The API server did not answer.
    #[error("ask which kinds are served")]
    Ask(#[from] kube::Error),
    /// An aggregated API server is away: its kinds may be the ones that are missing.
    #[error("ask which kinds are served: an aggregated API is not available")]
    Incomplete,
}

/// The kinds of one cluster.
#[derive(Clone)]
pub struct ServedKinds {
    client: Client,
    known: Arc<ArcSwapOption<Known>>,
    /// Who asks: others wait for the answer instead of asking, too.
    asking: Arc<Mutex<()>>,
}

struct Known {
    kinds: Vec<ServedKind>,
    incomplete: bool,
    asked: Instant,
}

impl Known {
    fn misfit(&self, target: &Target) -> Result<Option<Violation>, DiscoveryError> {
        match misfit(target, &self.kinds) {
            Some(_) if self.incomplete => Err(DiscoveryError::Incomplete),
            answer => Ok(answer),
        }
    }

    fn fits(&self, target: &Target) -> bool {
        misfit(target, &self.kinds).is_none()
    }
}

impl ServedKinds {
    /// Nothing is asked yet.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            known: Arc::default(),
            asking: Arc::default(),
        }
    }

    /// Why `target` cannot be one in this cluster; none where it can.
    pub async fn misfit(&self, target: &Target) -> Result<Option<Violation>, DiscoveryError> {
        let fits = |known: &Arc<Known>| known.fits(target);
        if self.known.load_full().as_ref().is_some_and(fits) {
            return Ok(None);
        }
        let _asking = self.asking.lock().await;
        let fresh = |known: &Arc<Known>| known.fits(target) || known.asked.elapsed() < ASK_AGAIN;
        if let Some(known) = self.known.load_full().filter(fresh) {
            return known.misfit(target);
        }
        let known = Arc::new(self.ask().await?);
        self.known.store(Some(known.clone()));
        known.misfit(target)
    }

    /// Two requests, whatever the number of groups.
    async fn ask(&self) -> Result<Known, kube::Error> {
        let (core, groups) = futures::future::try_join(
            self.client.list_core_api_versions_aggregated(),
            self.client.list_api_groups_aggregated(),
        )
        .await?;
        let lists = [core, groups];
        Ok(Known {
            incomplete: lists.iter().any(is_incomplete),
            kinds: lists.into_iter().flat_map(kinds).collect(),
            asked: Instant::now(),
        })
    }
}

fn is_incomplete(list: &APIGroupDiscoveryList) -> bool {
    let mut versions = list.items.iter().flat_map(|group| &group.versions);
    versions.any(|version| version.freshness.as_deref() == Some("Stale"))
}

fn kinds(list: APIGroupDiscoveryList) -> impl Iterator<Item = ServedKind> {
    let versions = list.items.into_iter().flat_map(|group| group.versions);
    versions
        .flat_map(|version| version.resources)
        .filter_map(kind)
}

fn kind(resource: APIResourceDiscovery) -> Option<ServedKind> {
    Some(ServedKind {
        kind: resource.response_kind?.kind?,
        plural: resource.resource?,
        singular: resource.singular_resource.unwrap_or_default(),
        short_names: resource.short_names,
        namespaced: resource.scope.as_deref() == Some("Namespaced"),
    })
}
