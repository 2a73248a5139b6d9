//! Stand-in for Kubernaut's Gateway: a container that was OOMKilled becomes a RemediationRequest.
//!
//! The RemediationRequest holds the state: its annotation has the time of the last kill that it stands for, so
//! that a restarted Gateway neither loses a kill nor counts it twice.

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use sha2::{Digest, Sha256};
use wfe_model::remediation::{RemediationRequest, RemediationRequestSpec, ResourceIdentifier};

use crate::controller::{Handle, reconcile_each};

/// The signal, and the reason of a container that exceeded its memory limit.
pub const SIGNAL: &str = "OOMKilled";
/// Label of a RemediationRequest: the beginning of its signal's fingerprint.
const FINGERPRINT: &str = "kubernaut.ai/signal-fingerprint";
const FINGERPRINT_LENGTH: usize = 12;
/// Annotation of a RemediationRequest: the last kill that it stands for.
const LAST_SEEN: &str = "kubernaut.ai/last-seen";

/// Watches the pods of all namespaces; writes RemediationRequests into `namespace`.
pub async fn run(client: Client, namespace: &str) {
    let gateway = Gateway {
        requests: Api::namespaced(client.clone(), namespace),
        client: client.clone(),
    };
    reconcile_each(Api::all(client), gateway).await;
}

struct Gateway {
    client: Client,
    requests: Api<RemediationRequest>,
}

/// What to do about a kill.
#[derive(Debug, PartialEq)]
enum Decision {
    /// It is the first since the last request has ended.
    Create,
    /// This request is about it, too.
    Count(String),
    /// A request stands for it already.
    Known,
}

impl Handle<Pod> for Gateway {
    async fn handle(&self, pod: &Pod) -> Result<()> {
        let Some(killed) = killed_at(pod) else {
            return Ok(());
        };
        let Some(workload) = self.workload(pod).await? else {
            return Ok(());
        };
        let fingerprint = hex::encode(Sha256::digest(format!("{SIGNAL} {}", workload.target())));
        let label = fingerprint.get(..FINGERPRINT_LENGTH).unwrap_or_default();
        let same = ListParams::default().labels(&format!("{FINGERPRINT}={label}"));
        let known = self.requests.list(&same).await?.items;
        match decide(killed, &known) {
            Decision::Known => {}
            Decision::Count(name) => {
                let seen =
                    json!({ "metadata": { "annotations": { LAST_SEEN: killed.to_string() } } });
                let patch = Patch::Merge(seen);
                let params = PatchParams::default();
                self.requests.patch(&name, &params, &patch).await?;
                tracing::info!(request = name, "killed again");
            }
            Decision::Create => {
                let name = format!("rr-{label}-{}", killed.as_second());
                let mut request = RemediationRequest::new(
                    &name,
                    RemediationRequestSpec {
                        signal_fingerprint: fingerprint.clone(),
                        signal_name: SIGNAL.to_owned(),
                        severity: "critical".to_owned(),
                        signal_type: "kubernetes-event".to_owned(),
                        target_type: "kubernetes".to_owned(),
                        target_resource: workload.clone(),
                        cluster_id: String::new(),
                        firing_time: killed.to_string(),
                        received_time: Timestamp::now().to_string(),
                    },
                );
                let labels = &mut request.metadata.labels;
                *labels = Some([(FINGERPRINT.to_owned(), label.to_owned())].into());
                let created = self.requests.create(&PostParams::default(), &request).await;
                match created {
                    Ok(_) => tracing::info!(request = name, target = workload.target(), "created"),
                    // An earlier process has created it.
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(error) => return Err(error).context("create the RemediationRequest"),
                }
            }
        }
        Ok(())
    }
}

impl Gateway {
    /// The workload that makes the pod anew when it ends; Jobs do not.
    async fn workload(&self, pod: &Pod) -> Result<Option<ResourceIdentifier>> {
        let namespace = pod.namespace().unwrap_or_default();
        let mut owner = controller(pod.owner_references());
        if owner.as_ref().is_some_and(|it| it.kind == "ReplicaSet") {
            let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
            let name = owner.map(|it| it.name).unwrap_or_default();
            let set = sets.get_opt(&name).await?;
            owner = set.and_then(|it| controller(it.owner_references()));
        }
        let owner = owner
            .filter(|it| ["Deployment", "StatefulSet", "DaemonSet"].contains(&it.kind.as_str()));
        Ok(owner.map(|it| ResourceIdentifier {
            api_version: it.api_version,
            kind: it.kind,
            name: it.name,
            namespace,
        }))
    }
}

fn controller(owners: &[OwnerReference]) -> Option<OwnerReference> {
    owners
        .iter()
        .find(|it| it.controller == Some(true))
        .cloned()
}

/// When a container of the pod was last killed; `None` also for a pod that is being deleted.
pub fn killed_at(pod: &Pod) -> Option<Timestamp> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let containers = pod
        .status
        .iter()
        .flat_map(|it| it.container_statuses.iter().flatten());
    let states = containers.flat_map(|it| [&it.state, &it.last_state]);
    let ends = states.filter_map(|it| it.as_ref()?.terminated.as_ref());
    let kills = ends.filter(|it: &&ContainerStateTerminated| it.reason.as_deref() == Some(SIGNAL));
    kills
        .filter_map(|it| Some(it.finished_at.as_ref()?.0))
        .max()
}

fn decide(killed: Timestamp, known: &[RemediationRequest]) -> Decision {
    if known.iter().any(|it| last_seen(it) >= Some(killed)) {
        return Decision::Known;
    }
    let active = known.iter().find(|it| !it.is_ended());
    active.map_or(Decision::Create, |it| Decision::Count(it.name_any()))
}

/// The last kill that a request stands for.
fn last_seen(request: &RemediationRequest) -> Option<Timestamp> {
    let last = request.annotations().get(LAST_SEEN);
    last.unwrap_or(&request.spec.firing_time).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(phase: &str, fired: &str, seen: Option<&str>) -> RemediationRequest {
        let annotations = seen.map(|it| json!({ LAST_SEEN: it }));
        let request = json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationRequest",
            "metadata": { "name": "rr", "annotations": annotations },
            "spec": { "firingTime": fired }, "status": { "overallPhase": phase },
        });
        serde_json::from_value(request).expect("a request")
    }

    #[test]
    fn kill_is_counted_by_the_open_request_or_creates_the_next_one() {
        let [first, second] = ["2026-01-01T12:00:00Z", "2026-01-01T12:00:20Z"];
        let decide =
            |known: &[RemediationRequest]| super::decide(second.parse().expect("a time"), known);
        assert_eq!(decide(&[]), Decision::Create);
        assert_eq!(decide(&[request("Failed", first, None)]), Decision::Create);
        assert_eq!(
            decide(&[request("", first, None)]),
            Decision::Count("rr".to_owned())
        );
        assert_eq!(
            decide(&[request("Failed", first, Some(second))]),
            Decision::Known
        );
        assert_eq!(
            decide(&[request("Completed", second, None)]),
            Decision::Known
        );
    }

    #[test]
    fn killed_at_reads_the_newest_kill_of_a_pod_that_stays() {
        let end = |at: &str, reason: &str| json!({ "terminated": { "exitCode": 137, "finishedAt": at, "reason": reason } });
        let pod = json!({
            "metadata": { "name": "p" },
            "status": { "containerStatuses": [{
                "name": "app", "ready": false, "restartCount": 1, "image": "i", "imageID": "i",
                "state": end("2026-01-01T12:00:09Z", "Error"), "lastState": end("2026-01-01T12:00:00Z", SIGNAL),
            }] },
        });
        let mut pod: Pod = serde_json::from_value(pod).expect("a pod");
        assert_eq!(killed_at(&pod), "2026-01-01T12:00:00Z".parse().ok());
        pod.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T12:00:10Z")).ok();
        assert_eq!(killed_at(&pod), None);
    }
}
