//! One remediation as its objects show it: when each hop was seen by a watch.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, LogParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use strum::VariantArray;
use tokio::sync::watch;
use tokio::task::JoinSet;
use wfe_model::engine::Engine;
use wfe_model::remediation::{AIAnalysis, RemediationRequest};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_platform::gateway::killed_at;
use wfe_platform::notification::NOTIFIED;
use wfe_tests::chart::{EXECUTIONS, PROGRAMS};
use wfe_tests::system::condition;

use crate::installation::WORKLOADS;

/// Each hop takes seconds; an image may have to be pulled, and a killed leader is followed after 15 s.
const WITHIN: Duration = Duration::from_mins(2);

/// The hops, in their usual order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, VariantArray)]
pub enum Hop {
    /// The kernel has killed the container, and the kubelet says so.
    Killed,
    /// The RemediationRequest exists.
    Requested,
    /// The AIAnalysis exists.
    Classified,
    /// The AIAnalysis has begun.
    Investigating,
    /// The AIAnalysis is complete.
    Selected,
    /// The WorkflowExecution was admitted.
    Admitted,
    /// The Job or PipelineRun exists.
    Created,
    /// The workflow's container runs.
    Running,
    /// The workload runs with its new limit.
    Healthy,
    /// The Job or PipelineRun has ended.
    Finished,
    /// The WorkflowExecution has ended.
    Ended,
    /// The RemediationRequest has ended.
    Reported,
    /// The receiver has taken the notification.
    Notified,
}

impl Hop {
    /// The component that causes the hop, and what the hop is.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Killed => ("kernel, kubelet", "the container is OOMKilled"),
            Self::Requested => ("Gateway", "RemediationRequest created"),
            Self::Classified => ("SignalProcessing", "AIAnalysis created"),
            Self::Investigating => ("wfe-controller", "investigation begun"),
            Self::Selected => (
                "wfe-controller",
                "workflow selected by HolmesGPT-API, checked",
            ),
            Self::Admitted => (
                "wfe-controller",
                "WorkflowExecution created, admitted by wfe-webhook",
            ),
            Self::Created => ("wfe-controller", "target locked, execution created"),
            Self::Running => ("kubelet", "workflow's container runs"),
            Self::Healthy => ("workflow", "limit raised, workload healthy"),
            Self::Finished => ("kubelet, engine", "execution has ended"),
            Self::Ended => ("wfe-controller", "end seen, WorkflowExecution ended"),
            Self::Reported => ("wfe-controller", "RemediationRequest ended"),
            Self::Notified => ("Notification", "receiver has taken the notification"),
        }
    }

    /// Whether the time since the hop before it is wfe's own.
    pub fn is_own(self) -> bool {
        self.describe().0 == "wfe-controller"
    }
}

type Seen = BTreeMap<Hop, Timestamp>;

/// The hops of one workload's next remediation; watches until the value is dropped.
pub struct Timeline {
    client: Client,
    workload: String,
    seen: watch::Sender<Seen>,
    _watches: JoinSet<()>,
}

impl Timeline {
    /// Begins to watch.
    pub fn of(client: &Client, workload: &str, engine: Engine) -> Self {
        let seen = watch::Sender::new(Seen::new());
        let mut watches = JoinSet::new();
        let in_workloads = workload.to_owned();
        follow(
            &mut watches,
            Api::namespaced(client.clone(), WORKLOADS),
            &seen,
            move |it: &Pod| {
                let is_own = it.labels().get("app") == Some(&in_workloads);
                if is_own && killed_at(it).is_some() {
                    vec![Hop::Killed]
                } else {
                    vec![]
                }
            },
        );
        let name = workload.to_owned();
        follow(
            &mut watches,
            Api::namespaced(client.clone(), WORKLOADS),
            &seen,
            move |it: &Deployment| {
                if it.name_any() == name && is_healthy(it) {
                    vec![Hop::Healthy]
                } else {
                    vec![]
                }
            },
        );
        let name = workload.to_owned();
        follow(
            &mut watches,
            Api::namespaced(client.clone(), PROGRAMS),
            &seen,
            move |it: &RemediationRequest| {
                if it.spec.target_resource.name != name {
                    return vec![];
                }
                let ended = it.is_ended().then_some(Hop::Reported);
                let notified = it.annotations().contains_key(NOTIFIED);
                let notified = notified.then_some(Hop::Notified);
                [Some(Hop::Requested), ended, notified]
                    .into_iter()
                    .flatten()
                    .collect()
            },
        );
        let name = workload.to_owned();
        follow(
            &mut watches,
            Api::namespaced(client.clone(), PROGRAMS),
            &seen,
            move |it: &AIAnalysis| {
                if it.spec.analysis_request.signal_context.target_resource.name != name {
                    return vec![];
                }
                match it.status.as_ref().map_or("", |it| &it.phase) {
                    "" | "Pending" => vec![Hop::Classified],
                    "Completed" => vec![Hop::Classified, Hop::Investigating, Hop::Selected],
                    _ => vec![Hop::Classified, Hop::Investigating],
                }
            },
        );
        let suffix = format!("/{workload}");
        follow(
            &mut watches,
            Api::namespaced(client.clone(), PROGRAMS),
            &seen,
            move |it: &WorkflowExecution| {
                if !it.spec.target_resource.ends_with(&suffix) {
                    return vec![];
                }
                let status = it.status.as_ref();
                let created = status.is_some_and(|it| it.execution_ref.is_some());
                let running = condition(it, "ExecutionRunning").starts_with("True");
                let ended = it.phase().is_some_and(Phase::is_final);
                let hops = [
                    (true, Hop::Admitted),
                    (created, Hop::Created),
                    (running, Hop::Running),
                    (ended, Hop::Ended),
                ];
                hops.into_iter()
                    .filter(|(is, _)| *is)
                    .map(|(_, hop)| hop)
                    .collect()
            },
        );
        let (api_version, kind) = engine.runs_as();
        let (group, version) = api_version.split_once('/').expect("a group");
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let executions = Api::<DynamicObject>::namespaced_with(client.clone(), EXECUTIONS, &kind);
        let target = json!(format!("{WORKLOADS}/Deployment/{workload}")).to_string();
        follow(&mut watches, executions, &seen, move |it| {
            if it.data.to_string().contains(&target) && has_ended(it) {
                vec![Hop::Finished]
            } else {
                vec![]
            }
        });
        Self {
            client: client.clone(),
            workload: workload.to_owned(),
            seen,
            _watches: watches,
        }
    }

    /// Waits until the hop was seen.
    pub async fn reached(&self, hop: Hop) {
        let mut seen = self.seen.subscribe();
        let reached = seen.wait_for(|it| it.contains_key(&hop));
        let reached = tokio::time::timeout(WITHIN, reached).await.is_ok();
        let seen = self.seen.borrow().clone();
        assert!(
            reached,
            "{}: not within {WITHIN:?}: {hop:?}; seen: {seen:?}",
            self.workload
        );
    }

    /// When the container began to take the memory that it was killed for: the first line of its log. The
    /// status of a pod has whole seconds only. The container may be restarted meanwhile.
    pub async fn killed_at(&self) -> Option<Timestamp> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), WORKLOADS);
        let own = ListParams::default().labels(&format!("app={}", self.workload));
        let pod = pods
            .list(&own)
            .await
            .ok()?
            .items
            .into_iter()
            .find(|it| killed_at(it).is_some())?;
        for previous in [true, false, true] {
            let parameters = LogParams {
                previous,
                timestamps: true,
                ..LogParams::default()
            };
            let Ok(log) = pods.logs(&pod.name_any(), &parameters).await else {
                continue;
            };
            let first = log.lines().next().and_then(|it| it.split(' ').next());
            if let Some(at) = first.and_then(|it| it.parse().ok()) {
                return Some(at);
            }
        }
        None
    }

    /// The hops that were seen, in the order in which they happened.
    pub fn hops(&self) -> Vec<(Hop, Timestamp)> {
        let seen = self.seen.borrow();
        let mut hops: Vec<_> = seen.iter().map(|(hop, at)| (*hop, *at)).collect();
        hops.sort_by_key(|(hop, at)| (*at, *hop));
        hops
    }
}

fn follow<K>(
    watches: &mut JoinSet<()>,
    api: Api<K>,
    seen: &watch::Sender<Seen>,
    hops: impl Fn(&K) -> Vec<Hop> + Send + 'static,
) where
    K: Clone + Debug + DeserializeOwned + Resource + Send + 'static,
{
    let seen = seen.clone();
    watches.spawn(async move {
        let objects = watcher(api, watcher::Config::default()).default_backoff();
        let mut objects = Box::pin(objects.applied_objects());
        while let Some(object) = objects.next().await {
            let now = Timestamp::now();
            let Ok(object) = object else { continue };
            let reached = hops(&object);
            seen.send_if_modified(|seen| {
                let before = seen.len();
                for hop in reached {
                    seen.entry(hop).or_insert(now);
                }
                seen.len() > before
            });
        }
    });
}

/// Whether a Job or PipelineRun has ended.
fn has_ended(execution: &DynamicObject) -> bool {
    let conditions = execution.data["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|it| {
        let end = ["Complete", "Failed", "Succeeded"].map(Value::from);
        end.contains(&it["type"]) && (it["status"] == "True" || it["reason"] == "Failed")
    })
}

fn is_healthy(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else {
        return false;
    };
    let generation = deployment.metadata.generation;
    status.observed_generation == generation
        && status.updated_replicas == Some(1)
        && status.available_replicas == Some(1)
        && status.replicas == Some(1)
}

/// Prints the hops, each with its time since the first and the one before it.
pub fn print(title: &str, began: Timestamp, hops: &[(Hop, Timestamp)]) {
    println!("{title}, began {began:.0}:");
    let mut before = began;
    let (mut healthy, mut own) = (0.0, 0.0);
    for (hop, at) in hops {
        let since = |from: Timestamp| at.duration_since(from).as_secs_f64();
        let (who, what) = hop.describe();
        println!(
            "{:8.3} s  {:+7.3} s  {who:16} {what}",
            since(began),
            since(before)
        );
        if *hop == Hop::Healthy {
            healthy = since(began);
        }
        if healthy == 0.0 && hop.is_own() {
            own += since(before);
        }
        before = *at;
    }
    println!(
        "{healthy:8.3} s  from the kill to the healthy workload, {own:.3} s of it in wfe-controller and wfe-webhook"
    );
}
