//! WorkflowExecutions that this version cannot read, as after a downgrade. A single one must not
//! stop the watch, nor stay in the cache with an older version: it is counted, and its target is in
//! use until it can be read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use serde_json::value::RawValue;
use wfe_core::execution::Source;
use wfe_core::names::TargetHash;
use wfe_core::observed::Unread;
use wfe_core::seen::metadata;
use wfe_model::workflow_execution::{
    WorkflowExecution, WorkflowExecutionSpec, WorkflowExecutionStatus,
};

/// A watched WorkflowExecution, or what could be read of it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The object; with metadata and target only, if it cannot be read.
    object: WorkflowExecution,
    error: Option<String>,
}

/// A WorkflowExecution without what nobody reads of its metadata.
#[derive(Deserialize)]
struct Wire {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    spec: WorkflowExecutionSpec,
    status: Option<WorkflowExecutionStatus>,
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        match serde_json::from_str::<Wire>(text.get()) {
            Ok(Wire {
                metadata,
                spec,
                status,
            }) => Ok(Self {
                object: WorkflowExecution {
                    metadata,
                    spec,
                    status,
                },
                error: None,
            }),
            Err(error) => {
                let value: Value = serde_json::from_str(text.get()).map_err(de::Error::custom)?;
                let metadata = value.get("metadata").unwrap_or(&Value::Null);
                let mut object = WorkflowExecution {
                    metadata: ObjectMeta::deserialize(metadata).map_err(de::Error::custom)?,
                    ..WorkflowExecution::default()
                };
                let text = |path: &str| value.pointer(path).and_then(Value::as_str);
                let target = text("/spec/targetResource").unwrap_or_default();
                // Of the older CRD of the same name, and ended: it keeps no target.
                let is_over = text("/spec/executionEngine").is_none()
                    && text("/status/phase") == Some("Completed");
                let target = if is_over { "" } else { target };
                target.clone_into(&mut object.spec.target_resource);
                Ok(Self {
                    object,
                    error: Some(error.to_string()),
                })
            }
        }
    }
}

impl Resource for Watched {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(dt: &()) -> Cow<'_, str> {
        WorkflowExecution::kind(dt)
    }

    fn group(dt: &()) -> Cow<'_, str> {
        WorkflowExecution::group(dt)
    }

    fn version(dt: &()) -> Cow<'_, str> {
        WorkflowExecution::version(dt)
    }

    fn plural(dt: &()) -> Cow<'_, str> {
        WorkflowExecution::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.object.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.object.metadata
    }
}

impl Watched {
    /// The object; or, if it cannot be read, its target and why.
    pub fn read(self) -> Result<WorkflowExecution, (Option<TargetHash>, Unread)> {
        let Some(error) = self.error else {
            return Ok(self.object);
        };
        let source = Source::of(&self.object);
        Err((TargetHash::of_wfe(&self.object), Unread { source, error }))
    }
}

type Objects = HashMap<ObjectRef<WorkflowExecution>, (Option<TargetHash>, Unread)>;

/// The WorkflowExecutions that cannot be read.
#[derive(Clone, Default)]
pub struct Unreadable(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    current: Objects,
    /// Filled while a list is read; replaces `current` when the list is complete.
    listing: Objects,
}

impl Unreadable {
    /// The number of objects that cannot be read.
    pub fn count(&self) -> usize {
        self.0.lock().current.len()
    }

    /// Whether the object with this uid exists and cannot be read.
    pub fn knows(&self, uid: &str) -> bool {
        let state = self.0.lock();
        let mut unread = state.current.values();
        unread.any(|(_, unread)| unread.source.uid == uid)
    }

    /// An object on a target that cannot be read.
    pub fn on(&self, target: &TargetHash) -> Option<Unread> {
        let state = self.0.lock();
        let mut unread = state.current.values();
        let found = unread.find(|(on, _)| on.as_ref() == Some(target));
        found.map(|(_, unread)| unread.clone())
    }

    /// Passes on the events of readable objects. An object that cannot be read is deleted from the
    /// cache, which may have an older version; the event of the first readable version of such an
    /// object is preceded by a deletion, since others on its target may proceed.
    pub(super) fn filter(
        &self,
        event: watcher::Result<Event<Watched>>,
    ) -> Vec<watcher::Result<Event<WorkflowExecution>>> {
        let event = match event {
            Ok(event) => event,
            Err(error) => return vec![Err(error)],
        };
        let mut state = self.0.lock();
        let passed = match event {
            Event::Apply(watched) => {
                let reference = ObjectRef::from_obj(&watched.object);
                let before = state.current.remove(&reference);
                let object = watched.object.clone();
                match unread(watched) {
                    None if before.is_some() => {
                        vec![Event::Delete(object.clone()), Event::Apply(object)]
                    }
                    None => vec![Event::Apply(object)],
                    Some(unread) => {
                        state.current.insert(reference, unread);
                        vec![Event::Delete(object)]
                    }
                }
            }
            Event::Delete(watched) => {
                let reference = ObjectRef::from_obj(&watched.object);
                state.current.remove(&reference);
                vec![Event::Delete(watched.object)]
            }
            Event::Init => {
                state.listing = Objects::new();
                vec![Event::Init]
            }
            Event::InitApply(watched) => {
                let object = watched.object.clone();
                match unread(watched) {
                    None => vec![Event::InitApply(object)],
                    Some(unread) => {
                        state.listing.insert(ObjectRef::from_obj(&object), unread);
                        Vec::new()
                    }
                }
            }
            Event::InitDone => {
                state.current = std::mem::take(&mut state.listing);
                vec![Event::InitDone]
            }
        };
        passed.into_iter().map(Ok).collect()
    }
}

fn unread(watched: Watched) -> Option<(Option<TargetHash>, Unread)> {
    let (target, unread) = watched.read().err()?;
    tracing::error!(
        namespace = unread.source.namespace,
        name = unread.source.name,
        error = unread.error,
        "WorkflowExecution cannot be read, its target counts as in use"
    );
    Some((target, unread))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watched(name: &str, phase: &str) -> Watched {
        serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
            "metadata": { "namespace": "prod", "name": name, "uid": name },
            "spec": { "executionEngine": "job", "targetResource": "prod/Deployment/web" },
            "status": { "phase": phase },
        }))
        .expect("metadata can be read")
    }

    fn kinds(unreadable: &Unreadable, event: Event<Watched>) -> Vec<&'static str> {
        let events = unreadable.filter(Ok(event)).into_iter();
        let events = events.map(|event| match event.expect("no error") {
            Event::Apply(_) => "apply",
            Event::Delete(_) => "delete",
            Event::Init => "init",
            Event::InitApply(_) => "listed",
            Event::InitDone => "done",
        });
        events.collect()
    }

    /// BR-WE-009
    #[test]
    fn object_that_cannot_be_read_leaves_the_cache_and_keeps_its_target_in_use() {
        let unreadable = Unreadable::default();
        let target = TargetHash::of_wfe(&watched("a", "Failed").object).expect("a target");
        let apply = |name, phase| kinds(&unreadable, Event::Apply(watched(name, phase)));
        assert_eq!(apply("a", "Failed"), ["apply"]);
        assert!(unreadable.on(&target).is_none());
        assert_eq!(apply("a", "Exploded"), ["delete"]);
        let unread = unreadable.on(&target).expect("unread");
        assert!(unread.error.contains("Exploded"), "{}", unread.error);
        assert_eq!((unreadable.count(), unread.source.name.as_str()), (1, "a"));
        assert_eq!(apply("a", "Failed"), ["delete", "apply"]);
        assert_eq!(unreadable.count(), 0);
    }

    /// BR-WE-009
    #[test]
    fn objects_of_old_list_count_until_new_list_is_complete() {
        let unreadable = Unreadable::default();
        let target = TargetHash::of_wfe(&watched("a", "").object).expect("a target");
        kinds(&unreadable, Event::Apply(watched("a", "Exploded")));
        kinds(&unreadable, Event::Init);
        assert_eq!(
            kinds(&unreadable, Event::InitApply(watched("b", "Lost"))),
            [] as [&str; 0]
        );
        assert_eq!(
            kinds(&unreadable, Event::InitApply(watched("c", "Failed"))),
            ["listed"]
        );
        assert_eq!(unreadable.on(&target).expect("unread").source.name, "a");
        assert_eq!(kinds(&unreadable, Event::InitDone), ["done"]);
        assert_eq!(unreadable.on(&target).expect("unread").source.name, "b");
        assert_eq!(
            kinds(&unreadable, Event::Delete(watched("b", "Lost"))),
            ["delete"]
        );
        assert!(unreadable.on(&target).is_none());
    }
}
