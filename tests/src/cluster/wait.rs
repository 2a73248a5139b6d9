//! Waiting for what the API server will say, by watch and with a deadline that explains itself.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
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
    let fits = |object: Option<&K>| object.filter(|object| condition(object)).cloned();
    look(api, name, what, deadline, fits).await
}

/// Until the object `name` is not there any more.
pub async fn gone<K>(api: &Api<K>, name: &str, deadline: Duration) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned + Resource + Send + Serialize + 'static,
{
    let absent = |object: Option<&K>| object.is_none().then_some(());
    look(api, name, "it is gone", deadline, absent).await
}

/// Looks at the object, or its absence, at each change, until `judge` has an answer. A watch that
/// fails is begun again; its last error is told at the deadline.
async fn look<K, T>(
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
    let looking = async {
        let mut listed = None;
        while let Some(event) = events.next().await {
            // While a list is read, nothing is known.
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
    if let Ok(Some(answer)) = tokio::time::timeout(deadline, looking).await {
        return Ok(answer);
    }
    let seen = match current {
        Some(object) => serde_json::to_string_pretty(&object)?,
        None => "it was not there".to_owned(),
    };
    bail!(
        "not within {} s: {what}{failed}. {name} as last seen: {seen}",
        deadline.as_secs()
    )
}
