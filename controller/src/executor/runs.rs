//! The objects of one kind that an engine creates: their cache, own writes and requests.

use std::sync::Arc;

use futures::Stream;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{
    DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy,
};
use kube::core::{Request, Status};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wfe_core::adoption;
use wfe_core::execution::{Execution, Refusal, Source};
use wfe_core::names::{STARTED, TARGET_HASH, TargetHash};
use wfe_core::pod::QUOTA;
use wfe_model::workflow_execution::ExecutionRef;

use super::unanswered::Unanswered;
use crate::watches::{Cache, Changes, Key, OwnerLabels, Written, owner_changes, reflect};

/// Jobs or PipelineRuns in the execution namespace.
pub(super) struct Runs<K: Resource<DynamicType = ()> + Clone + 'static> {
    namespace: String,
    api: Api<K>,
    cache: Cache<K>,
    written: Written<K>,
    reviews: Api<SelfSubjectAccessReview>,
    prune: fn(&mut K),
}

/// Result of a create.
pub(super) enum Posted<K> {
    /// The object, created now or by an earlier attempt for the same WorkflowExecution.
    Ours(Box<K>),
    /// Another object has the name.
    NameTaken,
    /// The API server refused the object.
    Refused { refusal: Refusal, message: String },
}

impl<K> Runs<K>
where
    K: Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Send
        + Sync
        + 'static,
{
    /// Caches the objects of `events`. The cache is filled only while the returned changes are
    /// polled.
    pub(super) fn start(
        client: &Client,
        namespace: &str,
        prune: fn(&mut K),
        events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    ) -> (Self, Changes) {
        let (cache, changes) = reflect(events, prune, OwnerLabels::keys, |_| ());
        let runs = Self {
            namespace: namespace.to_owned(),
            api: Api::namespaced(client.clone(), namespace),
            cache,
            written: Written::default(),
            reviews: Api::all(client.clone()),
            prune,
        };
        (runs, owner_changes(changes))
    }

    /// The object with this name: the cached one, or the newer one that an own write returned.
    pub(super) fn newest(&self, name: &str) -> Option<Arc<K>> {
        let reference = ObjectRef::new(name).within(&self.namespace);
        self.written.newest(name, || self.cache.get(&reference))
    }

    /// Every cached object with its WorkflowExecution.
    pub(super) fn all(&self) -> impl Iterator<Item = (Source, Arc<K>)> {
        let all = self.cache.all().into_iter();
        all.filter_map(|run| Some((Source::read(run.as_ref())?, run)))
    }

    /// The cached objects on a target.
    pub(super) fn on(&self, target: &TargetHash) -> Vec<Arc<K>> {
        self.cache.with(&Key::Target(target.clone()))
    }

    /// Waits until the cache has been filled once.
    pub(super) async fn synced(&self) -> Result<(), WriterDropped> {
        self.cache.synced().await
    }

    /// Creates an object, or [adopts](wfe_core::adoption) the one that an earlier attempt has created.
    /// Another object with its name that is held and has our label has run nothing, and is deleted
    /// first.
    ///
    /// `T` has all fields of the kind, `K` those that this program reads.
    pub(super) async fn create<T>(
        &self,
        object: &T,
        read: impl Fn(&K) -> Execution,
    ) -> Result<Posted<K>, Unanswered>
    where
        T: Resource<DynamicType = ()> + Serialize,
    {
        let unanswered = Unanswered::of("create the execution");
        let mut posted = self.post(object).await;
        let replaces = is_conflict(&posted);
        if replaces {
            if let Some(found) = self.take_over(object, read).await? {
                return Ok(found);
            }
            posted = self.post(object).await;
        }
        match posted {
            Ok(created) => {
                self.record_write(created.clone());
                Ok(Posted::Ours(Box::new(created)))
            }
            Err(kube::Error::Api(status)) => match status.code {
                409 => Err(Unanswered::just_deleted()),
                // The quota may still count the deleted one.
                403 if replaces && status.message.contains(QUOTA) => {
                    Err(Unanswered::just_deleted())
                }
                403 => Ok(Posted::Refused {
                    refusal: self.refusal(&status.message).await?,
                    message: status.message,
                }),
                400 | 404 | 422 => Ok(Posted::Refused {
                    refusal: Refusal::Invalid,
                    message: status.message,
                }),
                _ => Err(unanswered(kube::Error::Api(status))),
            },
            Err(error) => Err(unanswered(error)),
        }
    }

    async fn post(&self, object: &impl Serialize) -> kube::Result<K> {
        self.post_as(object, &PostParams::default()).await
    }

    async fn post_as<A: DeserializeOwned>(
        &self,
        object: &impl Serialize,
        parameters: &PostParams,
    ) -> kube::Result<A> {
        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let request = Request::new(self.api.resource_url());
        let request = request.create(parameters, body);
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.api.clone().into_client().request(request).await
    }

    /// Adopts the object that has the name of `object`, or deletes it if it has run nothing: then the
    /// create can be repeated.
    async fn take_over<T>(
        &self,
        object: &T,
        read: impl Fn(&K) -> Execution,
    ) -> Result<Option<Posted<K>>, Unanswered>
    where
        T: Resource<DynamicType = ()> + Serialize,
    {
        let Some(stored) = self.get_as::<Value>(&object.name_any()).await? else {
            return Ok(None);
        };
        let unread = |error| Unanswered::of("read the execution")(kube::Error::SerdeError(error));
        let found = K::deserialize(&stored).map_err(unread)?;
        let is_ours = OwnerLabels::of(&found).uid == OwnerLabels::of(object).uid;
        let execution = read(&found);
        if !is_ours || !execution.held {
            return Ok(Some(Posted::NameTaken));
        }
        if !execution.ending && self.is_as_planned(object, &stored).await? {
            self.record_write(found.clone());
            return Ok(Some(Posted::Ours(Box::new(found))));
        }
        // Unless it was started in the meantime.
        let version = found.resource_version();
        self.delete_at(&execution.reference, version).await?;
        Ok(None)
    }

    /// Whether `stored` is `object`.
    async fn is_as_planned<T>(&self, object: &T, stored: &Value) -> Result<bool, Unanswered>
    where
        T: Resource<DynamicType = ()> + Serialize,
    {
        let unanswered = Unanswered::of("compare the execution");
        let planned = json!(object);
        let mut probe = planned.clone();
        if let Some(metadata) = probe
            .pointer_mut("/metadata")
            .and_then(Value::as_object_mut)
        {
            metadata.remove("name");
            metadata.insert("generateName".to_owned(), json!("wfe-dry-run-"));
        }
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match self.post_as::<Value>(&probe, &dry_run).await {
            Ok(defaulted) => Ok(adoption::is_as_planned(&planned, stored, &defaulted)),
            // It cannot be compared: the create says what is refused.
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 404 | 422) => {
                Ok(false)
            }
            Err(error) => Err(unanswered(error)),
        }
    }

    /// Finds out why a create was refused with 403: missing RBAC permission, quota or another
    /// admission plugin.
    async fn refusal(&self, message: &str) -> Result<Refusal, Unanswered> {
        let attributes = ResourceAttributes {
            group: Some(K::group(&()).into_owned()),
            resource: Some(K::plural(&()).into_owned()),
            verb: Some("create".to_owned()),
            namespace: Some(self.namespace.clone()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let allowed = match self.reviews.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.is_some_and(|it| it.allowed),
            // The controller may not create access reviews: classify by the refusal itself.
            Err(kube::Error::Api(status)) if status.code == 403 => true,
            Err(error) => {
                return Err(Unanswered::of("check the right to create executions")(
                    error,
                ));
            }
        };
        Ok(if !allowed {
            Refusal::Rights
        } else if message.contains(QUOTA) {
            Refusal::Quota
        } else {
            Refusal::Admission
        })
    }

    /// Reads an object from the API server. Fails if the kind is not served.
    pub(super) async fn get(&self, name: &str) -> Result<Option<K>, Unanswered> {
        self.get_as(name).await
    }

    async fn get_as<A: DeserializeOwned>(&self, name: &str) -> Result<Option<A>, Unanswered> {
        let request = Request::new(self.api.resource_url());
        let request = request.get(name, &GetParams::default());
        let request = request.map_err(kube::Error::BuildRequest);
        let request = request.map_err(Unanswered::of("read the execution"))?;
        match self.api.clone().into_client().request(request).await {
            Ok(found) => Ok(Some(found)),
            // A 404 without the object's name means that the kind is not served.
            Err(kube::Error::Api(status))
                if status.code == 404
                    && status.details.as_ref().is_some_and(|it| it.name == name) =>
            {
                // A relisted watch may never show an object that was created and deleted in
                // between.
                self.forget_write(name);
                Ok(None)
            }
            Err(error) => Err(Unanswered::of("read the execution")(error)),
        }
    }

    /// Reads the objects on a target from the API server.
    pub(super) async fn list_on(&self, target: &TargetHash) -> Result<Vec<K>, Unanswered> {
        let selector = format!("{TARGET_HASH}={}", target.as_str());
        let selected = ListParams::default().labels(&selector);
        let listed = self.api.list(&selected).await;
        let listed = listed.map_err(Unanswered::of("list the executions on the target"))?;
        Ok(listed.items)
    }

    /// Starts exactly this object, with a change of its spec. Does nothing if the object is gone.
    pub(super) async fn start_exactly(
        &self,
        reference: &ExecutionRef,
        spec: &Value,
    ) -> Result<(), Unanswered> {
        let started = json!({ STARTED: "true" });
        self.patch_exactly(reference, &started, spec, "start the execution")
            .await
    }

    /// Cancels exactly this object, with a change of its spec. Does nothing if the object is gone.
    pub(super) async fn cancel_exactly(
        &self,
        reference: &ExecutionRef,
        spec: &Value,
    ) -> Result<(), Unanswered> {
        self.patch_exactly(reference, &json!({}), spec, "cancel the execution")
            .await
    }

    /// The uid in the patch is a precondition: another object with that name is not changed.
    async fn patch_exactly(
        &self,
        reference: &ExecutionRef,
        annotations: &Value,
        spec: &Value,
        act: &'static str,
    ) -> Result<(), Unanswered> {
        let metadata = json!({ "uid": reference.uid, "annotations": annotations });
        let change = Patch::Merge(json!({ "metadata": metadata, "spec": spec }));
        let parameters = PatchParams::default();
        match self.api.patch(&reference.name, &parameters, &change).await {
            Ok(patched) => {
                self.record_write(patched);
                Ok(())
            }
            Err(kube::Error::Api(status)) if is_not_this_one(&status) => {
                self.forget_write(&reference.name);
                Ok(())
            }
            Err(error) => Err(Unanswered::of(act)(error)),
        }
    }

    /// Deletes exactly this object, then its pods. Succeeds if the object is gone.
    pub(super) async fn delete(&self, reference: &ExecutionRef) -> Result<(), Unanswered> {
        self.delete_at(reference, None).await
    }

    /// As [`delete`](Self::delete); does nothing if the object has another resourceVersion.
    async fn delete_at(
        &self,
        reference: &ExecutionRef,
        resource_version: Option<String>,
    ) -> Result<(), Unanswered> {
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions {
                uid: Some(reference.uid.clone()),
                resource_version,
            }),
            ..DeleteParams::default()
        };
        match self.api.delete(&reference.name, &parameters).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if is_not_this_one(&status) => {}
            Err(error) => return Err(Unanswered::of("delete the execution")(error)),
        }
        self.forget_write(&reference.name);
        Ok(())
    }

    /// Forgets the object that an own write returned: the object is gone.
    pub(super) fn forget_write(&self, name: &str) {
        self.written.remove(name);
    }

    /// Records the object that a write returned.
    fn record_write(&self, mut object: K) {
        (self.prune)(&mut object);
        let cached = |it: &K| self.cache.get(&ObjectRef::from_obj(it));
        let name = object.name_any();
        self.written.put(&name, Arc::new(object), cached);
    }
}

/// Whether another object has the name of the one that was to be created.
fn is_conflict<T>(posted: &kube::Result<T>) -> bool {
    matches!(posted, Err(kube::Error::Api(status)) if status.code == 409)
}

/// Whether a request with a uid was refused because the object is gone, or because its name belongs
/// to another object: a patch then changes an immutable field.
fn is_not_this_one(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|it| &it.causes);
    let mut fields = causes.map(|cause| cause.field.as_str());
    matches!(status.code, 404 | 409) || status.code == 422 && fields.any(|it| it == "metadata.uid")
}
