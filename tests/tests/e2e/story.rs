//! The story: install, try, upgrade and roll back under load, rotate certificates, drain the node, uninstall,
//! install again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{LogParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::chart::{self, PROGRAMS, RELEASE, helm, kubectl, kubectl_image, run};
use wfe_tests::system::{Script, condition, path_of};
use wfe_tests::workspace;
use wfe_tests::{Cluster, Image, wait};

use crate::load::{Load, REQUESTS, all_ran_once};
use crate::node;
use crate::{argo_cd, certificates, demo, install_document};

const HAPPENS_WITHIN: Duration = Duration::from_mins(1);

/// What the chapters share.
pub struct Story {
    pub cluster: Cluster,
    pub client: Client,
    pub values: Value,
    pub quick: Script,
    pub slow: Script,
    directory: tempfile::TempDir,
    started: Instant,
    chapter: Instant,
}

impl Story {
    /// Prints how long the last chapter has taken.
    pub fn done(&mut self, chapter: &str) {
        println!(
            "{:6.1} s  {chapter} ({:.1} s since the start)",
            self.chapter.elapsed().as_secs_f32(),
            self.started.elapsed().as_secs_f32()
        );
        self.chapter = Instant::now();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Upgrades the release to `values`, and keeps them.
    pub async fn upgrade(&mut self, values: Value) {
        self.upgrade_with(values, &[]).await;
    }

    /// As [`upgrade`](Self::upgrade), with more flags of Helm.
    pub async fn upgrade_with(&mut self, values: Value, flags: &[&str]) {
        merge(&mut self.values, values);
        let upgraded = chart::install(&chart::directory(), &self.values, flags).await;
        upgraded.expect("upgraded");
    }

    fn executions(&self) -> Api<WorkflowExecution> {
        Api::namespaced(self.client.clone(), REQUESTS)
    }

    pub async fn create(&self, wfe: &WorkflowExecution) -> Result<WorkflowExecution, kube::Error> {
        let api = self.executions();
        api.create(&PostParams::default(), wfe).await
    }

    /// Waits until it waits for its target.
    pub async fn until_blocked(&self, name: &str) -> WorkflowExecution {
        let blocked = |it: &WorkflowExecution| condition(it, "Blocked").starts_with("True");
        let api = self.executions();
        let waits = wait::until(&api, name, "it is blocked", HAPPENS_WITHIN, blocked).await;
        waits.expect("blocked")
    }

    pub async fn until(&self, name: &str, phase: Phase) -> WorkflowExecution {
        let api = self.executions();
        let what = format!("it is {phase:?}");
        let reached = |it: &WorkflowExecution| it.phase() == Some(phase);
        let reached = wait::until(&api, name, &what, HAPPENS_WITHIN, reached).await;
        reached.expect("reached")
    }
}

fn merge(into: &mut Value, values: Value) {
    match (into, values) {
        (Value::Object(into), Value::Object(values)) => {
            for (key, value) in values {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, value) => *into = value,
    }
}

fn example(file: &str) -> String {
    let path = workspace().join("examples").join(file);
    std::fs::read_to_string(path).expect("an example")
}

/// BR-WE-001, BR-WE-003: what users install does what they read, through every change of it.
#[tokio::test(flavor = "multi_thread")]
async fn chart_through_its_life_loses_doubles_and_refuses_nothing() {
    let mut story = begin().await;
    story.done("images pushed");
    demo::in_another_cluster(&mut story).await;
    install_document::is_followed(&mut story).await;
    create_namespaces(&story).await;
    images_run(&story).await;
    story.done("each image runs and names its version");

    install_previous(&mut story).await;
    story.done("helm install of the previous version, ready");
    let tested = helm(&["test", RELEASE, "--namespace", PROGRAMS, "--logs"]).await;
    let tested = tested.expect("helm test");
    assert!(tested.contains("admitted, as it must be"), "{tested}");
    story.done("helm test");
    remediate(&story).await;
    story.done("bad requests are refused, a good one repairs its target");
    argo_cd::knows_each_phase(&mut story).await;
    node::print_memory("at rest");

    let load = Load::start(&story.client, &story.quick, "upgrade", true);
    story.upgrade(json!({ "controller": { "image": { "tag": "" } }, "webhook": { "image": { "tag": "" } } })).await;
    let rolled_back = helm(&[
        "rollback",
        RELEASE,
        "--namespace",
        PROGRAMS,
        "--wait",
        "--timeout",
        "2m",
    ]);
    rolled_back.await.expect("rolled back");
    restart("webhook").await;
    restart("controller").await;
    let created = load.end().await;
    story.done("upgrade, rollback, restart of all pods under load");
    all_ran_once(&story.client, &created).await;
    story.done("each of them has run once");
    story.upgrade(json!({})).await;
    story.done("upgrade to this version");
    node::print_memory("after the load");

    certificates::generated(&mut story).await;
    certificates::cert_manager(&mut story).await;
    certificates::provided(&mut story).await;

    drain(&story).await;
    story.done("the node is drained and comes back");
    uninstall_and_reinstall(&mut story).await;
}

async fn begin() -> Story {
    let started = Instant::now();
    let cluster = Cluster::connect().await;
    let registry = cluster.registry().expect("a registry");
    let images = ["images", registry.address(), "--profile", "dev"];
    let pushed = run(env!("CARGO_BIN_EXE_wfe-cluster"), &images).await;
    for image in pushed.expect("images").lines() {
        // Nothing is released yet: the previous version is this one under another tag.
        run("crane", &["tag", image, "previous"])
            .await
            .expect("tagged");
    }
    let remediation = kubectl_image(example("image/run.sh")).expect("kubectl");
    let remediation = registry.push("workflows/oom-increase-memory:1.0.0", &remediation);
    let remediation = remediation.expect("pushed");
    let app = registry
        .push("my-app:1", &Image::from("busybox:1"))
        .expect("pushed");
    let complete = |text: String| {
        text.replace("${IMAGE}", &remediation)
            .replace("${APP_IMAGE}", &app)
    };
    let quick = Script::push(&cluster, "quick", "true", "");
    // It uses its account at its end, too.
    let image = kubectl_image("sleep 20 && kubectl auth whoami").expect("kubectl");
    let image = registry.push("workflows/slow:1", &image).expect("pushed");
    let slow = Script::of("slow", image, "");
    let request = complete(example("requests/good.yaml"));
    let request: Value = serde_saphyr::from_str(&request).expect("a request");
    let values = json!({
        "global": { "imageRegistry": registry.address() },
        "tests": { "image": remediation, "namespace": REQUESTS, "request": request },
        "controller": { "cooldown": "0s" },
        // The API server, the node and the load share two cores with the webhooks.
        "webhook": { "timeoutSeconds": 10 },
    });
    let story = Story {
        client: cluster.admin(),
        cluster,
        values,
        quick,
        slow,
        directory: tempfile::tempdir().expect("a directory"),
        started,
        chapter: started,
    };
    for file in [
        "cluster",
        "workflows/oom-increase-memory",
        "requests/good",
        "requests/fails",
        "requests/blocked",
        "requests/bad-engine",
        "requests/bad-image",
        "requests/bad-target",
        "requests/bad-parameters",
        "requests/bad-workflow",
    ] {
        let text = complete(example(&format!("{file}.yaml")));
        let path = story.path(&format!("{}.yaml", file.rsplit('/').next().unwrap_or(file)));
        std::fs::write(path, text).expect("written");
    }
    story
}

/// Both enforce PodSecurity `restricted`, as the execution namespace does.
async fn create_namespaces(story: &Story) {
    for name in [PROGRAMS, REQUESTS] {
        let created = chart::create_namespace(&story.client, name).await;
        created.expect("created");
    }
}

/// Each image as a pod, under PodSecurity `restricted`, and without anything but its binary.
async fn images_run(story: &Story) {
    let api: Api<Pod> = Api::namespaced(story.client.clone(), PROGRAMS);
    let registry = story.cluster.registry().expect("a registry");
    let accounts: Api<ServiceAccount> = Api::namespaced(story.client.clone(), PROGRAMS);
    let exists = wait::until(&accounts, "default", "it exists", HAPPENS_WITHIN, |_| true);
    exists.await.expect("the default ServiceAccount");
    for program in ["wfe-controller", "wfe-webhook"] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": program },
            "spec": {
                "restartPolicy": "Never", "automountServiceAccountToken": false,
                "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [{
                    "name": "version", "args": ["--version"],
                    "image": format!("{}/kubernaut/{program}:{}", registry.address(), env!("CARGO_PKG_VERSION")),
                    "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
                }],
            },
        });
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        api.create(&PostParams::default(), &pod)
            .await
            .expect("created");
        let ended =
            |it: &Pod| it.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Succeeded");
        wait::until(&api, program, "it has ended", HAPPENS_WITHIN, ended)
            .await
            .expect("ended");
        let log = api
            .logs(program, &LogParams::default())
            .await
            .expect("a log");
        assert_eq!(
            log.trim(),
            format!("{program} {}", env!("CARGO_PKG_VERSION"))
        );
        api.delete(program, &kube::api::DeleteParams::default())
            .await
            .expect("deleted");
    }
}

/// The previous version: its images have another tag.
async fn install_previous(story: &mut Story) {
    let previous = json!({ "controller": { "image": { "tag": "previous" } }, "webhook": { "image": { "tag": "previous" } } });
    story.upgrade(previous).await;
    for (name, script) in [("quick", &story.quick), ("slow", &story.slow)] {
        let path = story.path(&format!("{name}.yaml"));
        std::fs::write(path, script.object("1.0.0").to_string()).expect("written");
    }
    for name in ["cluster", "oom-increase-memory", "quick", "slow"] {
        let path = story.path(&format!("{name}.yaml"));
        let apply = ["-n", PROGRAMS, "apply", "-f", &path.to_string_lossy()];
        // The objects of the cluster name their namespaces.
        let apply = if name == "cluster" {
            &apply[2..]
        } else {
            &apply
        };
        kubectl(apply).await.expect("applied");
    }
}

/// As in the demo.
async fn remediate(story: &Story) {
    for (file, says) in [
        ("bad-engine", "spec.executionEngine: unsupported value"),
        ("bad-image", "spec.workflowRef.containerImage"),
        ("bad-target", "kind \"deploy\" not found"),
        ("bad-parameters", "must match the pattern"),
        ("bad-workflow", "spec.workflowRef"),
    ] {
        let path = story.path(&format!("{file}.yaml"));
        let refused = kubectl(&["create", "-f", &path.to_string_lossy()]).await;
        let refused = refused.expect_err("refused").to_string();
        assert!(refused.contains(says), "{refused}");
    }
    let path = story.path("good.yaml");
    kubectl(&["create", "-f", &path.to_string_lossy()])
        .await
        .expect("admitted");
    story.until("raise-memory", Phase::Succeeded).await;
    let limit = "jsonpath={.spec.template.spec.containers[0].resources.limits.memory}";
    let limit = kubectl(&["-n", REQUESTS, "get", "deployment", "my-app", "-o", limit]).await;
    assert_eq!(limit.expect("a limit"), "128Mi");
    let controller = format!("deploy/{RELEASE}-controller");
    let why = [
        "-n",
        PROGRAMS,
        "exec",
        &controller,
        "--",
        "/wfe-controller",
        "why",
        "raise-memory",
        "--namespace",
        REQUESTS,
    ];
    let why = kubectl(&why).await.expect("why");
    assert!(why.contains("it has run and succeeded"), "{why}");
}

/// Path of the program on this machine, for its subcommands.
fn controller() -> String {
    let path = path_of("wfe-controller").expect("a path");
    path.to_string_lossy().into_owned()
}

/// `kubectl rollout restart`.
async fn restart(component: &str) {
    let deployment = format!("deployment/{RELEASE}-{component}");
    kubectl(&["-n", PROGRAMS, "rollout", "restart", &deployment])
        .await
        .expect("restarted");
    rolled_out(component).await;
}

/// Waits until all pods are those of the last rollout, and ready.
async fn rolled_out(component: &str) {
    let deployment = format!("deployment/{RELEASE}-{component}");
    let status = ["rollout", "status", &deployment, "--timeout", "2m"];
    let status = [&["-n", PROGRAMS], &status[..]].concat();
    kubectl(&status).await.expect("rolled out");
}

/// What works, waits and is refused while the node has none of our pods.
async fn drain(story: &Story) {
    let nodes = kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]).await;
    let node = nodes.expect("a node");
    let before = story.slow.request("before-the-drain", &json!({}));
    story.create(&before).await.expect("admitted");
    story.until("before-the-drain", Phase::Running).await;
    kubectl(&["cordon", &node]).await.expect("cordoned");
    // The budget keeps the last replica of each: there is no other node.
    let pods = format!("app.kubernetes.io/instance={RELEASE}");
    let evict = ["drain", &node, "--pod-selector", &pods, "--timeout", "10s"];
    let kept = kubectl(&evict)
        .await
        .expect_err("kept by the budget")
        .to_string();
    assert!(kept.contains("disruption budget"), "{kept}");
    let in_webhook = story.quick.request("last-webhook", &json!({}));
    story
        .create(&in_webhook)
        .await
        .expect("admitted by the last webhook");

    // Without a controller requests are admitted, and wait.
    let of = |component: &str| format!("{pods},app.kubernetes.io/component={component}");
    let delete = ["-n", PROGRAMS, "delete", "pods", "-l"];
    let controllers = of("controller");
    kubectl(&[&delete[..], &[&controllers]].concat())
        .await
        .expect("deleted");
    let waits = story.quick.request("during-the-drain", &json!({}));
    story.create(&waits).await.expect("admitted");
    let why = ["why", "during-the-drain", "--namespace", REQUESTS];
    let why = run(&controller(), &why).await.expect("why");
    assert!(why.contains("no controller has seen it"), "{why}");

    // Without a webhook they are refused.
    let webhooks = of("webhook");
    kubectl(&[&delete[..], &[&webhooks]].concat())
        .await
        .expect("deleted");
    let refused = story
        .create(&story.quick.request("no-webhook", &json!({})))
        .await;
    let refused = refused.expect_err("refused").to_string();
    assert!(refused.contains("failed calling webhook"), "{refused}");
    let delete = [
        "-n",
        REQUESTS,
        "delete",
        "wfe",
        "last-webhook",
        "--dry-run=server",
    ];
    kubectl(&delete).await.expect("deleting works");
    kubectl(&["uncordon", &node]).await.expect("uncordoned");
    for component in ["controller", "webhook"] {
        rolled_out(component).await;
    }
    let after = story.quick.request("after-the-drain", &json!({}));
    story.create(&after).await.expect("admitted");
    for name in [
        "before-the-drain",
        "last-webhook",
        "during-the-drain",
        "after-the-drain",
    ] {
        story.until(name, Phase::Succeeded).await;
    }
}

/// The release goes while a workflow runs: no request is stuck at a webhook that is gone, nothing is lost, and a new
/// release goes on.
async fn uninstall_and_reinstall(story: &mut Story) {
    let running = story.slow.request("over-the-uninstall", &json!({}));
    story.create(&running).await.expect("admitted");
    story.until("over-the-uninstall", Phase::Running).await;
    let load = Load::start(&story.client, &story.quick, "uninstall", false);
    let removed = helm(&["uninstall", RELEASE, "--namespace", PROGRAMS, "--wait"]).await;
    removed.expect("uninstalled");
    load.end().await;
    let left = kubectl(&["get", "mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies,clusterroles", "-o", "name", "-l", &format!("app.kubernetes.io/instance={RELEASE}")]).await;
    assert_eq!(left.expect("listed"), "", "left behind");
    story
        .executions()
        .get("over-the-uninstall")
        .await
        .expect("kept with the CRD");
    story.done("helm uninstall: webhooks first, CRD and WorkflowExecutions stay");

    story.upgrade(json!({})).await;
    story.until("over-the-uninstall", Phase::Succeeded).await;
    all_ran_once(&story.client, &["over-the-uninstall".to_owned()]).await;
    story.done("helm install again: what ran is taken up");

    helm(&["uninstall", RELEASE, "--namespace", PROGRAMS, "--wait"])
        .await
        .expect("uninstalled");
    let released = ["release", "--namespace", REQUESTS];
    run(&controller(), &released).await.expect("released");
    kubectl(&["-n", REQUESTS, "delete", "wfe", "--all", "--timeout", "30s"])
        .await
        .expect("deleted");
    story.done("uninstall, release: every WorkflowExecution can be deleted");
}
