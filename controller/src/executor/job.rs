//! Executor of engine `job`: runs a workflow as one container in a Kubernetes Job.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::select;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::WriterDropped;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use wfe_core::execution::{
    Created, Execution, Plan, Refusal, Remains, Source, Waiting, is_alive, is_of,
};
use wfe_core::job::build::build;
use wfe_core::job::prune;
use wfe_core::job::read::{QUOTA, began, read, startup_diagnosis};
use wfe_core::names::{STARTED, TARGET_HASH, TargetHash, Uid, WORKFLOW_EXECUTION_UID};
use wfe_model::workflow_execution::ExecutionRef;

use super::engine::{Answer, Executor};
use super::unanswered::Unanswered;
use crate::watches::{Cache, Changes, Key, OwnerLabels, StartTimes, Written, managed, reflect};

/// Runs workflows as Jobs in one namespace.
pub struct JobExecutor {
    namespace: String,
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    written: Written<Job>,
    jobs_api: Api<Job>,
    pods_api: Api<Pod>,
    events_api: Api<Event>,
    reviews_api: Api<SelfSubjectAccessReview>,
}

impl JobExecutor {
    /// Watches the Jobs of `namespace` and their pods.
    pub fn start(client: &Client, namespace: &str, start_times: &StartTimes) -> (Self, Changes) {
        let jobs_api: Api<Job> = Api::namespaced(client.clone(), namespace);
        let pods_api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let events = watcher(jobs_api.clone(), managed()).default_backoff();
        let (jobs, job_changes) = reflect(events, prune::job, OwnerLabels::keys, |_| ());
        let events = watcher(pods_api.clone(), managed()).default_backoff();
        let start_times = start_times.clone();
        let (pods, pod_changes) = reflect(events, prune::pod, OwnerLabels::keys, move |event| {
            record_start(&start_times, event);
        });
        let changes = select(
            job_changes.map(|it| it.map(|change| change.map(|job| OwnerLabels::of(&job)))),
            pod_changes.map(|it| it.map(|change| change.map(|pod| OwnerLabels::of(&pod)))),
        );
        let executor = Self {
            namespace: namespace.to_owned(),
            jobs,
            pods,
            written: Written::default(),
            jobs_api,
            pods_api,
            events_api: Api::namespaced(client.clone(), namespace),
            reviews_api: Api::all(client.clone()),
        };
        (executor, changes.boxed())
    }

    /// Records the Job that a write returned.
    fn record_write(&self, mut job: Job) {
        prune::job(&mut job);
        self.written.put(&job.name_any(), Some(Arc::new(job)));
    }

    /// The Job with this name: the cached one, or the newer one that an own write returned.
    fn job(&self, name: &str) -> Option<Arc<Job>> {
        let reference = ObjectRef::new(name).within(&self.namespace);
        self.written.newest(name, || self.jobs.get(&reference))
    }

    fn cached_pods(&self, source: &Uid) -> Vec<Arc<Pod>> {
        self.pods.with(&Key::Uid(source.clone()))
    }

    async fn create_job(&self, plan: &Plan) -> Result<Created, Unanswered> {
        let unanswered = Unanswered::of("create the Job");
        match self
            .jobs_api
            .create(&PostParams::default(), &build(plan))
            .await
        {
            Ok(job) => {
                let execution = read(&job, &[]);
                self.record_write(job);
                Ok(Created::Ours(Box::new(execution)))
            }
            Err(kube::Error::Api(status)) => match status.code {
                409 => self.adopt(plan).await,
                403 => Ok(Created::Refused {
                    refusal: self.refusal(&status.message).await?,
                    message: status.message,
                }),
                400 | 404 | 422 => Ok(Created::Refused {
                    refusal: Refusal::Invalid,
                    message: status.message,
                }),
                _ => Err(unanswered(kube::Error::Api(status))),
            },
            Err(error) => Err(unanswered(error)),
        }
    }

    /// Finds out why a create was refused with 403: missing RBAC permission, quota or another
    /// admission plugin.
    async fn refusal(&self, message: &str) -> Result<Refusal, Unanswered> {
        let attributes = ResourceAttributes {
            group: Some("batch".to_owned()),
            resource: Some("jobs".to_owned()),
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
        let allowed = match self
            .reviews_api
            .create(&PostParams::default(), &review)
            .await
        {
            Ok(answer) => answer.status.is_some_and(|it| it.allowed),
            // The controller may not create access reviews: classify by the refusal itself.
            Err(kube::Error::Api(status)) if status.code == 403 => true,
            Err(error) => return Err(Unanswered::of("check the right to create Jobs")(error)),
        };
        Ok(if !allowed {
            Refusal::Rights
        } else if message.contains(QUOTA) {
            Refusal::Quota
        } else {
            Refusal::Admission
        })
    }

    /// Reads the Events of the Job's pod, or of the Job if it has no pod.
    async fn diagnose(
        &self,
        reference: &ExecutionRef,
        source: &Uid,
    ) -> Result<Option<Waiting>, Unanswered> {
        let pods = self.list_pods(source.as_str()).await?;
        let uid = pods.first().and_then(|pod| pod.metadata.uid.as_ref());
        let selector = format!("involvedObject.uid={}", uid.unwrap_or(&reference.uid));
        let selected = ListParams::default().fields(&selector);
        match self.events_api.list(&selected).await {
            Ok(listed) => Ok(startup_diagnosis(&listed.items)),
            // The reason is optional: a missing permission must not delay the execution.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(
                    error = status.message,
                    "cannot list Events, startup diagnosis is missing"
                );
                Ok(None)
            }
            Err(error) => Err(Unanswered::of("list the Events")(error)),
        }
    }

    /// Adopts the Job that already has the name, if an earlier attempt for the same
    /// WorkflowExecution has created it.
    async fn adopt(&self, plan: &Plan) -> Result<Created, Unanswered> {
        match self.read_job(&plan.name).await? {
            Some(execution) if execution.source_uid.as_ref() == Some(&plan.source.uid) => {
                Ok(Created::Ours(Box::new(execution)))
            }
            Some(_) => Ok(Created::NameTaken),
            // The Job was deleted between the two requests: the next attempt creates it.
            None => Err(Unanswered {
                act: "create the Job",
                cause: "a Job with the same name was just deleted".to_owned(),
            }),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Job>, Unanswered> {
        let found = self.jobs_api.get_opt(name).await;
        let found = found.map_err(Unanswered::of("read the Job"))?;
        if found.is_none() {
            // A relisted watch may never show a Job that was created and deleted in between.
            self.written.put(name, None);
        }
        Ok(found)
    }

    async fn read_job(&self, name: &str) -> Result<Option<Execution>, Unanswered> {
        Ok(self.get(name).await?.map(|job| read(&job, &[])))
    }

    /// Reads the Job and its pods.
    async fn read_with_pods(&self, name: &str) -> Result<Option<Execution>, Unanswered> {
        let Some(job) = self.get(name).await? else {
            return Ok(None);
        };
        let Some(uid) = job.labels().get(WORKFLOW_EXECUTION_UID) else {
            return Ok(Some(read(&job, &[])));
        };
        let pods = self.list_pods(uid).await?;
        let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
        Ok(Some(read(&job, &pods)))
    }

    async fn list_pods(&self, source_uid: &str) -> Result<Vec<Pod>, Unanswered> {
        let selector = format!("{WORKFLOW_EXECUTION_UID}={source_uid}");
        let selected = ListParams::default().labels(&selector);
        let listed = self.pods_api.list(&selected).await;
        Ok(listed.map_err(Unanswered::of("list the pods"))?.items)
    }

    async fn read_remains(
        &self,
        name: &str,
        source: &Uid,
        stored: Option<&ExecutionRef>,
    ) -> Result<Remains, Unanswered> {
        if self.list_pods(source.as_str()).await?.iter().any(is_alive) {
            return Ok(Remains::Alive);
        }
        let execution = self.read_job(name).await?;
        // The uid identifies the Job if a user has removed its labels.
        let execution = execution.filter(|it| {
            it.source_uid.as_deref() == Some(source.as_str())
                || stored.is_some_and(|stored| stored.uid == it.reference.uid)
        });
        Ok(match execution {
            None => Remains::Nothing,
            Some(execution) if execution.is_active() => Remains::Alive,
            Some(_) => Remains::Ended,
        })
    }

    /// The uid in the patch is a precondition: another Job with that name is not started.
    async fn start_job(&self, reference: &ExecutionRef) -> Result<(), Unanswered> {
        let start = Patch::Merge(json!({
            "metadata": { "uid": reference.uid, "annotations": { STARTED: "true" } },
            "spec": { "suspend": false },
        }));
        let parameters = PatchParams::default();
        match self
            .jobs_api
            .patch(&reference.name, &parameters, &start)
            .await
        {
            Ok(started) => {
                self.record_write(started);
                Ok(())
            }
            // The object is gone, or its name belongs to another object.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(Unanswered::of("start the Job")(error)),
        }
    }

    async fn delete_job(&self, reference: &ExecutionRef) -> Result<(), Unanswered> {
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions {
                uid: Some(reference.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.jobs_api.delete(&reference.name, &parameters).await {
            Ok(_) => {}
            // The object is gone, or its name belongs to another object.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(Unanswered::of("delete the Job")(error)),
        }
        self.written.put(&reference.name, None);
        Ok(())
    }
}

/// Records the start time of the workflow's container.
fn record_start(start_times: &StartTimes, event: &watcher::Event<Pod>) {
    let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) | watcher::Event::Delete(pod)) =
        event
    else {
        return;
    };
    if let (Some(started_at), Some(uid)) = (began(pod), OwnerLabels::of(pod).uid) {
        start_times.record(uid, started_at);
    }
}

impl Executor for JobExecutor {
    fn create<'a>(&'a self, plan: &'a Plan) -> Answer<'a, Created> {
        self.create_job(plan).boxed()
    }

    fn start<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.start_job(reference).boxed()
    }

    fn delete<'a>(&'a self, reference: &'a ExecutionRef) -> Answer<'a, ()> {
        self.delete_job(reference).boxed()
    }

    fn status(&self, name: &str, source: &Uid) -> Option<Execution> {
        let job = self.job(name).filter(|job| is_of(job.as_ref(), source))?;
        Some(read(&job, &self.cached_pods(source)))
    }

    fn executions(&self) -> Vec<(Source, Execution)> {
        let jobs = self.jobs.all().into_iter();
        jobs.filter_map(|job| Some((Source::read(job.as_ref())?, read(&job, &[]))))
            .collect()
    }

    fn has_live_pod(&self, source: &Uid) -> bool {
        self.cached_pods(source).iter().any(|pod| is_alive(pod))
    }

    fn alive_on(&self, target: &TargetHash) -> Vec<Source> {
        let key = Key::Target(target.clone());
        let (jobs, pods) = (self.jobs.with(&key), self.pods.with(&key));
        let jobs = jobs.iter().filter(|job| read(job, &[]).is_active());
        let pods = pods.iter().filter(|pod| is_alive(pod));
        let sources = jobs.filter_map(|job| Source::read(job.as_ref()));
        sources
            .chain(pods.filter_map(|pod| Source::read(pod.as_ref())))
            .collect()
    }

    fn synced(&self) -> BoxFuture<'_, Result<(), WriterDropped>> {
        async {
            self.jobs.synced().await?;
            self.pods.synced().await
        }
        .boxed()
    }

    fn read<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Execution>> {
        self.read_with_pods(name).boxed()
    }

    fn startup_diagnosis<'a>(
        &'a self,
        reference: &'a ExecutionRef,
        source: &'a Uid,
    ) -> Answer<'a, Option<Waiting>> {
        self.diagnose(reference, source).boxed()
    }

    fn remains<'a>(
        &'a self,
        name: &'a str,
        source: &'a Uid,
        stored: Option<&'a ExecutionRef>,
    ) -> Answer<'a, Remains> {
        self.read_remains(name, source, stored).boxed()
    }

    fn occupies<'a>(&'a self, target: &'a TargetHash) -> Answer<'a, bool> {
        async {
            let selector = format!("{TARGET_HASH}={}", target.as_str());
            let on_target = ListParams::default().labels(&selector);
            let pods = self.pods_api.list(&on_target).await;
            let pods = pods.map_err(Unanswered::of("list the pods of the target"))?;
            let jobs = self.jobs_api.list(&on_target).await;
            let jobs = jobs.map_err(Unanswered::of("list the Jobs of the target"))?;
            Ok(pods.iter().any(is_alive) || jobs.iter().any(|job| read(job, &[]).is_active()))
        }
        .boxed()
    }
}
