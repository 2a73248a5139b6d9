//! `wfe-controller release`: takes our finalizer off, so that WorkflowExecutions can be deleted
//! when no controller runs any more.

use std::io::Write;

use anyhow::{Context, Result};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use wfe_model::FINALIZER;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_peers::client;

use wfe_core::audit;
use wfe_core::condition::ConditionType;
use wfe_core::history::Entry;
use wfe_core::status::stored;

/// Takes the finalizer off every WorkflowExecution of `namespace`, and says what that gives up.
pub async fn release(namespace: &str, out: &mut impl Write) -> Result<()> {
    let api: Api<WorkflowExecution> = Api::namespaced(client::connect().await?, namespace);
    let listed = api.list(&ListParams::default()).await;
    let mut released = 0;
    for wfe in listed.with_context(|| format!("list the WorkflowExecutions of {namespace}"))? {
        let Some(rest) = without_ours(&wfe) else {
            continue;
        };
        let name = wfe.name_any();
        let patch = Patch::Merge(json!({ "metadata": {
            "resourceVersion": wfe.metadata.resource_version,
            "finalizers": rest,
        } }));
        match api.patch(&name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error).with_context(|| format!("release {namespace}/{name}")),
        }
        released += 1;
        writeln!(out, "{namespace}/{name}: released{}", given_up(&wfe))?;
    }
    writeln!(out, "{released} released in namespace {namespace}")?;
    Ok(())
}

fn without_ours(wfe: &WorkflowExecution) -> Option<Vec<&String>> {
    let finalizers = wfe.metadata.finalizers.as_ref()?;
    finalizers
        .iter()
        .any(|it| it == FINALIZER)
        .then(|| finalizers.iter().filter(|it| *it != FINALIZER).collect())
}

/// What nobody will do any more for this one.
fn given_up(wfe: &WorkflowExecution) -> String {
    let mut lost = Vec::new();
    if wfe.phase() == Some(Phase::Running)
        && let Some(it) = wfe.execution_ref()
    {
        lost.push(format!(
            "{} {}/{} runs on, its end is told nowhere",
            it.kind, it.namespace, it.name
        ));
    }
    if matches!(wfe.phase(), None | Some(Phase::Pending)) {
        lost.push("it is not run".to_owned());
    }
    if Entry::of(wfe).is_some_and(|entry| entry.blocks()) {
        lost.push("its block can be forgotten".to_owned());
    }
    let kinds = [
        ConditionType::AuditRecorded,
        ConditionType::ClearanceRecorded,
    ];
    let refused = |kind| stored(wfe, kind).is_some_and(|it| it.reason == "AuditEventRejected");
    let open = !audit::open(wfe).is_empty() || kinds.into_iter().any(refused);
    if wfe.phase() == Some(Phase::Running) || open {
        lost.push("audit events may be missing".to_owned());
    }
    if lost.is_empty() {
        return String::new();
    }
    format!(" ({})", lost.join("; "))
}
