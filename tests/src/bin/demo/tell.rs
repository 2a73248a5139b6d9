//! Terminal output of the demo.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::process::Command;
use wfe_model::workflow_execution::WorkflowExecution;

const DEADLINE: Duration = Duration::from_mins(1);

/// Condition types in the order in which they become true.
const CONDITIONS: [&str; 7] = [
    "WorkflowResolved",
    "DependenciesReady",
    "ExecutionCreated",
    "ExecutionRunning",
    "ExecutionComplete",
    "Ready",
    "AuditRecorded",
];

pub(crate) fn chapter(title: &str) {
    println!("\n\x1b[1m{title}\x1b[0m");
}

pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// Runs kubectl and prints its output after `shown`, the command as a user would type it; returns
/// whether it succeeded, and the output.
pub(crate) async fn kubectl(shown: &str, arguments: &[&str]) -> Result<(bool, String)> {
    println!("\n\x1b[2m$ kubectl {shown}\x1b[0m");
    let output = Command::new("kubectl")
        .args(arguments)
        .output()
        .await
        .context("start kubectl")?;
    let text = String::from_utf8([output.stdout, output.stderr].concat())?;
    println!("{}", text.trim_end());
    Ok((output.status.success(), text))
}

/// Runs [`kubectl`]; an error if it fails.
pub(crate) async fn kubectl_ok(shown: &str, arguments: &[&str]) -> Result<String> {
    let (success, text) = kubectl(shown, arguments).await?;
    ensure!(success, "kubectl {shown} failed");
    Ok(text)
}

/// Prints each transition of a condition, until the audit trail is acknowledged.
pub(crate) async fn follow(api: &Api<WorkflowExecution>, name: &str) -> Result<WorkflowExecution> {
    let started = Instant::now();
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut objects = Box::pin(
        watcher(api.clone(), config)
            .default_backoff()
            .applied_objects(),
    );
    let mut seen = BTreeMap::new();
    let following = async {
        while let Some(wfe) = objects.next().await {
            let wfe = wfe?;
            let mut conditions: Vec<_> = wfe
                .status
                .iter()
                .flat_map(|status| &status.conditions)
                .collect();
            conditions.sort_by_key(|it| CONDITIONS.iter().position(|kind| *kind == it.type_));
            for it in conditions {
                let now = (it.status.clone(), it.reason.clone());
                if seen.insert(it.type_.clone(), now.clone()) != Some(now) {
                    println!(
                        "  {:4.1} s  {:18} {:24} {}",
                        started.elapsed().as_secs_f32(),
                        it.type_,
                        format!("{}/{}", it.status, it.reason),
                        it.message
                    );
                }
            }
            if seen
                .get("AuditRecorded")
                .is_some_and(|(status, _)| status == "True")
            {
                return Ok(wfe);
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(DEADLINE, following)
        .await
        .with_context(|| format!("{name} did not end within {} s", DEADLINE.as_secs()))?
}
