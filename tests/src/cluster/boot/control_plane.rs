//! Starts etcd, API server, controller manager and scheduler.

use std::time::Duration;

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD as STANDARD, Engine as _};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{Boot, NODE_ADDRESS, SERVICE_NETWORK};
use crate::cluster::access::{self, AUDIT_LOG, WEBHOOK_CLIENT};
use crate::cluster::args::Extent;

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
/// Address of the `kubernetes` Service: the first of [`SERVICE_NETWORK`].
const SERVICE_ADDRESS: &str = "10.96.0.1";
const DEADLINE: Duration = Duration::from_secs(90);

/// Writes the identities of API server and administrator, then starts etcd and the API server.
pub(super) fn start_api_server(boot: &mut Boot, extent: Extent) -> Result<()> {
    boot.write("ca.crt", &boot.authority.certificate)?;
    boot.write("ca.key", &boot.authority.key())?;
    let service_accounts = rcgen::KeyPair::generate()?;
    boot.write("service-accounts.key", &service_accounts.serialize_pem())?;
    boot.write("service-accounts.pub", &service_accounts.public_key_pem())?;
    let names = [
        "127.0.0.1",
        NODE_ADDRESS,
        SERVICE_ADDRESS,
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ];
    boot.identity("apiserver", "kube-apiserver", None, &names)?;
    boot.identity("admin", "admin", Some("system:masters"), &[])?;
    let admission = identity_for_webhooks(boot)?;

    let data = format!("--data-dir={}", boot.text("etcd"));
    boot.processes.start(
        "etcd",
        [
            data.as_str(),
            // Durability is not needed: the data is lost with the cluster.
            "--unsafe-no-fsync",
            "--log-level=warn",
            // Thousands of large objects, each written several times.
            "--quota-backend-bytes=8589934592",
            &format!("--listen-client-urls={ETCD}"),
            &format!("--advertise-client-urls={ETCD}"),
            &format!("--listen-peer-urls={ETCD_PEER}"),
            &format!("--initial-advertise-peer-urls={ETCD_PEER}"),
            &format!("--initial-cluster=default={ETCD_PEER}"),
        ],
    )?;
    let mut flags = vec![
        format!("--etcd-servers={ETCD}"),
        format!("--bind-address={NODE_ADDRESS}"),
        "--secure-port=6443".to_owned(),
        format!("--tls-cert-file={}", boot.text("apiserver.crt")),
        format!("--tls-private-key-file={}", boot.text("apiserver.key")),
        format!("--client-ca-file={}", boot.text("ca.crt")),
        format!("--kubelet-client-certificate={}", boot.text("admin.crt")),
        format!("--kubelet-client-key={}", boot.text("admin.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!(
            "--service-account-key-file={}",
            boot.text("service-accounts.pub")
        ),
        format!(
            "--service-account-signing-key-file={}",
            boot.text("service-accounts.key")
        ),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement"
            .to_owned(),
        format!("--admission-control-config-file={admission}"),
        "--allow-privileged=true".to_owned(),
    ];
    // One suite asks what the programs have requested.
    if extent == Extent::Tekton {
        boot.write("audit-policy.json", &audit_policy().to_string())?;
        flags.push(format!(
            "--audit-policy-file={}",
            boot.text("audit-policy.json")
        ));
        flags.push(format!("--audit-log-path={}", boot.text(AUDIT_LOG)));
    }
    boot.processes.start_and_restart("kube-apiserver", flags)
}

/// Requests of ServiceAccounts, those of the cluster's own components apart.
fn audit_policy() -> Value {
    let own = [
        "kube-system",
        "tekton-pipelines",
        "tekton-pipelines-resolvers",
    ];
    let own = own.map(|namespace| format!("system:serviceaccounts:{namespace}"));
    json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "None", "userGroups": own },
            { "level": "Metadata", "userGroups": ["system:serviceaccounts"] },
            { "level": "None" },
        ],
    })
}

/// Gives the API server a client certificate for the webhooks that it calls; returns the path of the
/// configuration.
fn identity_for_webhooks(boot: &Boot) -> Result<String> {
    let identity = boot.authority.issue(WEBHOOK_CLIENT, None, &[])?;
    let user = json!({
        "client-certificate-data": STANDARD.encode(&identity.certificate),
        "client-key-data": STANDARD.encode(&identity.key),
    });
    let kubeconfig =
        json!({ "apiVersion": "v1", "kind": "Config", "users": [{ "name": "*", "user": user }] });
    boot.write("webhook-client.conf", &kubeconfig.to_string())?;
    let plugin = |name: &str| {
        let configuration = json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
            "kubeConfigFile": boot.text("webhook-client.conf"),
        });
        json!({ "name": name, "configuration": configuration })
    };
    let plugins = ["ValidatingAdmissionWebhook", "MutatingAdmissionWebhook"].map(plugin);
    let configuration = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration", "plugins": plugins,
    });
    boot.write("admission.json", &configuration.to_string())?;
    Ok(boot.text("admission.json"))
}

/// Waits until the API server is ready; returns the administrator's client.
pub(super) async fn wait_for_api_server(boot: &mut Boot) -> Result<Client> {
    let client = access::client(&boot.path("admin.conf")).await?;
    let probe = async || Ok(client.request_text(http_get("/readyz")?).await? == "ok");
    boot.processes
        .wait_until("API server ready", "kube-apiserver", DEADLINE, probe)
        .await?;
    Ok(client)
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

/// Starts controller manager and scheduler, which wait for the API server themselves.
pub(super) fn start_controllers(boot: &mut Boot) -> Result<()> {
    boot.identity("kcm", "system:kube-controller-manager", None, &[])?;
    boot.identity("scheduler", "system:kube-scheduler", None, &[])?;
    // The default limits (20 requests a second) are for large clusters that share an API server.
    let fast = [
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ];
    let manager = [
        format!("--kubeconfig={}", boot.text("kcm.conf")),
        format!(
            "--service-account-private-key-file={}",
            boot.text("service-accounts.key")
        ),
        format!("--root-ca-file={}", boot.text("ca.crt")),
        format!("--cluster-signing-cert-file={}", boot.text("ca.crt")),
        format!("--cluster-signing-key-file={}", boot.text("ca.key")),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        "--use-service-account-credentials".to_owned(),
        "--concurrent-job-syncs=20".to_owned(),
    ];
    boot.processes.start(
        "kube-controller-manager",
        manager.iter().map(String::as_str).chain(fast),
    )?;
    let scheduler = format!("--kubeconfig={}", boot.text("scheduler.conf"));
    boot.processes.start(
        "kube-scheduler",
        [scheduler.as_str()].into_iter().chain(fast),
    )
}

/// Waits for the default ServiceAccount, without which the API server admits no pods.
pub(super) async fn wait_for_controllers(boot: &mut Boot, client: &Client) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let probe = async || Ok(accounts.get_opt("default").await?.is_some());
    boot.processes
        .wait_until(
            "controllers ready",
            "kube-controller-manager",
            DEADLINE,
            probe,
        )
        .await
}
