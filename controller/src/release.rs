//! `wfe-controller release`: removes the controller's finalizer, so that WorkflowExecutions can be
//! deleted after the controller is uninstalled.

use std::io::Write;

use anyhow::{Context, Result};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use wfe_model::FINALIZER;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_peers::client;

use wfe_core::audit;
use wfe_core::condition::{ConditionType, Reason};
use wfe_core::history::Entry;
use wfe_core::status::stored;

/// Removes the finalizer from every WorkflowExecution of `namespace`, and prints for each one what
/// is lost.
pub async fn release(namespace: &str, out: &mut impl Write) -> Result<()> {
    let api: Api<WorkflowExecution> = Api::namespaced(client::connect().await?, namespace);
    let listed = api.list(&ListParams::default()).await;
    let mut released = 0;
    for wfe in listed.with_context(|| format!("list the WorkflowExecutions of {namespace}"))? {
        let Some(remaining) = other_finalizers(&wfe) else {
            continue;
        };
        let name = wfe.name_any();
        let patch = Patch::Merge(json!({ "metadata": {
            "resourceVersion": wfe.metadata.resource_version,
            "finalizers": remaining,
        } }));
        match api.patch(&name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("remove the finalizer of {namespace}/{name}"));
            }
        }
        released += 1;
        writeln!(out, "{namespace}/{name}: finalizer removed{}", losses(&wfe))?;
    }
    writeln!(
        out,
        "removed the finalizer of {released} WorkflowExecutions in namespace {namespace}"
    )?;
    Ok(())
}

/// The finalizers of other controllers; `None` if the object does not have ours.
fn other_finalizers(wfe: &WorkflowExecution) -> Option<Vec<&String>> {
    let finalizers = wfe.metadata.finalizers.as_ref()?;
    finalizers
        .iter()
        .any(|it| it == FINALIZER)
        .then(|| finalizers.iter().filter(|it| *it != FINALIZER).collect())
}

/// What is lost because no controller finalizes this WorkflowExecution.
fn losses(wfe: &WorkflowExecution) -> String {
    let mut lost = Vec::new();
    if wfe.phase() == Some(Phase::Running)
        && let Some(it) = wfe.execution_ref()
    {
        lost.push(format!(
            "{} {}/{} keeps running, and its result is not recorded",
            it.kind, it.namespace, it.name
        ));
    }
    if wfe.is_pending() {
        lost.push("its workflow is not run".to_owned());
    }
    if Entry::of(wfe).is_some_and(|entry| entry.blocks()) {
        lost.push(
            "the block of its target can then be cleared by wfe-controller clear-target only"
                .to_owned(),
        );
    }
    let kinds = [
        ConditionType::AuditRecorded,
        ConditionType::ClearanceRecorded,
    ];
    let rejected =
        |kind| stored(wfe, kind).is_some_and(|it| it.reason == Reason::AuditEventRejected.as_str());
    let undelivered = !audit::unconfirmed(wfe).is_empty() || kinds.into_iter().any(rejected);
    if wfe.phase() == Some(Phase::Running) || undelivered {
        lost.push("audit events may be missing".to_owned());
    }
    if lost.is_empty() {
        return String::new();
    }
    format!(" ({})", lost.join("; "))
}
