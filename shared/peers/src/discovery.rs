//! Caches the kinds that the cluster serves. The cache is refreshed when it is old, and when a
//! target or engine is not found in it, because a CRD may have been installed since.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use kube::core::discovery::v2::{APIGroupDiscoveryList, APIResourceDiscovery};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use thiserror::Error;
use tokio::sync::Mutex;
use wfe_model::engine::Engine;
use wfe_model::rules::Violation;
use wfe_model::served::{ServedKind, concerning, resolve};
use wfe_model::target::Target;

/// Minimum interval between two refreshes that targets or engines not found in the cache cause.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum age of the cache.
const MAX_AGE: Duration = Duration::from_mins(1);

/// It is unknown whether the cluster serves a kind.
#[derive(Debug, Error)]
pub enum DiscoveryError {
    /// The discovery request failed.
    #[error("discover the served kinds")]
    Ask(#[from] kube::Error),
    /// An aggregated API server is unavailable, and may serve the kind that was not found.
    #[error("discover the served kinds: an aggregated API server is unavailable")]
    Incomplete,
}

/// The kinds that a cluster serves.
#[derive(Clone)]
pub struct ServedKinds {
    client: Client,
    cache: Arc<ArcSwapOption<Discovery>>,
    /// Held during a refresh, so that concurrent callers share its result.
    refreshing: Arc<Mutex<()>>,
}

/// Result of a discovery.
struct Discovery {
    kinds: Vec<ServedKind>,
    /// Whether the kinds of an unavailable aggregated API server may be missing or out of date.
    incomplete: bool,
    discovered_at: Instant,
}

impl Discovery {
    fn serves(&self, target: &Target) -> bool {
        !matches!(
            resolve(target, &self.kinds, &[]),
            Err(Violation::TargetKindUnknown { .. }
                | Violation::TargetNamespaceMissing { .. }
                | Violation::TargetNamespaceForbidden { .. })
        )
    }

    fn concerning(&self, target: &Target) -> Result<Vec<ServedKind>, DiscoveryError> {
        if self.incomplete && !self.serves(target) {
            return Err(DiscoveryError::Incomplete);
        }
        Ok(concerning(target, &self.kinds))
    }

    /// Whether the cluster serves the kind that `engine` creates.
    fn serves_kind_of(&self, engine: Engine) -> bool {
        let (api_version, kind) = engine.runs_as();
        let mut kinds = self.kinds.iter();
        kinds.any(|it| it.api_version == api_version && it.kind == kind)
    }
}

impl ServedKinds {
    /// Creates an empty cache, which the first lookup fills.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            cache: Arc::default(),
            refreshing: Arc::default(),
        }
    }

    /// The kinds that decide on `target`, for [`wfe_model::served`].
    pub async fn concerning(&self, target: &Target) -> Result<Vec<ServedKind>, DiscoveryError> {
        let discovery = self.discovery_with(|it| it.serves(target)).await?;
        discovery.concerning(target)
    }

    /// Why `engine` cannot run workflows in this cluster; `None` if it can.
    pub async fn lacks(&self, engine: Engine) -> Result<Option<Violation>, DiscoveryError> {
        let serves_kind = |discovery: &Discovery| discovery.serves_kind_of(engine);
        let discovery = self.discovery_with(serves_kind).await?;
        match discovery.serves_kind_of(engine) {
            true => Ok(None),
            false if discovery.incomplete => Err(DiscoveryError::Incomplete),
            false => Ok(Some(Violation::EngineNotInstalled { engine })),
        }
    }

    /// Whether the target does not exist; `None` if that cannot be read, as without the permission.
    pub async fn is_missing(&self, target: &Target) -> Option<bool> {
        let discovery = self.discovery_with(|_| true).await.ok()?;
        let namespaced = target.namespace().is_some();
        let kind = discovery.kinds.iter().find(|it| {
            it.kind.eq_ignore_ascii_case(target.kind()) && it.namespaced == namespaced
        })?;
        let (group, version) = kind.group_version();
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: kind.api_version.clone(),
            kind: kind.kind.clone(),
            plural: kind.plural.clone(),
        };
        let client = self.client.clone();
        let api: Api<DynamicObject> = match target.namespace() {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let found = api.get_metadata_opt(target.name()).await;
        found.ok().map(|it| it.is_none())
    }

    /// The cached discovery if it is not too old and satisfies `condition`, else a new one. After a
    /// recent refresh, and if a refresh fails, the result may not satisfy `condition`.
    async fn discovery_with(
        &self,
        condition: impl Fn(&Discovery) -> bool,
    ) -> Result<Arc<Discovery>, DiscoveryError> {
        let is_usable = |discovery: &Arc<Discovery>| {
            condition(discovery) && discovery.discovered_at.elapsed() < MAX_AGE
        };
        if let Some(cached) = self.cache.load_full().filter(is_usable) {
            return Ok(cached);
        }
        let _refreshing = self.refreshing.lock().await;
        let cached = self.cache.load_full();
        let is_recent =
            |discovery: &Arc<Discovery>| discovery.discovered_at.elapsed() < MIN_REFRESH_INTERVAL;
        if let Some(cached) = cached.clone().filter(|it| is_usable(it) || is_recent(it)) {
            return Ok(cached);
        }
        match Box::pin(self.discover()).await {
            Ok(discovery) => {
                let discovery = Arc::new(discovery);
                self.cache.store(Some(discovery.clone()));
                Ok(discovery)
            }
            // An outdated discovery that satisfies the condition is better than an error.
            Err(error) => cached.filter(|it| condition(it)).ok_or(error.into()),
        }
    }

    /// Sends two requests, whatever the number of API groups.
    async fn discover(&self) -> Result<Discovery, kube::Error> {
        let (core, groups) = futures::future::try_join(
            self.client.list_core_api_versions_aggregated(),
            self.client.list_api_groups_aggregated(),
        )
        .await?;
        let lists = [core, groups];
        Ok(Discovery {
            incomplete: lists.iter().any(is_incomplete),
            kinds: lists.into_iter().flat_map(kinds).collect(),
            discovered_at: Instant::now(),
        })
    }
}

fn is_incomplete(list: &APIGroupDiscoveryList) -> bool {
    let mut versions = list.items.iter().flat_map(|group| &group.versions);
    versions.any(|version| version.freshness.as_deref() == Some("Stale"))
}

fn kinds(list: APIGroupDiscoveryList) -> impl Iterator<Item = ServedKind> {
    list.items.into_iter().flat_map(|group| {
        // The core group has no name.
        let name = group.metadata.and_then(|it| it.name).unwrap_or_default();
        group.versions.into_iter().flat_map(move |served| {
            let version = served.version.unwrap_or_default();
            let api_version = format!("{name}/{version}");
            let api_version = api_version.trim_start_matches('/').to_owned();
            let resources = served.resources.into_iter();
            resources.filter_map(move |resource| kind(resource, &api_version))
        })
    })
}

fn kind(resource: APIResourceDiscovery, api_version: &str) -> Option<ServedKind> {
    Some(ServedKind {
        api_version: api_version.to_owned(),
        kind: resource.response_kind?.kind?,
        plural: resource.resource?,
        singular: resource.singular_resource.unwrap_or_default(),
        short_names: resource.short_names,
        namespaced: resource.scope.as_deref() == Some("Namespaced"),
        readable: resource.verbs.iter().any(|it| it == "get"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(freshness: &str) -> APIGroupDiscoveryList {
        serde_json::from_value(json!({ "items": [{ "metadata": { "name": "apps" }, "versions": [{
            "version": "v1", "freshness": freshness,
            "resources": [{
                "resource": "deployments", "singularResource": "deployment", "shortNames": ["deploy"], "scope": "Namespaced", "verbs": ["get"],
                "responseKind": { "group": "", "version": "", "kind": "Deployment" },
                "subresources": [{ "subresource": "scale", "verbs": ["get"], "responseKind": { "group": "autoscaling", "version": "v1", "kind": "Scale" } }],
            }],
        }] }] }))
        .expect("a list")
    }

    fn discovery(freshness: &str) -> Discovery {
        Discovery {
            incomplete: is_incomplete(&list(freshness)),
            kinds: kinds(list(freshness)).collect(),
            discovered_at: Instant::now(),
        }
    }

    /// BR-WE-002
    #[test]
    fn engine_is_available_only_with_served_kind_and_version() {
        let mut discovery = discovery("Current");
        assert!(!discovery.serves_kind_of(Engine::Tekton));
        let run = |api_version: &str| ServedKind {
            api_version: api_version.to_owned(),
            kind: "PipelineRun".to_owned(),
            ..ServedKind::default()
        };
        discovery.kinds.push(run("tekton.dev/v1beta1"));
        assert!(!discovery.serves_kind_of(Engine::Tekton), "v1beta1");
        discovery.kinds.push(run("tekton.dev/v1"));
        assert!(discovery.serves_kind_of(Engine::Tekton));
    }

    fn target(text: &str) -> Target {
        Target::parse(text).expect("a target")
    }

    /// BR-WE-009
    #[test]
    fn kinds_are_read_without_subresources() {
        let expected = ServedKind {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            plural: "deployments".to_owned(),
            singular: "deployment".to_owned(),
            short_names: vec!["deploy".to_owned()],
            namespaced: true,
            readable: true,
        };
        assert_eq!(discovery("Current").kinds, [expected]);
    }

    /// BR-WE-009
    #[test]
    fn target_kind_not_found_in_stale_discovery_is_an_error() {
        let deployment = target("a/Deployment/x");
        let gadget = target("a/Gadget/x");
        let found = discovery("Current").concerning(&gadget).expect("complete");
        assert_eq!(found, []);
        let stale = discovery("Stale");
        assert!(matches!(
            stale.concerning(&gadget),
            Err(DiscoveryError::Incomplete)
        ));
        assert_eq!(stale.concerning(&deployment).expect("found").len(), 1);
    }
}
