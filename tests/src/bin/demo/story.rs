//! The chapters of the demo: invalid requests are denied, a valid request repairs a Deployment, the
//! same request is skipped during cooldown, and a failed execution blocks its target until cleared.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kube::Api;
use tempfile::TempDir;
use wfe_model::workflow_execution::{Phase, SkipReason, WorkflowExecution};
use wfe_tests::system::System;
use wfe_tests::{Cluster, Image};

use crate::tell::{chapter, follow, kubectl, kubectl_ok, say};

const NAMESPACE: &str = "prod";
const EXECUTION_NAMESPACE: &str = "kubernaut-workflows";

/// The files in `examples/`, with placeholders replaced by references of the pushed images.
struct Examples {
    directory: TempDir,
    images: [(&'static str, String); 2],
}

impl Examples {
    fn source(file: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples")
            .join(file)
    }

    /// Text of an example, with the image references.
    fn text(&self, file: &str) -> Result<String> {
        let path = Self::source(file);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(self
            .images
            .iter()
            .fold(text, |text, (name, image)| text.replace(name, image)))
    }

    /// Writes a copy with the image references, for kubectl.
    fn copy(&self, file: &str) -> Result<String> {
        let copy = self.directory.path().join(file.replace('/', "-"));
        std::fs::write(&copy, self.text(file)?)?;
        Ok(copy.display().to_string())
    }
}

pub(crate) async fn run(keep: bool) -> Result<()> {
    let cluster = Cluster::connect().await;
    let examples = Examples {
        directory: tempfile::tempdir()?,
        images: push_images(&cluster)?,
    };
    let mut system = start(&cluster, &examples).await?;
    let api: Api<WorkflowExecution> = Api::namespaced(cluster.admin(), NAMESPACE);
    let cluster_file = examples.copy("cluster.yaml")?;
    run_quietly(&["apply", "-f", &cluster_file]).await?;

    deny_invalid_requests(&examples).await?;
    repair_deployment(&examples, &api).await?;
    skip_during_cooldown(&examples, &system).await?;
    fail_and_block(&examples, &api, &system).await?;
    clear_block().await?;
    chapter("6. The audit trail of each remediation");
    show_audit_trail(&system).await?;
    if keep {
        let audit = system.audit_file();
        system.detach();
        chapter("Everything is still running");
        say("make shell                                    a shell with kubectl in the cluster");
        say("kubectl -n prod get wfe -o wide               the WorkflowExecutions");
        say("kubectl -n prod describe wfe/raise-memory     one of them");
        say(&format!("{}     the audit trail", audit.display()));
        say("make down                                     ends the cluster");
    }
    Ok(())
}

/// Prints the audit trail with `wfe-controller audit`.
async fn show_audit_trail(system: &System) -> Result<()> {
    let file = system.audit_file().display().to_string();
    for correlation_id in ["rr-my-app-oom", "rr-my-worker-oom"] {
        let arguments = ["audit", &file, "--correlation-id", correlation_id];
        let (success, text) = system.controller_command(&arguments).await?;
        ensure!(success, "{text}");
        say(&format!(
            "\n\x1b[2m$ wfe-controller audit audit.jsonl --correlation-id {correlation_id}\x1b[0m"
        ));
        say(text.trim_end());
    }
    Ok(())
}

fn push_images(cluster: &Cluster) -> Result<[(&'static str, String); 2]> {
    let registry = cluster.registry()?;
    let kubectl = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|directory| directory.join("kubectl"))
        .find(|path| path.is_file())
        .context("kubectl is not on the PATH")?;
    let script = std::fs::read_to_string(Examples::source("image/run.sh"))?;
    let remediation = Image::from("busybox:1")
        .file("bin/kubectl", kubectl)
        .text("run.sh", script)
        .entrypoint(&["/bin/sh", "/run.sh"]);
    let app = Image::from("busybox:1");
    Ok([
        (
            "${IMAGE}",
            registry.push("workflows/oom-increase-memory:1.0.0", &remediation)?,
        ),
        ("${APP_IMAGE}", registry.push("my-app:1", &app)?),
    ])
}

async fn start(cluster: &Cluster, examples: &Examples) -> Result<System> {
    say(
        "wfe on a real cluster: CRD, RBAC, webhooks and policies from the chart, both programs with",
    );
    say(
        "their own ServiceAccounts; the catalog has one workflow, examples/workflows/oom-increase-memory.yaml",
    );
    let workflow = (
        "oom-increase-memory.yaml",
        examples.text("workflows/oom-increase-memory.yaml")?,
    );
    let mut system =
        System::install_in(cluster, NAMESPACE, EXECUTION_NAMESPACE, &[workflow]).await?;
    system.start_webhook().await?;
    system.start_controller().await?;
    Ok(system)
}

async fn run_quietly(arguments: &[&str]) -> Result<()> {
    let output = tokio::process::Command::new("kubectl")
        .args(arguments)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "kubectl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn deny_invalid_requests(examples: &Examples) -> Result<()> {
    chapter("1. The API server denies five invalid requests");
    for name in [
        "bad-engine",
        "bad-image",
        "bad-target",
        "bad-parameters",
        "bad-workflow",
    ] {
        let file = format!("requests/{name}.yaml");
        let copy = examples.copy(&file)?;
        let (accepted, _) = kubectl(
            &format!("create -f examples/{file}"),
            &["create", "-f", &copy],
        )
        .await?;
        ensure!(!accepted, "{file} was not denied");
    }
    Ok(())
}

async fn show_memory_limit() -> Result<()> {
    let columns = "custom-columns=NAME:.metadata.name,MEMORY LIMIT:.spec.template.spec.containers[0].resources.limits.memory,APPROVED BY:.metadata.annotations.example\\.com/approved-by";
    kubectl_ok(
        "-n prod get deployment my-app",
        &[
            "-n",
            NAMESPACE,
            "get",
            "deployment",
            "my-app",
            "-o",
            columns,
        ],
    )
    .await
    .map(drop)
}

async fn repair_deployment(examples: &Examples, api: &Api<WorkflowExecution>) -> Result<()> {
    chapter("2. A valid request repairs a Deployment");
    show_memory_limit().await?;
    let copy = examples.copy("requests/good.yaml")?;
    kubectl_ok(
        "create -f examples/requests/good.yaml",
        &["create", "-f", &copy],
    )
    .await?;
    let wfe = follow(api, "raise-memory").await?;
    let status = wfe.status.context("no status")?;
    ensure!(
        status.phase == Some(Phase::Succeeded),
        "raise-memory ended as {:?}",
        status.phase
    );
    let job = format!("job/{}", status.execution_ref.context("no Job")?.name);
    kubectl_ok(
        &format!("-n {EXECUTION_NAMESPACE} logs {job}"),
        &["-n", EXECUTION_NAMESPACE, "logs", &job],
    )
    .await?;
    show_memory_limit().await
}

/// Creates a request that is skipped, and prints why.
async fn show_skipped(
    examples: &Examples,
    system: &System,
    file: &str,
    name: &str,
    reason: SkipReason,
) -> Result<()> {
    let file = format!("requests/{file}");
    let copy = examples.copy(&file)?;
    kubectl_ok(
        &format!("create -f examples/{file}"),
        &["create", "-f", &copy],
    )
    .await?;
    let wfe = system.ended(name).await?;
    let details = wfe
        .status
        .and_then(|status| status.skip_details)
        .context("not skipped")?;
    ensure!(details.reason == reason, "skipped for {details:?}");
    let object = format!("wfe/{name}");
    kubectl_ok(
        &format!("-n prod get {object} -o jsonpath={{.status.skipDetails.message}}"),
        &[
            "-n",
            NAMESPACE,
            "get",
            &object,
            "-o",
            "jsonpath={.status.skipDetails.message}{\"\\n\"}",
        ],
    )
    .await
    .map(drop)
}

async fn skip_during_cooldown(examples: &Examples, system: &System) -> Result<()> {
    chapter("3. The same request again is skipped: the target is in cooldown");
    let (file, name) = ("too-soon.yaml", "raise-memory-again");
    show_skipped(examples, system, file, name, SkipReason::RecentlyRemediated).await
}

async fn fail_and_block(
    examples: &Examples,
    api: &Api<WorkflowExecution>,
    system: &System,
) -> Result<()> {
    chapter("4. A failed execution reports why, and blocks its target until the block is cleared");
    let copy = examples.copy("requests/fails.yaml")?;
    kubectl_ok(
        "create -f examples/requests/fails.yaml",
        &["create", "-f", &copy],
    )
    .await?;
    let wfe = follow(api, "over-the-ceiling").await?;
    let details = wfe
        .status
        .and_then(|status| status.failure_details)
        .context("not failed")?;
    ensure!(details.exit_code == Some(3), "failed with {details:?}");
    let path = "jsonpath={range .status.failureDetails}reason: {.reason}{\"\\n\"}exitCode: {.exitCode}{\"\\n\"}message: {.message}{\"\\n\"}{.naturalLanguageSummary}{\"\\n\"}{end}";
    kubectl_ok(
        "-n prod get wfe/over-the-ceiling -o jsonpath={.status.failureDetails}",
        &["-n", NAMESPACE, "get", "wfe/over-the-ceiling", "-o", path],
    )
    .await?;
    let (file, name) = ("blocked.yaml", "after-the-failure");
    show_skipped(
        examples,
        system,
        file,
        name,
        SkipReason::PreviousExecutionFailed,
    )
    .await?;
    kubectl_ok(
        "-n prod get wfe -o wide",
        &["-n", NAMESPACE, "get", "wfe", "-o", "wide"],
    )
    .await
    .map(drop)
}

/// Clears the block, and prints who cleared it, when and why.
async fn clear_block() -> Result<()> {
    chapter("5. An operator clears the block");
    let request = r#"{"status":{"blockClearanceRequest":{"clearReason":"64Mi more are enough, the quota was raised"}}}"#;
    let command = "patch wfe over-the-ceiling --subresource=status --type=merge -p";
    let arguments = [
        &["-n", NAMESPACE],
        command.split(' ').collect::<Vec<_>>().as_slice(),
        &[request],
    ]
    .concat();
    kubectl_ok(&format!("-n prod {command} '{request}'"), &arguments).await?;
    let path = "jsonpath={range .status.blockClearance}clearedBy: {.clearedBy}{\"\\n\"}clearedAt: {.clearedAt}{\"\\n\"}clearReason: {.clearReason}{\"\\n\"}{end}";
    kubectl_ok(
        "-n prod get wfe over-the-ceiling -o jsonpath={.status.blockClearance}",
        &[
            "-n",
            NAMESPACE,
            "get",
            "wfe",
            "over-the-ceiling",
            "-o",
            path,
        ],
    )
    .await
    .map(drop)
}
