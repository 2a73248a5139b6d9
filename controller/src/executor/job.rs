//! Engine `job`: one container in a Kubernetes Job.

mod build;
mod read;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use wfe_model::workflow_execution::ExecutionRef;

pub use self::build::build;
use self::read::complaint;
pub use self::read::{began, read};
use super::{
    Created, Execution, Executor, Plan, Refusal, Remains, Unanswered, Waiting, is_alive, is_of,
};
use crate::names::{STARTED, WORKFLOW_EXECUTION_UID};
use crate::watches::Caches;

/// The fixed words of the quota plugin: the one text that is matched, since its refusal has the
/// same code and reason as any other.
pub(super) const QUOTA: &str = "exceeded quota: ";

/// Runs workflows as Jobs of one namespace.
pub struct JobExecutor {
    namespace: String,
    jobs: Api<Job>,
    pods: Api<Pod>,
    events: Api<Event>,
    reviews: Api<SelfSubjectAccessReview>,
}

impl JobExecutor {
    /// Jobs of `namespace`.
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            jobs: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client.clone(), namespace),
            events: Api::namespaced(client.clone(), namespace),
            reviews: Api::all(client.clone()),
        }
    }

    async fn create_job(&self, plan: &Plan) -> Result<Created, Unanswered> {
        let unanswered = Unanswered::of("create the Job");
        match self.jobs.create(&PostParams::default(), &build(plan)).await {
            Ok(job) => Ok(Created::Ours(Box::new(read(&job, &[])))),
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

    /// Whether it is the right to make Jobs that is missing, or something else is in the way.
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
        let allowed = match self.reviews.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.is_some_and(|it| it.allowed),
            // Who may not even ask is told what the refusal says.
            Err(kube::Error::Api(status)) if status.code == 403 => true,
            Err(error) => return Err(Unanswered::of("ask for the right to create Jobs")(error)),
        };
        Ok(if !allowed {
            Refusal::Rights
        } else if message.contains(QUOTA) {
            Refusal::Quota
        } else {
            Refusal::Admission
        })
    }

    /// Of the Job's pod, or, where it has none, of the Job.
    async fn complaint_of(
        &self,
        reference: &ExecutionRef,
        source_uid: &str,
    ) -> Result<Option<Waiting>, Unanswered> {
        let pods = self.pods_of(source_uid).await?;
        let uid = pods.first().and_then(|pod| pod.metadata.uid.as_ref());
        let about = format!("involvedObject.uid={}", uid.unwrap_or(&reference.uid));
        let about = ListParams::default().fields(&about);
        match self.events.list(&about).await {
            Ok(listed) => Ok(complaint(&listed.items)),
            // Nothing waits for a reason that we may not read.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(message = status.message, "the Events cannot be read");
                Ok(None)
            }
            Err(error) => Err(Unanswered::of("list the Events")(error)),
        }
    }

    /// The Job that has the name already: an earlier try's, or somebody else's.
    async fn adopt(&self, plan: &Plan) -> Result<Created, Unanswered> {
        match self.read_job(&plan.name).await? {
            Some(execution) if execution.source_uid.as_ref() == Some(&plan.source.uid) => {
                Ok(Created::Ours(Box::new(execution)))
            }
            Some(_) => Ok(Created::NameTaken),
            // Deleted in between: the next try makes it.
            None => Err(Unanswered {
                act: "create the Job",
                cause: "its name was taken a moment ago".to_owned(),
            }),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Job>, Unanswered> {
        let found = self.jobs.get_opt(name).await;
        found.map_err(Unanswered::of("read the Job"))
    }

    async fn read_job(&self, name: &str) -> Result<Option<Execution>, Unanswered> {
        Ok(self.get(name).await?.map(|job| read(&job, &[])))
    }

    /// The Job and what its pods say.
    async fn read_all(&self, name: &str) -> Result<Option<Execution>, Unanswered> {
        let Some(job) = self.get(name).await? else {
            return Ok(None);
        };
        let Some(uid) = job.labels().get(WORKFLOW_EXECUTION_UID) else {
            return Ok(Some(read(&job, &[])));
        };
        let pods = self.pods_of(uid).await?;
        let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
        Ok(Some(read(&job, &pods)))
    }

    async fn pods_of(&self, source_uid: &str) -> Result<Vec<Pod>, Unanswered> {
        let ours = ListParams::default().labels(&format!("{WORKFLOW_EXECUTION_UID}={source_uid}"));
        let listed = self.pods.list(&ours).await;
        Ok(listed.map_err(Unanswered::of("list the pods"))?.items)
    }

    async fn what_remains(
        &self,
        name: &str,
        source_uid: &str,
        stored: Option<&ExecutionRef>,
    ) -> Result<Remains, Unanswered> {
        if self.pods_of(source_uid).await?.iter().any(is_alive) {
            return Ok(Remains::Alive);
        }
        let execution = self.read_job(name).await?;
        // By its label; or by its uid, where somebody has taken the labels off.
        let execution = execution.filter(|it| {
            it.source_uid.as_deref() == Some(source_uid)
                || stored.is_some_and(|stored| stored.uid == it.reference.uid)
        });
        Ok(match execution {
            None => Remains::Nothing,
            Some(execution) if execution.is_active() => Remains::Alive,
            Some(_) => Remains::Ended,
        })
    }

    /// The uid in the patch is a precondition: another Job of that name is not started.
    async fn start_job(&self, reference: &ExecutionRef) -> Result<(), Unanswered> {
        let start = Patch::Merge(json!({
            "metadata": { "uid": reference.uid, "annotations": { STARTED: "true" } },
            "spec": { "suspend": false },
        }));
        let parameters = PatchParams::default();
        match self.jobs.patch(&reference.name, &parameters, &start).await {
            Ok(_) => Ok(()),
            // Gone, or another object by now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(Unanswered::of("start the Job")(error)),
        }
    }

    async fn delete_job(&self, reference: &ExecutionRef) -> Result<(), Unanswered> {
        let exactly = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions {
                uid: Some(reference.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.jobs.delete(&reference.name, &exactly).await {
            Ok(_) => Ok(()),
            // Gone, or another object by now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(Unanswered::of("delete the Job")(error)),
        }
    }
}

impl Executor for JobExecutor {
    fn create<'a>(&'a self, plan: &'a Plan) -> BoxFuture<'a, Result<Created, Unanswered>> {
        self.create_job(plan).boxed()
    }

    fn start<'a>(&'a self, reference: &'a ExecutionRef) -> BoxFuture<'a, Result<(), Unanswered>> {
        self.start_job(reference).boxed()
    }

    fn status(&self, caches: &Caches, name: &str, source_uid: &str) -> Option<Execution> {
        let job = caches
            .job(name)
            .filter(|job| is_of(job.as_ref(), source_uid))?;
        Some(read(&job, &caches.pods_with(source_uid)))
    }

    fn read<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Execution>, Unanswered>> {
        self.read_all(name).boxed()
    }

    fn complaint<'a>(
        &'a self,
        reference: &'a ExecutionRef,
        source_uid: &'a str,
    ) -> BoxFuture<'a, Result<Option<Waiting>, Unanswered>> {
        self.complaint_of(reference, source_uid).boxed()
    }

    fn remains<'a>(
        &'a self,
        name: &'a str,
        source_uid: &'a str,
        stored: Option<&'a ExecutionRef>,
    ) -> BoxFuture<'a, Result<Remains, Unanswered>> {
        self.what_remains(name, source_uid, stored).boxed()
    }

    fn delete<'a>(&'a self, reference: &'a ExecutionRef) -> BoxFuture<'a, Result<(), Unanswered>> {
        self.delete_job(reference).boxed()
    }
}

#[cfg(test)]
mod tests;
