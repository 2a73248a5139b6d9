//! Installs the Debian packages that a cluster needs.

use std::fs::File;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::args::Extent;
use crate::cluster::home::Home;

/// Deadline of one run of apt-get, as argument of `timeout`.
const DEADLINE: &str = "15m";
/// Packages for the API server alone.
const BASE: &[&str] = &["iproute2"];
/// Packages for a node: container runtime, pod network, and the binary for test images.
const NODE: &[&str] = &[
    "runc",
    "containernetworking-plugins",
    "busybox-static",
    "nftables",
    "conntrack",
    "iproute2",
    "ca-certificates",
];

/// Installs missing packages.
pub(crate) fn install(home: &Home, extent: Extent) -> Result<()> {
    let wanted = if extent.has_node() { NODE } else { BASE };
    let missing: Vec<_> = wanted
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    ensure!(
        nix::unistd::geteuid().is_root(),
        "these Debian packages are missing: run `apt-get install {list}` as root"
    );
    eprintln!("installing Debian packages: {list}");
    let log = home.log().join("packages.log");
    let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let apt = |arguments: &[&str]| -> Result<()> {
        let status = Command::new("timeout")
            .args([DEADLINE, "apt-get"])
            .args([
                "-qq",
                "-o",
                "DPkg::Lock::Timeout=120",
                "-o",
                "Acquire::http::Timeout=60",
            ])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file.try_clone()?)
            .status()
            .context("start apt-get")?;
        if !status.success() {
            bail!(
                "step packages: apt-get {} failed ({status}), see {}",
                arguments.join(" "),
                log.display()
            );
        }
        Ok(())
    };
    apt(&["update"])?;
    apt(&[
        &["install", "-y", "--no-install-recommends"],
        missing.as_slice(),
    ]
    .concat())
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
