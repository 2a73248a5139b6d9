//! Watches a kind only while its CRD exists: an engine may be installed and removed at any time, and
//! a watch of a kind that is not served only fails.

use std::fmt::Debug;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::runtime::WatchStreamExt;
use kube::runtime::wait::Condition;
use kube::runtime::wait::conditions::is_crd_established;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::owner_labels::{every, managed};

/// Whether a version of a CRD is served, by a watch of the CRD.
pub struct ServedCrd {
    name: &'static str,
    api: Api<CustomResourceDefinition>,
    /// `None` until the first answer of the API server.
    served: watch::Receiver<Option<bool>>,
}

impl ServedCrd {
    /// Watches the CRD with this name. The watch makes progress only while the returned stream, which
    /// yields failures of the watch, is polled.
    pub fn watch(
        client: &Client,
        name: &'static str,
        version: &'static str,
    ) -> (Self, impl Stream<Item = watcher::Error> + Send + use<>) {
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        let only = every().fields(&format!("metadata.name={name}"));
        let (set, served) = watch::channel(None);
        let mut listed = false;
        let events = watcher(api.clone(), only).default_backoff();
        let failures = events.filter_map(move |event| {
            let served = |crd: &CustomResourceDefinition| serves(crd, version);
            let now = match &event {
                Ok(Event::Init) => {
                    listed = false;
                    None
                }
                Ok(Event::InitApply(crd)) => {
                    listed = served(crd);
                    None
                }
                Ok(Event::InitDone) => Some(listed),
                Ok(Event::Apply(crd)) => Some(served(crd)),
                Ok(Event::Delete(_)) => Some(false),
                Err(_) => None,
            };
            if let Some(served) = now {
                let changed = set.send_if_modified(|it| it.replace(served) != Some(served));
                if changed {
                    tracing::info!(crd = name, version, served, "CRD checked");
                }
            }
            std::future::ready(event.err())
        });
        (Self { name, api, served }, failures)
    }

    /// Whether the version is served, as last seen.
    pub fn is_served(&self) -> bool {
        *self.served.borrow() == Some(true)
    }

    /// Reads from the API server whether the CRD does not exist. Deleting a CRD deletes all its
    /// objects before.
    pub async fn is_confirmed_gone(&self) -> kube::Result<bool> {
        Ok(self.api.get_metadata_opt(self.name).await?.is_none())
    }

    /// Events of the controller's objects in `api` while the version is served, and an empty list
    /// whenever it is not.
    pub fn watch_while_served<K>(
        &self,
        api: Api<K>,
    ) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
    where
        K: Clone + Debug + DeserializeOwned + Resource + Send + 'static,
    {
        let events = move |served: Option<bool>| -> BoxStream<'static, watcher::Result<Event<K>>> {
            match served {
                None => stream::pending().boxed(),
                Some(true) => watcher(api.clone(), managed()).default_backoff().boxed(),
                Some(false) => stream::iter([Ok(Event::Init), Ok(Event::InitDone)])
                    .chain(stream::pending())
                    .boxed(),
            }
        };
        let mut served = self.served.clone();
        let current = events(*served.borrow_and_update());
        stream::unfold(
            (served, current, events),
            async |(mut served, mut current, events)| loop {
                tokio::select! {
                    // An error means that the watch of the CRD has ended, with the process.
                    Ok(()) = served.changed() => current = events(*served.borrow_and_update()),
                    Some(event) = current.next() => return Some((event, (served, current, events))),
                }
            },
        )
    }
}

fn serves(crd: &CustomResourceDefinition, version: &str) -> bool {
    let mut versions = crd.spec.versions.iter();
    versions.any(|it| it.name == version && it.served)
        && is_crd_established().matches_object(Some(crd))
}
