//! Waits for a state of an object by a watch; at the deadline, the error contains the object.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Waits until the object `name` meets `condition`, and returns it.
///
/// At the deadline, the error contains `what`, which describes the condition, and the object as
/// last seen.
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
    let meets = |object: Option<&K>| object.filter(|object| condition(object)).cloned();
    watch_object(api, name, what, deadline, meets).await
}

/// Waits until some object of `api` meets `condition`, and returns it.
pub async fn any<K>(
    api: &Api<K>,
    what: &str,
    deadline: Duration,
    condition: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: Clone + Debug + DeserializeOwned + Resource + Send + Serialize + 'static,
{
    let events = watcher(api.clone(), watcher::Config::default()).default_backoff();
    let mut objects = Box::pin(events.applied_objects());
    let mut last = None;
    let watching = async {
        while let Some(object) = objects.next().await {
            let Ok(object) = object else { continue };
            if condition(&object) {
                return Some(object);
            }
            last = Some(object);
        }
        None
    };
    if let Ok(Some(found)) = tokio::time::timeout(deadline, watching).await {
        return Ok(found);
    }
    let last = serde_json::to_string_pretty(&last)?;
    let seconds = deadline.as_secs();
    bail!("not within {seconds} s: {what}. The last object that has changed: {last}")
}

/// Waits until the object `name` does not exist.
pub async fn gone<K>(api: &Api<K>, name: &str, deadline: Duration) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned + Resource + Send + Serialize + 'static,
{
    let absent = |object: Option<&K>| object.is_none().then_some(());
    watch_object(api, name, "the object is gone", deadline, absent).await
}

/// Calls `judge` with the object, or its absence, at each change, until it returns a value.
/// Restarts a failed watch; the error at the deadline contains the last failure.
async fn watch_object<K, T>(
    api: &Api<K>,
    name: &str,
    what: &str,
    deadline: Duration,
    judge: impl Fn(Option<&K>) -> Option<T>,
) -> Result<T>
where
    K: Clone + Debug + DeserializeOwned + Resource + Send + Serialize + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = Box::pin(watcher(api.clone(), config).default_backoff());
    let (mut current, mut failed) = (None, String::new());
    let watching = async {
        let mut listed = None;
        while let Some(event) = events.next().await {
            // During the initial list, the object may be missing from the items so far.
            let settled = matches!(
                event,
                Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_))
            );
            match event {
                Ok(Event::Init) => listed = None,
                Ok(Event::InitApply(object)) => listed = Some(object),
                Ok(Event::InitDone) => current = listed.take(),
                Ok(Event::Apply(object)) => current = Some(object),
                Ok(Event::Delete(_)) => current = None,
                Err(error) => failed = format!(" (the watch failed: {error})"),
            }
            if settled && let Some(answer) = judge(current.as_ref()) {
                return Some(answer);
            }
        }
        None
    };
    if let Ok(Some(answer)) = tokio::time::timeout(deadline, watching).await {
        return Ok(answer);
    }
    let seen = match current {
        Some(object) => serde_json::to_string_pretty(&object)?,
        None => "the object does not exist".to_owned(),
    };
    bail!(
        "not within {} s: {what}{failed}. {name} as last seen: {seen}",
        deadline.as_secs()
    )
}
