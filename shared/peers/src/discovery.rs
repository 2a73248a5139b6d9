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
use wfe_model::workflow::Engine;

/// How often one wrong target after the other may have the API server asked.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long what fits is taken to be served still.
const KEPT: Duration = Duration::from_mins(1);

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

    /// What `engine` makes of a workflow is a kind like any other.
    fn runs(&self, engine: Engine) -> bool {
        let (api_version, kind) = engine.runs_as();
        let mut kinds = self.kinds.iter();
        kinds.any(|it| it.api_version == api_version && it.kind == kind)
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
        let fits = |known: &Known| misfit(target, &known.kinds).is_none();
        self.known_to(fits).await?.misfit(target)
    }

    /// Why `engine` cannot run anything in this cluster; none where it can.
    pub async fn lacks(&self, engine: Engine) -> Result<Option<Violation>, DiscoveryError> {
        let known = self.known_to(|known| known.runs(engine)).await?;
        match known.runs(engine) {
            true => Ok(None),
            false if known.incomplete => Err(DiscoveryError::Incomplete),
            false => Ok(Some(Violation::EngineNotInstalled { engine })),
        }
    }

    /// What is known, asked again where that is older than a few seconds and does not fit.
    async fn known_to(&self, fit: impl Fn(&Known) -> bool) -> Result<Arc<Known>, DiscoveryError> {
        let fresh = |known: &Arc<Known>, kept| fit(known) && known.asked.elapsed() < kept;
        if let Some(known) = self.known.load_full().filter(|it| fresh(it, KEPT)) {
            return Ok(known);
        }
        let _asking = self.asking.lock().await;
        let known = self.known.load_full();
        let just_asked = |known: &Arc<Known>| known.asked.elapsed() < ASK_AGAIN;
        if let Some(known) = known.clone().filter(|it| fresh(it, KEPT) || just_asked(it)) {
            return Ok(known);
        }
        match Box::pin(self.ask()).await {
            Ok(asked) => {
                let asked = Arc::new(asked);
                self.known.store(Some(asked.clone()));
                Ok(asked)
            }
            // Better old than nothing, where it says yes.
            Err(error) => known.filter(|known| fit(known)).ok_or(error.into()),
        }
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
        .expect("as the API server says it")
    }

    fn known(freshness: &str) -> Known {
        Known {
            incomplete: is_incomplete(&list(freshness)),
            kinds: kinds(list(freshness)).collect(),
            asked: Instant::now(),
        }
    }

    #[test]
    fn br_we_002_an_engine_is_there_when_its_kind_is_served() {
        let mut known = known("Current");
        assert!(!known.runs(Engine::Tekton));
        let run = |api_version: &str| ServedKind {
            api_version: api_version.to_owned(),
            kind: "PipelineRun".to_owned(),
            ..ServedKind::default()
        };
        known.kinds.push(run("tekton.dev/v1beta1"));
        assert!(!known.runs(Engine::Tekton), "another version");
        known.kinds.push(run("tekton.dev/v1"));
        assert!(known.runs(Engine::Tekton));
    }

    fn target(text: &str) -> Target {
        Target::parse(text).expect("a target")
    }

    #[test]
    fn br_we_009_kinds_are_read_as_they_are_served_without_subresources() {
        let expected = ServedKind {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            plural: "deployments".to_owned(),
            singular: "deployment".to_owned(),
            short_names: vec!["deploy".to_owned()],
            namespaced: true,
        };
        assert_eq!(known("Current").kinds, [expected]);
    }

    #[test]
    fn br_we_009_what_an_absent_api_may_serve_is_not_called_unknown() {
        let right = target("a/Deployment/x");
        let gadget = target("a/Gadget/x");
        let misfit = known("Current").misfit(&gadget).expect("known");
        assert!(matches!(misfit, Some(Violation::TargetKindUnknown { .. })));
        let stale = known("Stale");
        assert!(matches!(
            stale.misfit(&gadget),
            Err(DiscoveryError::Incomplete)
        ));
        assert!(matches!(stale.misfit(&right), Ok(None)));
    }
}
