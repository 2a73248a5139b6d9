//! Starts etcd, API server, controller manager and scheduler.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};

use super::{Boot, NODE_ADDRESS, SERVICE_NETWORK};
use crate::cluster::access;

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";
/// Address of the `kubernetes` Service: the first of [`SERVICE_NETWORK`].
const SERVICE_ADDRESS: &str = "10.96.0.1";
const DEADLINE: Duration = Duration::from_secs(90);

/// Writes the identities of API server and administrator, then starts etcd and the API server.
pub(super) fn start_api_server(boot: &mut Boot) -> Result<()> {
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

    let data = format!("--data-dir={}", boot.text("etcd"));
    boot.processes.start(
        "etcd",
        [
            data.as_str(),
            // Durability is not needed: the data is lost with the cluster.
            "--unsafe-no-fsync",
            "--log-level=warn",
            &format!("--listen-client-urls={ETCD}"),
            &format!("--advertise-client-urls={ETCD}"),
            &format!("--listen-peer-urls={ETCD_PEER}"),
            &format!("--initial-advertise-peer-urls={ETCD_PEER}"),
            &format!("--initial-cluster=default={ETCD_PEER}"),
        ],
    )?;
    let flags = [
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
        "--allow-privileged=true".to_owned(),
    ];
    boot.processes.start_and_restart("kube-apiserver", flags)
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
