//! Starts the node: bridge, containerd, kubelet and kube-proxy.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use serde_json::json;

use super::{Boot, NODE_ADDRESS, POD_NETWORK, SERVICE_NETWORK, control_plane};
use crate::cluster::registry;
use crate::cluster::sandbox::{self, CGROUP, ip};

const NAME: &str = "wfe";
const BRIDGE: &str = "wfe0";
const DEADLINE: Duration = Duration::from_secs(90);

/// Creates the bridge of the pod network, with the address of the node.
pub(super) fn bridge() -> Result<()> {
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["addr", "add", &format!("{NODE_ADDRESS}/24"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    // The API server calls webhooks by their Service: kube-proxy translates its address after routing.
    ip(&["route", "add", SERVICE_NETWORK, "dev", BRIDGE])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("step network: forward between pods")
}

/// Starts containerd, and writes the configuration of kubelet and kube-proxy.
pub(super) fn start_runtime(boot: &mut Boot) -> Result<()> {
    sandbox::make_cgroups()?;
    let registry = registry::address(NODE_ADDRESS);
    for directory in [
        "cni",
        "containerd",
        "kubelet",
        &format!("certs.d/{registry}"),
    ] {
        fs::create_dir_all(boot.path(directory))?;
    }
    boot.write("cni/10-wfe.conflist", &network(boot).to_string())?;
    boot.write(
        &format!("certs.d/{registry}/hosts.toml"),
        &format!("server = \"http://{registry}\"\n[host.\"http://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"),
    )?;
    boot.write(
        "containerd.toml",
        &containerd(&boot.run.display().to_string(), &registry),
    )?;
    boot.identity(
        "kubelet",
        &format!("system:node:{NAME}"),
        Some("system:nodes"),
        &[NODE_ADDRESS, NAME],
    )?;
    boot.write("kubelet.yaml", &kubelet(boot).to_string())?;
    boot.identity("kube-proxy", "system:kube-proxy", None, &[])?;
    let configuration = boot.text("containerd.toml");
    boot.processes
        .start("containerd", ["--config", &configuration])
}

/// Starts kubelet and kube-proxy, and waits until pods can run.
pub(super) async fn wait_until_ready(boot: &mut Boot, client: Client) -> Result<()> {
    let socket = boot.path("containerd/s");
    boot.processes
        .wait_until("containerd answers", "containerd", DEADLINE, async || {
            Ok(socket.exists())
        })
        .await?;
    let flags = [
        format!("--config={}", boot.text("kubelet.yaml")),
        format!("--kubeconfig={}", boot.text("kubelet.conf")),
        format!("--root-dir={}", boot.text("kubelet")),
        format!("--hostname-override={NAME}"),
        format!("--node-ip={NODE_ADDRESS}"),
    ];
    boot.processes.start("kubelet", flags)?;
    let flags = [
        format!("--kubeconfig={}", boot.text("kube-proxy.conf")),
        format!("--hostname-override={NAME}"),
        format!("--cluster-cidr={POD_NETWORK}"),
        "--proxy-mode=nftables".to_owned(),
        // The size of the connection table is a setting of the whole machine: leave it unchanged.
        "--conntrack-max-per-core=0".to_owned(),
    ];
    boot.processes.start("kube-proxy", flags)?;
    let nodes: Api<Node> = Api::all(client.clone());
    let probe = async || {
        let conditions = nodes
            .get_opt(NAME)
            .await?
            .and_then(|node| node.status?.conditions)
            .unwrap_or_default();
        Ok(conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"))
    };
    boot.processes
        .wait_until("node ready", "kubelet", DEADLINE, probe)
        .await?;
    control_plane::wait_for_controllers(boot, &client).await
}

fn network(boot: &Boot) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "wfe",
        "plugins": [{
            "type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": boot.text("cni/ipam"),
                "ranges": [[{ "subnet": POD_NETWORK, "rangeStart": "10.77.0.10" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

fn containerd(run: &str, registry: &str) -> String {
    format!(
        r#"version = 3
root = "{run}/containerd/root"
state = "{run}/containerd/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{run}/containerd/s"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{registry}/pause:1"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{run}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE no process may protect itself from the OOM killer, and every pod would fail.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{run}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "/usr/sbin/runc"
      Root = "{run}/containerd/runc"
"#
    )
}

fn kubelet(boot: &Boot) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "readOnlyPort": 0,
        "containerRuntimeEndpoint": format!("unix://{}", boot.text("containerd/s")),
        "tlsCertFile": boot.text("kubelet.crt"),
        "tlsPrivateKeyFile": boot.text("kubelet.key"),
        "authentication": {
            "anonymous": { "enabled": false }, "webhook": { "enabled": true }, "x509": { "clientCAFile": boot.text("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        // All containers are under one control group, with cgroup v1 and v2.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": true,
        "cgroupRoot": format!("/{CGROUP}"),
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "resolvConf": "",
        // No DNS server runs here, but without an address every pod gets a Warning event.
        "clusterDNS": ["10.96.0.10"],
        "podLogsDir": boot.text("podlogs"),
        "volumePluginDir": boot.text("volume-plugins"),
        // Never garbage-collect images.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "maxPods": 200,
        // Secrets and ConfigMaps in pods change within seconds, not minutes.
        "syncFrequency": "5s",
        "makeIPTablesUtilChains": false,
    })
}
