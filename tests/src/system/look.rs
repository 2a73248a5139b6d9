//! What tests do with WorkflowExecutions, and read from them, their Jobs, pods and locks.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, UserInfo};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use wfe_model::audit::{AuditEvent, EventType};
use wfe_model::workflow_execution::WorkflowExecution;

use super::script::Script;
use super::state::System;
use crate::cluster::wait;

const ENDED_WITHIN: Duration = Duration::from_mins(2);
const HAPPENS_WITHIN: Duration = Duration::from_secs(30);
const GONE_WITHIN: Duration = Duration::from_mins(1);

impl System {
    /// Waits until a WorkflowExecution has ended and its audit trail is acknowledged.
    pub async fn ended(&self, name: &str) -> Result<WorkflowExecution> {
        self.ended_within(name, ENDED_WITHIN).await
    }

    /// As [`ended`](Self::ended), with a deadline of its own.
    pub async fn ended_within(&self, name: &str, deadline: Duration) -> Result<WorkflowExecution> {
        let acknowledged =
            |wfe: &WorkflowExecution| condition(wfe, "AuditRecorded").starts_with("True");
        let what = "the execution has ended and is audited";
        wait::until(&self.namespace.api(), name, what, deadline, acknowledged).await
    }

    /// Creates a Secret in the execution namespace.
    pub async fn add_secret(&self, name: &str, data: Value) -> Result<()> {
        let secret = json!({ "metadata": { "name": name }, "stringData": data });
        let secret: Secret = serde_json::from_value(secret)?;
        let api = self.execution.api();
        api.create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    /// Creates a ConfigMap in the execution namespace.
    pub async fn add_config_map(&self, name: &str, data: Value) -> Result<()> {
        let map = json!({ "metadata": { "name": name }, "data": data });
        let map: ConfigMap = serde_json::from_value(map)?;
        let api = self.execution.api();
        api.create(&PostParams::default(), &map).await?;
        Ok(())
    }

    /// Creates a WorkflowExecution of `workflow`, with `spec` merged into its spec.
    pub async fn create(
        &self,
        workflow: &Script,
        name: &str,
        spec: &Value,
    ) -> Result<WorkflowExecution> {
        let request = workflow.request(name, spec);
        let api = self.namespace.api::<WorkflowExecution>();
        Ok(api.create(&PostParams::default(), &request).await?)
    }

    /// Waits until a condition of a WorkflowExecution is `expected`, as `status/reason`.
    pub async fn until(&self, name: &str, kind: &str, expected: &str) -> Result<WorkflowExecution> {
        let is = |wfe: &WorkflowExecution| condition(wfe, kind) == expected;
        let what = format!("{kind} is {expected}");
        wait::until(&self.namespace.api(), name, &what, HAPPENS_WITHIN, is).await
    }

    /// Requests cancellation of a WorkflowExecution, with a reason.
    pub async fn cancel(&self, name: &str, why: &str) -> Result<()> {
        let mut annotations = json!({ "kubernaut.ai/cancel": why });
        if self.webhook.is_none() {
            let user = self.administrator().await?.username;
            annotations = json!({ "kubernaut.ai/cancel": why, "kubernaut.ai/cancelled-by": user });
        }
        let patch = json!({ "metadata": { "annotations": annotations } });
        let api = self.namespace.api::<WorkflowExecution>();
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Deletes a WorkflowExecution without waiting for its finalizer.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let api = self.namespace.api::<WorkflowExecution>();
        api.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until a deleted WorkflowExecution is gone.
    pub async fn gone(&self, name: &str) -> Result<()> {
        wait::gone(
            &self.namespace.api::<WorkflowExecution>(),
            name,
            GONE_WITHIN,
        )
        .await
    }

    /// All Jobs in the execution namespace.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        Ok(self
            .execution
            .api::<Job>()
            .list(&ListParams::default())
            .await?
            .items)
    }

    /// All pods in the execution namespace that have not ended.
    pub async fn live_pods(&self) -> Result<Vec<Pod>> {
        let mut pods = self
            .execution
            .api::<Pod>()
            .list(&ListParams::default())
            .await?
            .items;
        pods.retain(pod_is_alive);
        Ok(pods)
    }

    /// Waits until no target lock is held by this WorkflowExecution.
    pub async fn unlocked(&self, name: &str) -> Result<()> {
        self.unlocked_within(name, ENDED_WITHIN).await
    }

    /// As [`unlocked`](Self::unlocked), with a deadline of its own.
    pub async fn unlocked_within(&self, name: &str, deadline: Duration) -> Result<()> {
        let holder = format!("{}/{name}/", self.namespace.name());
        let leases = self.execution.api::<Lease>();
        for lease in leases.list(&ListParams::default()).await? {
            let free = |lease: &Lease| {
                let held = lease
                    .spec
                    .as_ref()
                    .and_then(|it| it.holder_identity.as_deref());
                !held.is_some_and(|it| it.starts_with(&holder))
            };
            let lock = lease.name_any();
            wait::until(&leases, &lock, "the lock is free", deadline, free).await?;
        }
        Ok(())
    }

    /// The holder identities of all target locks that are held.
    pub async fn holders(&self) -> Result<Vec<String>> {
        let leases = self
            .execution
            .api::<Lease>()
            .list(&ListParams::default())
            .await?;
        let holders = leases
            .items
            .into_iter()
            .filter_map(|it| it.spec?.holder_identity);
        Ok(holders.filter(|holder| !holder.is_empty()).collect())
    }

    async fn administrator(&self) -> Result<UserInfo> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.cluster.admin());
        let review = SelfSubjectReview::default();
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let user = answer.status.and_then(|it| it.user_info);
        Ok(user.unwrap_or_default())
    }

    /// Clears the block that a failed WorkflowExecution left on its target, as an administrator.
    pub async fn clear(&self, name: &str) -> Result<()> {
        let reason = "looked at the target, it is fine";
        let status = if self.webhook.is_some() {
            json!({ "blockClearanceRequest": { "clearReason": reason } })
        } else {
            // Without the webhook, the policies let a user write blockClearance in their own name.
            let user = self.administrator().await?;
            json!({ "blockClearance": {
                "clearedBy": user.username, "clearedByUid": user.uid,
                "clearedAt": Time(Timestamp::now()), "clearReason": reason,
                "clearMethod": "KubernetesAdmissionWebhook",
            } })
        };
        let patch = Patch::Merge(json!({ "status": status }));
        let api = self.namespace.api::<WorkflowExecution>();
        api.patch_status(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// The types of the audit events of one WorkflowExecution so far.
    pub fn trail_of(&self, name: &str) -> Result<Vec<EventType>> {
        let Some(storage) = &self.data_storage else {
            return Ok(types(&self.audit_trail()?, name));
        };
        let trail = storage.trails()?.remove(name).unwrap_or_default();
        let types = trail
            .iter()
            .map(|it| EventType::named(it).context("unknown event type"));
        types.collect()
    }
}

/// Parameters of a create that passes admission and is not stored.
pub fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// Whether a pod has not reached a terminal phase.
pub fn pod_is_alive(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a Job is Complete or Failed.
pub fn job_has_ended(job: &Job) -> bool {
    let conditions = job
        .status
        .iter()
        .flat_map(|it| it.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|it| ["Complete", "Failed"].contains(&it.type_.as_str()) && it.status == "True")
}

/// `status/reason` of a condition.
pub fn condition(wfe: &WorkflowExecution, kind: &str) -> String {
    find_condition(wfe, kind).map_or("absent".to_owned(), |it| {
        format!("{}/{}", it.status, it.reason)
    })
}

/// The message of a condition; empty without the condition.
pub fn message(wfe: &WorkflowExecution, kind: &str) -> String {
    find_condition(wfe, kind).map_or(String::new(), |it| it.message.clone())
}

fn find_condition<'a>(wfe: &'a WorkflowExecution, kind: &str) -> Option<&'a Condition> {
    let mut conditions = wfe.status.iter().flat_map(|status| &status.conditions);
    conditions.find(|it| it.type_ == kind)
}

/// Types of the audit events of one WorkflowExecution.
pub fn types(events: &[AuditEvent], name: &str) -> Vec<EventType> {
    let of = events.iter().filter(|event| event.resource_id == name);
    of.map(|event| event.event_type).collect()
}
