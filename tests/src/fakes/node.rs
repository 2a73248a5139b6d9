//! A fake of kubelet and Job controller, for clusters without them: creates a pod for each Job and
//! writes the statuses of both.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use crate::TestNamespace;
use crate::system::job_has_ended;

const SOURCE_UID: &str = "kubernaut.ai/workflow-execution-uid";

/// How the workflow of a Job ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// Exit code 0.
    Success,
    /// Exit code 1.
    Failure,
    /// The workflow runs until its Job is deleted or its ending changes.
    Never,
    /// No container starts.
    NotStarted,
}

/// Simulates the runs of all Jobs in one namespace; stops when the value is dropped.
pub struct FakeNode {
    /// Uids of started Jobs, by uid of their WorkflowExecution.
    started: Arc<Mutex<HashMap<String, Vec<String>>>>,
    task: AbortHandle,
}

impl FakeNode {
    /// `ending` is evaluated at each event of a Job; [`touch`] causes an event.
    pub fn start(
        namespace: &TestNamespace,
        ending: impl Fn(&Job) -> Ending + Send + Sync + 'static,
    ) -> Self {
        let (jobs, pods) = (namespace.api::<Job>(), namespace.api::<Pod>());
        let started: Arc<Mutex<HashMap<String, Vec<String>>>> = Arc::default();
        let recorded = started.clone();
        let running = async move {
            let mut events =
                Box::pin(watcher(jobs.clone(), watcher::Config::default()).default_backoff());
            while let Some(event) = events.next().await {
                let handled = match event {
                    // As in the Job controller, a suspended Job has no pod.
                    Ok(Event::Apply(job) | Event::InitApply(job)) if is_suspended(&job) => {
                        remove(&pods, &job).await
                    }
                    Ok(Event::Apply(job) | Event::InitApply(job)) => {
                        record_start(&recorded, &job);
                        run(&jobs, &pods, &job, ending(&job)).await
                    }
                    Ok(Event::Delete(job)) => remove(&pods, &job).await,
                    Ok(Event::Init | Event::InitDone) => Ok(()),
                    Err(error) => Err(error.into()),
                };
                if let Err(error) = handled {
                    eprintln!("fake node: {error:#}");
                }
            }
        };
        Self {
            started,
            task: tokio::spawn(running).abort_handle(),
        }
    }

    /// Number of Jobs ever started for a WorkflowExecution.
    pub fn started_for(&self, uid: &str) -> usize {
        let started = self.started.lock();
        started.get(uid).map_or(0, Vec::len)
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Changes an annotation of a Job, so that the fake node evaluates its ending again.
pub async fn touch(jobs: &Api<Job>, name: &str) -> Result<()> {
    let touched =
        json!({ "metadata": { "annotations": { "looked-at": Timestamp::now().to_string() } } });
    jobs.patch(name, &PatchParams::default(), &Patch::Merge(touched))
        .await?;
    Ok(())
}

fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

fn record_start(started: &Mutex<HashMap<String, Vec<String>>>, job: &Job) {
    let (Some(source), Some(uid)) = (job.labels().get(SOURCE_UID).cloned(), job.uid()) else {
        return;
    };
    let mut started = started.lock();
    let uids = started.entry(source).or_default();
    if !uids.contains(&uid) {
        uids.push(uid);
    }
}

async fn run(jobs: &Api<Job>, pods: &Api<Pod>, job: &Job, ending: Ending) -> Result<()> {
    if job_has_ended(job) || job.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    if ending == Ending::NotStarted {
        return Ok(());
    }
    let name = job.name_any();
    let began = start(pods, job).await?;
    let exit_code = match ending {
        Ending::Never | Ending::NotStarted => return Ok(()),
        Ending::Success => 0,
        Ending::Failure => 1,
    };
    let now = Timestamp::from_second(Timestamp::now().as_second())?;
    let terminated = json!({ "exitCode": exit_code, "startedAt": began, "finishedAt": now, "reason": if exit_code == 0 { "Completed" } else { "Error" } });
    let phase = if exit_code == 0 {
        "Succeeded"
    } else {
        "Failed"
    };
    pod_status(pods, &name, phase, &json!({ "terminated": terminated })).await?;
    let condition = |kind: &str, reason: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": reason, "lastTransitionTime": now, "lastProbeTime": now });
    let status = if exit_code == 0 {
        json!({
            "startTime": began, "completionTime": now, "succeeded": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {},
            "conditions": [condition("SuccessCriteriaMet", "CompletionsReached"), condition("Complete", "CompletionsReached")],
        })
    } else {
        json!({
            "startTime": began, "failed": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {},
            "conditions": [condition("FailureTarget", "BackoffLimitExceeded"), condition("Failed", "BackoffLimitExceeded")],
        })
    };
    let patch = Patch::Merge(json!({ "status": status }));
    jobs.patch_status(&name, &PatchParams::default(), &patch)
        .await
        .map(drop)
        .or_else(ignore_not_found)?;
    Ok(())
}

/// Creates the running pod of a Job, if missing; returns its start time.
async fn start(pods: &Api<Pod>, job: &Job) -> Result<Timestamp> {
    let name = job.name_any();
    let began = |pod: &Pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        Some(
            statuses
                .first()?
                .state
                .as_ref()?
                .running
                .as_ref()?
                .started_at
                .as_ref()?
                .0,
        )
    };
    if let Some(pod) = pods.get_opt(&name).await? {
        return began(&pod)
            .or(Some(Timestamp::UNIX_EPOCH))
            .context("no start time");
    }
    let template = job.spec.as_ref().context("no spec")?.template.clone();
    let mut pod = Pod {
        metadata: template.metadata.unwrap_or_default(),
        spec: template.spec,
        status: None,
    };
    pod.metadata.name = Some(name.clone());
    pod.metadata.owner_references = job.controller_owner_ref(&()).map(|owner| vec![owner]);
    pods.create(&PostParams::default(), &pod).await?;
    let now = Timestamp::from_second(Timestamp::now().as_second())?;
    pod_status(
        pods,
        &name,
        "Running",
        &json!({ "running": { "startedAt": now } }),
    )
    .await?;
    Ok(now)
}

async fn pod_status(pods: &Api<Pod>, name: &str, phase: &str, state: &Value) -> Result<()> {
    let container = json!({
        "name": "workflow", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "started": phase == "Running", "state": state,
    });
    let patch =
        Patch::Merge(json!({ "status": { "phase": phase, "containerStatuses": [container] } }));
    let patched = pods
        .patch_status(name, &PatchParams::default(), &patch)
        .await;
    Ok(patched.map(drop).or_else(ignore_not_found)?)
}

/// Deletes the pod of a deleted Job, as garbage collector and kubelet do.
async fn remove(pods: &Api<Pod>, job: &Job) -> Result<()> {
    let now = DeleteParams::default().grace_period(0);
    Ok(pods
        .delete(&job.name_any(), &now)
        .await
        .map(drop)
        .or_else(ignore_not_found)?)
}

fn ignore_not_found(error: kube::Error) -> kube::Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        error => Err(error),
    }
}
