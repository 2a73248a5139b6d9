//! Waiting for what the API server will say, by watch and with a deadline that explains itself.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Result, anyhow};
use futures::{StreamExt, TryStreamExt, future};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The first version of the object `name` that fits `condition`.
///
/// `what` says what is waited for. At the deadline the error has it, and the object as it was last
/// seen.
pub async fn until<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    deadline: Duration,
    condition: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: Clone + Debug + DeserializeOwned + Resource + Send + Serialize + 'static,
{
    let mut last = None;
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let objects = watcher(api.clone(), config)
        .default_backoff()
        .applied_objects();
    let found = objects
        .inspect_ok(|object| last = Some(object.clone()))
        .try_filter(|object| future::ready(condition(object)));
    let mut found = Box::pin(found);
    match tokio::time::timeout(deadline, found.next()).await {
        Ok(Some(object)) => Ok(object?),
        Ok(None) => Err(anyhow!("the watch for {name} ended before: {what}")),
        Err(_) => {
            drop(found);
            let seen = match last {
                Some(object) => serde_json::to_string_pretty(&object)?,
                None => "it was never there".to_owned(),
            };
            Err(anyhow!(
                "not within {} s: {what}. {name} as last seen: {seen}",
                deadline.as_secs()
            ))
        }
    }
}

/// Until the object `name` is not there any more.
pub async fn gone<K>(api: &Api<K>, name: &str, deadline: Duration) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned + Resource + Send + Serialize + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut last = None;
    let mut events = Box::pin(watcher(api.clone(), config).default_backoff());
    let vanished = async {
        let mut listed = None;
        while let Some(event) = events.next().await {
            match event? {
                watcher::Event::Init => listed = None,
                watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                    listed = Some(object);
                }
                watcher::Event::Delete(_) => return Ok(()),
                watcher::Event::InitDone if listed.is_none() => return Ok(()),
                watcher::Event::InitDone => {}
            }
            last.clone_from(&listed);
        }
        Err(anyhow!("the watch for {name} ended before it was gone"))
    };
    if let Ok(result) = tokio::time::timeout(deadline, vanished).await {
        return result;
    }
    let seen = serde_json::to_string_pretty(&last)?;
    Err(anyhow!(
        "{name} is not gone after {} s, as last seen: {seen}",
        deadline.as_secs()
    ))
}
