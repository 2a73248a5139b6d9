//! The chapters of the demo: invalid requests are denied, a valid request repairs a Deployment, the
//! same request is skipped during cooldown, and a failed execution blocks its target until cleared.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Api;
use tempfile::TempDir;
use wfe_model::workflow_execution::{Phase, SkipReason, WorkflowExecution};
use wfe_tests::chart::{EXECUTIONS, PROGRAMS, kubectl_image};
use wfe_tests::workspace;
use wfe_tests::{Image, Registry, wait};

use crate::installation::{Installation, NAMESPACE, Place};
use crate::tell::{chapter, follow, kubectl, kubectl_ok, say};

const DEADLINE: Duration = Duration::from_mins(2);

/// The files in `examples/`, with placeholders replaced by references of the pushed images.
struct Examples {
    directory: TempDir,
    images: Vec<(&'static str, String)>,
}

impl Examples {
    fn source(file: &str) -> PathBuf {
        workspace().join("examples").join(file)
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

pub(crate) async fn run(keep: bool, tekton: bool, registry: Option<&str>) -> Result<()> {
    let place = Place::find(registry).await?;
    let mut examples = Examples {
        directory: tempfile::tempdir()?,
        images: push_images(&place.registry()?)?.into(),
    };
    let mut workflows = vec!["oom-increase-memory"];
    if tekton {
        let bundle = push_bundle(&place.registry()?, &examples)?;
        examples.images.push(("${BUNDLE}", bundle));
        workflows.push("canary-release");
    }
    let installation = start(&place).await?;
    let told = tell(&place, &installation, &examples, &workflows, tekton).await;
    if keep {
        chapter("Everything is still running");
        installation.keep();
        return told;
    }
    let removed = installation.remove().await;
    told.and(removed)
}

async fn tell(
    place: &Place,
    installation: &Installation,
    examples: &Examples,
    workflows: &[&str],
    tekton: bool,
) -> Result<()> {
    let api: Api<WorkflowExecution> = Api::namespaced(place.client(), NAMESPACE);
    let cluster_file = examples.copy("cluster.yaml")?;
    run_quietly(&["apply", "-f", &cluster_file]).await?;

    fill_catalog(examples, workflows).await?;
    deny_invalid_requests(examples).await?;
    repair_deployment(examples, &api).await?;
    skip_during_cooldown(examples, &api).await?;
    fail_and_block(examples, &api).await?;
    clear_block().await?;
    chapter("7. The audit trail of each remediation");
    for correlation_id in ["rr-my-app-oom", "rr-my-worker-oom"] {
        installation.show_audit(correlation_id).await?;
    }
    if tekton {
        release_canary(examples, &api).await?;
    }
    Ok(())
}

fn push_images(registry: &Registry) -> Result<[(&'static str, String); 2]> {
    let script = std::fs::read_to_string(Examples::source("image/run.sh"))?;
    let remediation = kubectl_image(script)?;
    let app = Image::from("busybox:1");
    Ok([
        (
            "${IMAGE}",
            registry.push("workflows/oom-increase-memory:1.0.0", &remediation)?,
        ),
        ("${APP_IMAGE}", registry.push("my-app:1", &app)?),
    ])
}

/// Pushes the pipeline of the canary release as a bundle; returns its reference by digest.
fn push_bundle(registry: &Registry, examples: &Examples) -> Result<String> {
    let pipeline = examples.text("pipelines/canary-release.yaml")?;
    let pipeline = serde_saphyr::from_str(&pipeline)?;
    registry.push_bundle("pipelines/canary-release:1.0.0", &[pipeline])
}

async fn start(place: &Place) -> Result<Installation> {
    say(match place {
        Place::TestCluster(_) => {
            "wfe on a real cluster: CRDs, RBAC, webhooks and policies from the chart, both programs with"
        }
        Place::Elsewhere { .. } => {
            "wfe in your cluster, installed from the chart by Helm, both programs as pods with"
        }
    });
    say("their own ServiceAccounts");
    place.install().await
}

async fn fill_catalog(examples: &Examples, workflows: &[&str]) -> Result<()> {
    chapter("1. Workflows are objects: an invalid one is denied, the others are the catalog");
    for name in ["invalid"].iter().chain(workflows) {
        let file = format!("workflows/{name}.yaml");
        let copy = examples.copy(&file)?;
        let shown = format!("apply -f examples/{file}");
        let (accepted, _) = kubectl(&shown, &["apply", "-f", &copy]).await?;
        ensure!(accepted == (*name != "invalid"), "{file}: {accepted}");
    }
    let get = ["-n", PROGRAMS, "get", "remediationworkflows"];
    kubectl_ok(&get.join(" "), &get).await?;
    Ok(())
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
    chapter("2. The API server denies five invalid requests");
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
    chapter("3. A valid request repairs a Deployment");
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
        &format!("-n {EXECUTIONS} logs {job}"),
        &["-n", EXECUTIONS, "logs", &job],
    )
    .await?;
    show_memory_limit().await
}

/// Creates a request that is skipped, and prints why.
async fn show_skipped(
    examples: &Examples,
    api: &Api<WorkflowExecution>,
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
    let ended = |it: &WorkflowExecution| it.phase().is_some_and(Phase::is_final);
    let wfe = wait::until(api, name, "it has ended", DEADLINE, ended).await?;
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

async fn skip_during_cooldown(examples: &Examples, api: &Api<WorkflowExecution>) -> Result<()> {
    chapter("4. The same request again is skipped: the target is in cooldown");
    let (file, name) = ("too-soon.yaml", "raise-memory-again");
    show_skipped(examples, api, file, name, SkipReason::RecentlyRemediated).await
}

async fn fail_and_block(examples: &Examples, api: &Api<WorkflowExecution>) -> Result<()> {
    chapter("5. A failed execution reports why, and blocks its target until the block is cleared");
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
        api,
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
    chapter("6. An operator clears the block");
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

/// Runs a workflow of engine `tekton`: a canary first, then the Deployment.
async fn release_canary(examples: &Examples, api: &Api<WorkflowExecution>) -> Result<()> {
    chapter("8. Engine tekton: a pipeline tries the change on a canary first");
    let rights = examples.copy("canary-rights.yaml")?;
    run_quietly(&["apply", "-f", &rights]).await?;
    let copy = examples.copy("requests/canary.yaml")?;
    kubectl_ok(
        "create -f examples/requests/canary.yaml",
        &["create", "-f", &copy],
    )
    .await?;
    let wfe = follow(api, "canary-release").await?;
    ensure!(
        wfe.phase() == Some(Phase::Succeeded),
        "canary-release ended as {:?}",
        wfe.phase()
    );
    let path = "jsonpath={range .status.executionStatus}{.completedTasks} of {.totalTasks} tasks: {.message}{\"\\n\"}{end}";
    kubectl_ok(
        "-n prod get wfe/canary-release -o jsonpath={.status.executionStatus}",
        &["-n", NAMESPACE, "get", "wfe/canary-release", "-o", path],
    )
    .await?;
    show_memory_limit().await
}
