//! `wfe-controller clear-target`: clears the block of a target whose blocking WorkflowExecution is
//! gone, so that nobody can clear it there. The lock's records keep such a block.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use kube::{Api, Client};
use wfe_core::clearing::{self, TargetClearance};
use wfe_core::history::Entry;
use wfe_core::lock::TargetLock;
use wfe_core::names::{TargetHash, lock_name};
use wfe_model::target::Target;
use wfe_model::workflow_execution::{CLEAR_REASON, CLEAR_REASON_MIN, WorkflowExecution};
use wfe_peers::client;

/// Clears the block of `target`, and prints the executions that had blocked it.
pub async fn clear(
    target: &str,
    execution_namespace: &str,
    reason: &str,
    out: &mut impl Write,
) -> Result<()> {
    let parsed = Target::parse(target);
    let parsed = parsed.with_context(|| format!("{target:?} is no [namespace/]kind/name"))?;
    let reason = reason.trim();
    ensure!(
        reason.chars().count() >= CLEAR_REASON_MIN,
        "--reason: {CLEAR_REASON}"
    );
    let client = client::connect().await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), execution_namespace);
    let name = lock_name(&TargetHash::of(&parsed));
    let found = leases.get_opt(&name).await;
    let found = found.with_context(|| format!("read Lease {execution_namespace}/{name}"))?;
    let Some(lease) = found else {
        bail!("{target} is not blocked: there is no Lease {execution_namespace}/{name}");
    };
    for record in TargetLock::from(Some(lease.clone().into())).records() {
        if record.failed() && !record.cleared {
            check_cannot_be_cleared_itself(&client, record).await?;
            check_allowed(&client, &record.namespace).await?;
        }
    }
    let (cleared_by, cleared_at) = user_and_time(&client).await?;
    let clearance = TargetClearance {
        cleared_by,
        cleared_at,
        clear_reason: reason.to_owned(),
    };
    let Some((lease, cleared)) = clearing::cleared(lease, &clearance) else {
        bail!("{target} is not blocked by a record of its lock");
    };
    let replaced = leases.replace(&name, &PostParams::default(), &lease).await;
    replaced.with_context(|| format!("write Lease {execution_namespace}/{name}"))?;
    for entry in cleared {
        writeln!(
            out,
            "{target}: cleared the block of WorkflowExecution {}/{} (workflow {}, failed at {})",
            entry.namespace, entry.name, entry.workflow_id, entry.completion_time
        )?;
    }
    Ok(())
}

/// A WorkflowExecution that exists is cleared there, with an audit event. If it is cleared already,
/// only the record lags.
async fn check_cannot_be_cleared_itself(client: &Client, record: &Entry) -> Result<()> {
    let Entry {
        namespace,
        name,
        uid,
        ..
    } = record;
    let api: Api<WorkflowExecution> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await;
    let found = found.with_context(|| format!("read WorkflowExecution {namespace}/{name}"))?;
    let found = found.filter(|it| it.metadata.uid.as_ref() == Some(uid));
    let uncleared = found.is_some_and(|it| {
        let clearance = it.status.and_then(|status| status.block_clearance);
        clearance.is_none()
    });
    ensure!(
        !uncleared,
        "WorkflowExecution {namespace}/{name} blocks the target and exists, clear it there: {}",
        clearing::command(namespace, name)
    );
    Ok(())
}

/// To clear a block without its object takes the verb that lets a user remove our finalizer.
async fn check_allowed(client: &Client, namespace: &str) -> Result<()> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some("release".to_owned()),
                group: Some("kubernaut.ai".to_owned()),
                resource: Some("workflowexecutions".to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    let allowed = answer.status.is_some_and(|it| it.allowed);
    ensure!(
        allowed,
        "not allowed: this takes the verb release on workflowexecutions in namespace {namespace}"
    );
    Ok(())
}

/// The user name that the API server knows us by, and its time: the clock of this machine may be
/// wrong.
async fn user_and_time(client: &Client) -> Result<(String, Timestamp)> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = SelfSubjectReview::default();
    let answer = reviews.create(&PostParams::default(), &review).await;
    let answer = answer.context("ask for the own user name")?;
    let time = answer.metadata.creation_timestamp.map(|it| it.0);
    let user = answer.status.and_then(|it| it.user_info);
    let user = user.and_then(|it| it.username);
    let user = user.context("the API server knows no user name")?;
    Ok((user, time.unwrap_or_else(Timestamp::now)))
}
