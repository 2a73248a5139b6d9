//! Requests that go on while something else happens: reviews that are not stored, and
//! WorkflowExecutions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::chart::EXECUTIONS;
use wfe_tests::system::{Script, dry_run};
use wfe_tests::wait;

/// Namespace of the requests.
pub const REQUESTS: &str = "prod";
const REVIEW_INTERVAL: Duration = Duration::from_millis(50);
const EXECUTION_INTERVAL: Duration = Duration::from_secs(1);
const ENDED_WITHIN: Duration = Duration::from_mins(2);

/// Load that runs until [`end`](Self::end).
pub struct Load {
    stop: CancellationToken,
    reviews: JoinHandle<(usize, Duration, Vec<String>)>,
    executions: JoinHandle<(Vec<String>, Vec<String>)>,
}

impl Load {
    /// 20 reviews a second, and with `creates` a WorkflowExecution a second, each on a target of its own.
    pub fn start(client: &Client, workflow: &Script, prefix: &'static str, creates: bool) -> Self {
        let api: Api<WorkflowExecution> = Api::namespaced(client.clone(), REQUESTS);
        let stop = CancellationToken::new();
        let probe = workflow.request("probe", &json!({}));
        let requests = (0..).map({
            let (id, image) = (workflow.id, workflow.image.clone());
            move |number| {
                let name = format!("{prefix}-{number}");
                Script::of(id, image.clone(), "").request(&name, &json!({}))
            }
        });
        Self {
            reviews: tokio::spawn(review(api.clone(), probe, stop.clone())),
            executions: tokio::spawn(execute(api, requests, stop.clone(), creates)),
            stop,
        }
    }

    /// Ends the load; every review must have been answered, and every WorkflowExecution admitted.
    /// Prints how many reviews there were, and returns the names of the WorkflowExecutions.
    pub async fn end(self) -> Vec<String> {
        self.stop.cancel();
        let (reviews, slowest, failed) = self.reviews.await.expect("the reviews");
        assert_eq!(
            failed,
            [""; 0],
            "of {reviews} reviews {} failed",
            failed.len()
        );
        let (created, refused) = self.executions.await.expect("the requests");
        assert_eq!(refused, [""; 0], "WorkflowExecutions were refused");
        println!(
            "          {reviews} reviews were answered, the slowest after {:.1} s; {} WorkflowExecutions were admitted",
            slowest.as_secs_f32(),
            created.len()
        );
        created
    }
}

async fn review(
    api: Api<WorkflowExecution>,
    probe: WorkflowExecution,
    stop: CancellationToken,
) -> (usize, Duration, Vec<String>) {
    let (mut sent, mut slowest, mut failed) = (0, Duration::ZERO, Vec::new());
    let mut due = tokio::time::interval(REVIEW_INTERVAL);
    while stop.run_until_cancelled(due.tick()).await.is_some() {
        sent += 1;
        let started = Instant::now();
        if let Err(error) = api.create(&dry_run(), &probe).await {
            failed.push(error.to_string());
        }
        slowest = slowest.max(started.elapsed());
    }
    (sent, slowest, failed)
}

async fn execute(
    api: Api<WorkflowExecution>,
    mut requests: impl Iterator<Item = WorkflowExecution>,
    stop: CancellationToken,
    is_on: bool,
) -> (Vec<String>, Vec<String>) {
    let (mut created, mut refused) = (Vec::new(), Vec::new());
    let mut due = tokio::time::interval(EXECUTION_INTERVAL);
    while is_on && stop.run_until_cancelled(due.tick()).await.is_some() {
        let request = requests.next().expect("they never end");
        match api.create(&PostParams::default(), &request).await {
            Ok(wfe) => created.push(wfe.name_any()),
            Err(error) => refused.push(error.to_string()),
        }
    }
    (created, refused)
}

/// Each WorkflowExecution ends as Succeeded, and has run once: one Job, one pod.
pub async fn all_ran_once(client: &Client, names: &[String]) {
    let api: Api<WorkflowExecution> = Api::namespaced(client.clone(), REQUESTS);
    let mut uids = BTreeMap::new();
    for name in names {
        let ended = |it: &WorkflowExecution| it.phase().is_some_and(Phase::is_final);
        let wfe = wait::until(&api, name, "it has ended", ENDED_WITHIN, ended).await;
        let wfe = wfe.expect("ended");
        assert_eq!(wfe.phase(), Some(Phase::Succeeded), "{:?}", wfe.status);
        uids.insert(wfe.uid().expect("a uid"), name);
    }
    let jobs: Api<Job> = Api::namespaced(client.clone(), EXECUTIONS);
    let mut runs: BTreeMap<&String, i32> = uids.values().map(|name| (*name, 0)).collect();
    for job in jobs.list(&ListParams::default()).await.expect("Jobs") {
        let uid = job.labels().get(wfe_core::names::WORKFLOW_EXECUTION_UID);
        if let Some(name) = uid.and_then(|it| uids.get(it)) {
            let status = job.status.expect("a status");
            let pods = status.succeeded.unwrap_or(0) + status.failed.unwrap_or(0);
            *runs.entry(*name).or_default() += pods;
        }
    }
    let not_once: Vec<_> = runs.iter().filter(|(_, runs)| **runs != 1).collect();
    assert_eq!(not_once, [], "each runs once");
}
