//! Helm and kubectl, for the cluster of `KUBECONFIG`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::cluster::Image;
use crate::folder::workspace;
use crate::system::until_effective;

/// The release and its namespace.
pub const RELEASE: &str = "workflow-execution";
/// Namespace of the programs.
pub const PROGRAMS: &str = "kubernaut-system";
/// Namespace of the executions.
pub const EXECUTIONS: &str = "kubernaut-workflows";

/// The chart's directory.
pub fn directory() -> PathBuf {
    workspace().join("charts/workflow-execution")
}

/// Creates a namespace that enforces PodSecurity `restricted`.
pub async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
    let namespace = json!({ "metadata": { "name": name, "labels": labels } });
    let namespace: Namespace = serde_json::from_value(namespace)?;
    let api = Api::all(client.clone());
    api.create(&PostParams::default(), &namespace).await?;
    Ok(())
}

/// An image that runs a shell script with kubectl.
pub fn kubectl_image(script: impl Into<String>) -> Result<Image> {
    let kubectl = on_path("kubectl").context("kubectl is not on the PATH")?;
    Ok(Image::from("busybox:1")
        .file("bin/kubectl", kubectl)
        .text("run.sh", script)
        .entrypoint(&["/bin/sh", "/run.sh"]))
}

/// Names of the sets of values in the chart's directory `ci`.
///
/// # Panics
/// If there is no such directory.
#[expect(clippy::expect_used, reason = "the one way to fail a test")]
pub fn value_sets() -> Vec<String> {
    let files = std::fs::read_dir(directory().join("ci")).expect("sets of values");
    let names = files
        .flatten()
        .filter_map(|it| it.file_name().into_string().ok());
    let mut sets: Vec<_> = names
        .filter_map(|it| it.strip_suffix("-values.yaml").map(ToOwned::to_owned))
        .collect();
    sets.sort();
    sets
}

/// A directory that came with a tool on the PATH.
pub fn tool_directory(name: &str) -> Result<PathBuf> {
    on_path(name)
        .with_context(|| format!("no {name} beside the tools: run it by `wfe-cluster tools`"))
}

/// The first file or directory of this name in a directory of the PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|it| it.join(name))
        .find(|it| it.exists())
}

/// Runs helm; returns its output.
pub async fn helm(arguments: &[&str]) -> Result<String> {
    run("helm", arguments).await
}

/// Runs kubectl; returns its output.
pub async fn kubectl(arguments: &[&str]) -> Result<String> {
    run("kubectl", arguments).await
}

/// Runs a program; an error has its output.
pub async fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("start {program}: is it on the PATH?"))?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "{program} {}: {}{}",
        arguments.join(" "),
        stdout,
        stderr
    );
    Ok(stdout.into_owned())
}

/// Installs or upgrades the release with `values`, and waits until all pods are ready and the API server
/// reaches the webhook: kube-proxy hears of ready pods a moment later.
pub async fn install(chart: &Path, values: &Value, more: &[&str]) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), values.to_string())?;
    let (chart, values) = (chart.to_string_lossy(), file.path().to_string_lossy());
    let arguments = [
        &["upgrade", "--install", RELEASE, &chart],
        &["--namespace", PROGRAMS, "--values", &values][..],
        &["--wait", "--timeout", "2m"],
        more,
    ];
    let installed = helm(&arguments.concat()).await?;
    let invalid = json!({ "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution", "metadata": { "name": "probe", "namespace": "default" }, "spec": {} });
    std::fs::write(file.path(), invalid.to_string())?;
    let path = file.path().to_string_lossy();
    until_effective("the webhook's Service", async || {
        let refused = kubectl(&["create", "--dry-run=server", "-f", &path]).await;
        Ok(refused.is_err_and(|error| !error.to_string().contains("failed calling webhook")))
    })
    .await?;
    Ok(installed)
}
