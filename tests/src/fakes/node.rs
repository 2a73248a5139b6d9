//! What stands in for node and Job controller where there are none: pods are made for Jobs, and
//! statuses written, by hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
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
    /// Not by itself.
    Never,
}

/// Runs the Jobs of one namespace, as far as anybody can tell; ends with the value.
pub struct StandIn {
    /// Uids of the Jobs that were started for each WorkflowExecution.
    started: Arc<Mutex<HashMap<String, Vec<String>>>>,
    task: AbortHandle,
}

impl StandIn {
    /// `ending` says of a Job how it ends, whenever it is looked at: see
    /// [`again`](Self::again).
    pub fn start(
        namespace: &TestNamespace,
        ending: impl Fn(&Job) -> Ending + Send + Sync + 'static,
    ) -> Self {
        let (jobs, pods) = (namespace.api::<Job>(), namespace.api::<Pod>());
        let started: Arc<Mutex<HashMap<String, Vec<String>>>> = Arc::default();
        let seen = started.clone();
        let running = async move {
            let mut events =
                Box::pin(watcher(jobs.clone(), watcher::Config::default()).default_backoff());
            while let Some(event) = events.next().await {
                let done = match event {
                    // As the Job controller does it: a suspended Job has no pod.
                    Ok(Event::Apply(job) | Event::InitApply(job)) if is_suspended(&job) => Ok(()),
                    Ok(Event::Apply(job) | Event::InitApply(job)) => {
                        note(&seen, &job);
                        run(&jobs, &pods, &job, ending(&job)).await
                    }
                    Ok(Event::Delete(job)) => remove(&pods, &job).await,
                    Ok(Event::Init | Event::InitDone) => Ok(()),
                    Err(error) => Err(error.into()),
                };
                if let Err(error) = done {
                    eprintln!("the stand-in for the node: {error:#}");
                }
            }
        };
        Self {
            started,
            task: tokio::spawn(running).abort_handle(),
        }
    }

    /// How many Jobs were ever started for a WorkflowExecution.
    pub fn started_for(&self, uid: &str) -> usize {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.get(uid).map_or(0, Vec::len)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Has the stand-in look at a Job again.
pub async fn again(jobs: &Api<Job>, name: &str) -> Result<()> {
    let touched =
        json!({ "metadata": { "annotations": { "looked-at": Timestamp::now().to_string() } } });
    jobs.patch(name, &PatchParams::default(), &Patch::Merge(touched))
        .await?;
    Ok(())
}

fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

fn note(started: &Mutex<HashMap<String, Vec<String>>>, job: &Job) {
    let (Some(source), Some(uid)) = (job.labels().get(SOURCE_UID).cloned(), job.uid()) else {
        return;
    };
    let mut started = started.lock().unwrap_or_else(PoisonError::into_inner);
    let uids = started.entry(source).or_default();
    if !uids.contains(&uid) {
        uids.push(uid);
    }
}

async fn run(jobs: &Api<Job>, pods: &Api<Pod>, job: &Job, ending: Ending) -> Result<()> {
    if job_has_ended(job) || job.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let name = job.name_any();
    let began = start(pods, job).await?;
    let exit_code = match ending {
        Ending::Never => return Ok(()),
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
        .or_else(gone)?;
    Ok(())
}

/// The Job's pod, running: since when.
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
            .context("it runs");
    }
    let template = job.spec.as_ref().context("a spec")?.template.clone();
    let mut pod = Pod {
        metadata: template.metadata.unwrap_or_default(),
        spec: template.spec,
        status: None,
    };
    pod.metadata.name = Some(name.clone());
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
    Ok(patched.map(drop).or_else(gone)?)
}

/// As garbage collector and kubelet do it.
async fn remove(pods: &Api<Pod>, job: &Job) -> Result<()> {
    let now = DeleteParams::default().grace_period(0);
    Ok(pods
        .delete(&job.name_any(), &now)
        .await
        .map(drop)
        .or_else(gone)?)
}

fn gone(error: kube::Error) -> kube::Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        error => Err(error),
    }
}
