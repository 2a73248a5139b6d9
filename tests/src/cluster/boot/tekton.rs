//! Installs Tekton Pipelines: controller, webhook and resolvers as pods, from the manifests of its
//! own Go module.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::runtime::wait::Condition;
use kube::runtime::wait::conditions::is_deployment_completed;
use kube::{Api, Client};
use serde_json::json;
use tokio::process::Command;

use super::Boot;
use crate::cluster::registry::{Image, Registry};
use crate::cluster::wait;

/// Commands whose images the manifests name.
const COMMANDS: [&str; 6] = [
    "controller",
    "webhook",
    "resolvers",
    "entrypoint",
    "nop",
    "workingdirinit",
];
/// Manifests of components that no test needs: an autoscaler, and the controller that sends cloud
/// events.
const LEFT_OUT: [&str; 2] = ["webhook-hpa.yaml", "events.yaml"];
/// An image reference in the manifests, before the name of its command.
const IMAGE_PREFIX: &str = "ko://github.com/tektoncd/pipeline/cmd/";
const SHELL_IMAGE: &str = "cgr.dev/chainguard/busybox@sha256:19f02276bf8dbdd62f069b922f10c65262cc34b710eea26ff928129a736be791";
const DEPLOYMENTS: [(&str, &str); 3] = [
    ("tekton-pipelines", "tekton-pipelines-controller"),
    ("tekton-pipelines", "tekton-pipelines-webhook"),
    (
        "tekton-pipelines-resolvers",
        "tekton-pipelines-remote-resolvers",
    ),
];
const DEADLINE: Duration = Duration::from_mins(2);
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// User name of Tekton's controller.
const CONTROLLER: &str = "system:serviceaccount:tekton-pipelines:tekton-pipelines-controller";

/// Pushes the images, and writes the manifests that name them; returns their directory.
pub(super) fn prepare(boot: &Boot, registry: &Registry, built: &Path) -> Result<PathBuf> {
    for command in COMMANDS {
        let path = format!("/ko-app/{command}");
        let image = Image::scratch().file(&path, built.join(command));
        registry.push(&image_name(command), &image.entrypoint(&[&path]))?;
    }
    let manifests = boot.path("tekton");
    rewrite_all(&built.join("config"), &manifests, registry.address())?;
    Ok(manifests)
}

fn image_name(command: &str) -> String {
    format!("tekton/{command}:1")
}

/// Copies manifests, with the images of this cluster.
fn rewrite_all(from: &Path, to: &Path, registry: &str) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (source, target) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if source.is_dir() {
            rewrite_all(&source, &target, registry)?;
        } else if source.extension() == Some(OsStr::new("yaml"))
            && !LEFT_OUT.iter().any(|name| source.ends_with(name))
        {
            let text = fs::read_to_string(&source)
                .with_context(|| format!("read {}", source.display()))?;
            fs::write(target, rewrite(&text, registry))?;
        }
    }
    Ok(())
}

fn rewrite(manifest: &str, registry: &str) -> String {
    let mut text = manifest.replace(SHELL_IMAGE, &format!("{registry}/busybox:1"));
    for command in COMMANDS {
        let image = format!("{registry}/{}", image_name(command));
        text = text.replace(&format!("{IMAGE_PREFIX}{command}"), &image);
    }
    // The namespace for workflows enforces PodSecurity `restricted`.
    text = text.replace(
        "set-security-context: \"false\"",
        "set-security-context: \"true\"",
    );
    // The images consist of one binary each.
    text.replace("        - /sbin/tini\n        - --\n", "")
}

/// Applies the manifests and waits until the pods are ready.
pub(super) async fn install(boot: &Boot, client: &Client, manifests: &Path) -> Result<()> {
    for namespace in ["100-namespace", "resolvers/100-namespace.yaml"] {
        kubectl_apply(boot, &manifests.join(namespace)).await?;
    }
    kubectl_apply(boot, manifests).await?;
    for (namespace, name) in DEPLOYMENTS {
        let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let ready = |it: &Deployment| is_deployment_completed().matches_object(Some(it));
        wait::until(&api, name, "all pods are ready", DEADLINE, ready).await?;
    }
    let known = tokio::time::timeout(DEADLINE, task_runs_may_own_pods(boot)).await;
    known.context("the API server does not know the kind TaskRun as an owner of pods")?
}

/// Waits until the admission plugin for owner references knows the kind `TaskRun`: until then it refuses
/// their pods. It reads the kinds again some seconds after they were installed.
async fn task_runs_may_own_pods(boot: &Boot) -> Result<()> {
    let owner = json!({
        "apiVersion": "tekton.dev/v1", "kind": "TaskRun", "name": "probe", "uid": "0", "controller": true, "blockOwnerDeletion": true,
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "probe", "namespace": "default", "ownerReferences": [owner] },
        "spec": { "containers": [{ "name": "a", "image": "a" }] },
    });
    let file = boot.path("owned-pod.json");
    fs::write(&file, pod.to_string())?;
    while !is_accepted(boot, &file).await? {
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
    Ok(())
}

/// Whether the API server would create an object for Tekton's controller.
async fn is_accepted(boot: &Boot, file: &Path) -> Result<bool> {
    let output = Command::new("kubectl")
        .args(["create", "--dry-run=server", "--as", CONTROLLER, "-f"])
        .arg(file)
        .env("PATH", boot.processes.path())
        .env("KUBECONFIG", boot.path("admin.conf"))
        .output()
        .await
        .context("start kubectl")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() || text.contains("cannot find RESTMapping"),
        "step tekton: kubectl create: {}",
        text.trim()
    );
    Ok(output.status.success())
}

async fn kubectl_apply(boot: &Boot, path: &Path) -> Result<()> {
    let output = Command::new("kubectl")
        .args(["apply", "--server-side", "-R", "-f"])
        .arg(path)
        .env("PATH", boot.processes.path())
        .env("KUBECONFIG", boot.path("admin.conf"))
        .output()
        .await
        .context("start kubectl")?;
    ensure!(
        output.status.success(),
        "step tekton: kubectl apply: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
