//! The webhook's certificate in each mode: it is renewed, and no review fails.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use wfe_tests::chart::{PROGRAMS, RELEASE, kubectl, run, tool_directory};
use wfe_tests::wait;
use wfe_tests::workspace;

use crate::load::Load;
use crate::story::Story;
use crate::value_sets;

const RENEWED_WITHIN: Duration = Duration::from_mins(3);
const PORT: u16 = 9443;

/// The controller makes certificate and authority, and renews both.
pub async fn generated(story: &mut Story) {
    let short = json!({ "duration": "40s", "renewBefore": "20s", "authorityDuration": "120s" });
    story
        .upgrade(json!({ "certificates": { "generated": short } }))
        .await;
    let name = format!("{RELEASE}-webhook-tls");
    let load = Load::start(&story.client, &story.quick, "generated", false);
    // As an administrator renews them before their time: the first ones last for years.
    let first = secret(story, &name).await;
    forget(&name, "ca.key").await;
    let second = changed(story, &name, "ca.crt", &first).await;
    forget(&name, "tls.crt").await;
    let third = changed(story, &name, "tls.crt", &second).await;
    all_serve(story, &name).await;
    // And from here on by themselves.
    let fourth = changed(story, &name, "tls.crt", &third).await;
    all_serve(story, &name).await;
    let fifth = changed(story, &name, "ca.crt", &fourth).await;
    changed(story, &name, "tls.crt", &fifth).await;
    all_serve(story, &name).await;
    load.end().await;
    let long = json!({ "duration": "8760h", "renewBefore": "720h", "authorityDuration": "87600h" });
    story
        .upgrade(json!({ "certificates": { "generated": long } }))
        .await;
    story.done("certificates.mode generated: two authorities, four certificates");
}

/// cert-manager makes both; its own injector writes the authority into the webhook configurations.
pub async fn cert_manager(story: &mut Story) {
    let processes = CertManager::start(story).await;
    story.done("cert-manager runs");
    story
        .upgrade(json!({ "certificates": { "mode": "certManager" } }))
        .await;
    let name = format!("{RELEASE}-webhook-cert-manager");
    all_serve(story, &name).await;
    let load = Load::start(&story.client, &story.quick, "cert-manager", false);
    let first = secret(story, &name).await;
    // As `cmctl renew` does.
    let renew = json!({ "status": { "conditions": [
        { "type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
        { "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "renewed by hand", "lastTransitionTime": "2026-01-01T00:00:00Z" },
    ] } });
    let certificate = format!("certificate/{RELEASE}-webhook");
    let patch = [
        "-n",
        PROGRAMS,
        "patch",
        &certificate,
        "--subresource=status",
        "--type=merge",
        "-p",
        &renew.to_string(),
    ];
    kubectl(&patch).await.expect("renewal is due");
    changed(story, &name, "tls.crt", &first).await;
    all_serve(story, &name).await;
    load.end().await;
    story.done("certificates.mode certManager: issued, injected, renewed");
    value_sets::are_accepted(story).await;
    drop(processes);
}

/// Certificate and authority are given, and replaced by others.
pub async fn provided(story: &mut Story) {
    let (first, second) = (made(story, "first").await, made(story, "second").await);
    let name = "provided";
    store(&first, name).await;
    let provided = |bundle: String| json!({ "certificates": { "mode": "provided", "provided": { "secretName": name, "caBundle": bundle } } });
    // The authority in the webhook configurations was cert-manager's so far.
    let take_over = ["--force-conflicts"];
    let values = provided(first.authority());
    story.upgrade_with(values, &take_over).await;
    all_serve(story, name).await;
    let load = Load::start(&story.client, &story.quick, "provided", false);
    story
        .upgrade(provided(first.authority() + &second.authority()))
        .await;
    store(&second, name).await;
    all_serve(story, name).await;
    story.upgrade(provided(second.authority())).await;
    load.end().await;
    story
        .upgrade(json!({ "certificates": { "mode": "generated" } }))
        .await;
    all_serve(story, "workflow-execution-webhook-tls").await;
    story.done(
        "certificates.mode provided: another authority and certificate, and back to generated",
    );
}

async fn secret(story: &Story, name: &str) -> Secret {
    let api: Api<Secret> = Api::namespaced(story.client.clone(), PROGRAMS);
    api.get(name).await.expect("the Secret")
}

/// Waits until `key` of the Secret is there and not as in `before`.
async fn changed(story: &Story, name: &str, key: &str, before: &Secret) -> Secret {
    let api: Api<Secret> = Api::namespaced(story.client.clone(), PROGRAMS);
    let value = |it: &Secret| it.data.as_ref().and_then(|it| it.get(key).cloned());
    let is_new = |it: &Secret| value(it).is_some() && value(it) != value(before);
    let what = format!("{key} has changed");
    let changed = wait::until(&api, name, &what, RENEWED_WITHIN, is_new).await;
    changed.expect("changed")
}

async fn forget(name: &str, key: &str) {
    let patch = json!({ "data": { key: null } }).to_string();
    let patch = [
        "-n",
        PROGRAMS,
        "patch",
        "secret",
        name,
        "--type=merge",
        "-p",
        &patch,
    ];
    kubectl(&patch).await.expect("removed");
}

/// Waits until each replica of the webhook serves the certificate of the Secret, and none is being replaced.
async fn all_serve(story: &Story, name: &str) {
    let pods: Api<Pod> = Api::namespaced(story.client.clone(), PROGRAMS);
    let webhooks = ListParams::default().labels("app.kubernetes.io/name=wfe-webhook");
    wfe_tests::system::until_effective("the certificate of the Secret", async || {
        let stored = secret(story, name).await;
        let stored = stored.data.and_then(|it| it.get("tls.crt").cloned());
        let stored = String::from_utf8(stored.expect("a certificate").0)?;
        for pod in pods.list(&webhooks).await? {
            // One that is being replaced still answers.
            if pod.metadata.deletion_timestamp.is_some() {
                return Ok(false);
            }
            let Some(address) = pod.status.and_then(|it| it.pod_ip) else {
                return Ok(false);
            };
            let command = format!(
                "timeout 2 openssl s_client -connect {address}:{PORT} </dev/null 2>/dev/null | openssl x509"
            );
            let served = run("sh", &["-c", &command]).await.unwrap_or_default();
            if !stored.contains(served.trim()) || served.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
    .expect("served");
}

/// A set that `certs/make.sh` has made.
struct Made(std::path::PathBuf);

impl Made {
    fn authority(&self) -> String {
        std::fs::read_to_string(self.0.join("ca.crt")).expect("an authority")
    }
}

async fn made(story: &Story, name: &str) -> Made {
    let script = workspace().join("certs/make.sh");
    let directory = story.path(name);
    let service = format!("{RELEASE}-webhook");
    let arguments = [&*directory.to_string_lossy(), &service, PROGRAMS];
    run(&script.to_string_lossy(), &arguments)
        .await
        .expect("made");
    Made(directory)
}

async fn store(made: &Made, name: &str) {
    let (certificate, key) = (made.0.join("tls.crt"), made.0.join("tls.key"));
    let create = format!(
        "kubectl -n {PROGRAMS} create secret tls {name} --cert {} --key {} --dry-run=client -o yaml | kubectl apply -f -",
        certificate.display(),
        key.display()
    );
    run("sh", &["-c", &create]).await.expect("stored");
}

/// cert-manager's controller, webhook and CA injector, as processes on the host.
struct CertManager(Vec<Child>);

impl CertManager {
    async fn start(story: &Story) -> Self {
        let program = run("which", &["cert-manager"]).await.expect("cert-manager");
        let crds = tool_directory("crds").expect("CRDs");
        kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()])
            .await
            .expect("CRDs");
        kubectl(&["create", "namespace", "cert-manager"])
            .await
            .expect("created");
        let kubeconfig = std::env::var("KUBECONFIG").expect("KUBECONFIG");
        let start = |mode: &str, more: &[&str]| {
            let log = std::fs::File::create(story.path(&format!("cert-manager-{mode}.log")));
            let log = log.expect("a log");
            Command::new(program.trim())
                .args([mode, "--kubeconfig", &kubeconfig])
                .args(more)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a log"))
                .stderr(log)
                .spawn()
                .expect("started")
        };
        let webhook = [
            "--secure-port",
            "20260",
            "--healthz-port",
            "20261",
            "--dns-names",
            "localhost",
        ];
        let processes = Self(vec![
            start("controller", &[]),
            start("cainjector", &[]),
            start("webhook", &webhook),
        ]);
        let configuration = |kind: &str, resources: &str, path: &str| {
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
                "metadata": { "name": "cert-manager-webhook", "annotations": { "cert-manager.io/inject-ca-from-secret": "cert-manager/cert-manager-webhook-ca" } },
                "webhooks": [{
                    "name": "webhook.cert-manager.io", "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
                    "rules": [{ "apiGroups": ["cert-manager.io"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resources] }],
                    "clientConfig": { "url": format!("https://localhost:20260/{path}") },
                }],
            })
        };
        let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
            configuration("ValidatingWebhookConfiguration", "*/*", "validate"),
            // It fills in the requesting user of a certificate.
            configuration("MutatingWebhookConfiguration", "certificaterequests", "mutate"),
        ] });
        let file = story.path("cert-manager.json");
        std::fs::write(&file, objects.to_string()).expect("written");
        kubectl(&["apply", "-f", &file.to_string_lossy()])
            .await
            .expect("applied");
        let issuer = json!({ "apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": { "name": "probe", "namespace": "cert-manager" }, "spec": { "selfSigned": {} } });
        let file = story.path("issuer.json");
        std::fs::write(&file, issuer.to_string()).expect("written");
        let probe = ["create", "--dry-run=server", "-f", &file.to_string_lossy()];
        let answers = wfe_tests::system::until_effective("cert-manager's webhook", async || {
            Ok(kubectl(&probe).await.is_ok())
        });
        answers.await.expect("cert-manager answers");
        processes
    }
}

impl Drop for CertManager {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
