//! A cluster that is killed at any moment of its boot leaves nothing on the machine.
//!
//! Runs outside of a cluster, and kills one cluster after the other.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking, and so do its helpers"
)]

mod documents;
mod messages;
mod metrics;
mod module_circles;
mod sources;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_wfe-cluster");
/// Time for the kernel to end the processes of a killed cluster.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time for a boot to reach a moment, also on a busy machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const SYSCTLS: [&str; 7] = [
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "net/ipv4/ip_forward",
];
const MOUNT_POINTS: [&str; 4] = [
    "/run/containerd",
    "/var/lib/cni",
    "/var/log/containers",
    "/var/log/pods",
];

/// Everything that a cluster could leave on a machine.
#[derive(Debug, PartialEq)]
struct Traces {
    pid_namespaces: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    devices: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    mount_points: Vec<bool>,
    temporary: BTreeSet<PathBuf>,
    sysctls: Vec<String>,
}

impl Traces {
    fn now() -> Self {
        let entries = |directory: &str| {
            fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect::<Vec<_>>()
        };
        let lines = |file: &str, column| {
            let text = fs::read_to_string(file).expect(file);
            text.lines()
                .filter_map(|line| line.split_whitespace().nth(column).map(str::to_owned))
                .collect()
        };
        Self {
            pid_namespaces: entries("/proc")
                .iter()
                .filter_map(|process| fs::read_link(process.join("ns/pid")).ok())
                .collect(),
            mounts: lines("/proc/self/mounts", 1),
            devices: entries("/sys/class/net")
                .iter()
                .map(|it| it.display().to_string())
                .collect(),
            cgroups: std::iter::once("/sys/fs/cgroup".into())
                .chain(entries("/sys/fs/cgroup"))
                .map(|hierarchy: PathBuf| hierarchy.join("wfe-cluster"))
                .filter(|cgroup| cgroup.exists())
                .collect(),
            mount_points: MOUNT_POINTS
                .iter()
                .map(|path| Path::new(path).exists())
                .collect(),
            temporary: entries("/tmp").into_iter().collect(),
            sysctls: SYSCTLS
                .iter()
                .map(|name| fs::read_to_string(format!("/proc/sys/{name}")).expect(name))
                .collect(),
        }
    }
}

/// Starts `wfe-cluster run -- COMMAND` with piped stdout.
fn start(command: &[&str]) -> Child {
    Command::new(PROGRAM)
        .args(["run", "--"])
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start wfe-cluster")
}

/// Polls `holds`: the kernel does not notify of the end of processes that are not children.
fn poll(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < deadline,
            "not within {deadline:?}: {what}"
        );
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

/// Waits until the boot has written a log file, which marks a moment of the boot.
fn wait_for_boot(log: &Path, started: Instant) {
    poll(
        &format!("{} is written", log.display()),
        BOOT_DEADLINE,
        || {
            fs::metadata(log)
                .and_then(|it| it.modified())
                .is_ok_and(|modified| modified.elapsed().unwrap_or_default() < started.elapsed())
        },
    );
}

fn home() -> PathBuf {
    let from = |variable: &str| {
        std::env::var_os(variable)
            .filter(|it| !it.is_empty())
            .map(PathBuf::from)
    };
    from("WFE_CLUSTER_HOME")
        .or_else(|| from("XDG_CACHE_HOME").map(|it| it.join("wfe-cluster")))
        .or_else(|| from("HOME").map(|it| it.join(".cache/wfe-cluster")))
        .expect("a home")
}

#[test]
fn killed_cluster_leaves_nothing_and_next_cluster_boots() {
    assert!(
        Command::new(PROGRAM)
            .arg("build")
            .status()
            .expect("build")
            .success()
    );
    assert!(
        fs::read_to_string("/proc/self/status")
            .expect("status")
            .contains("Uid:\t0\t"),
        "run this test as root: a node needs it"
    );
    let before = Traces::now();
    let log = |name: &str| home().join("log").join(name);
    // Moments of the boot, by the log of the process that was just started; the last is after the
    // boot.
    for moment in [
        "etcd.log",
        "containerd.log",
        "crane.log",
        "kubelet.log",
        "kube-proxy.log",
        "ready",
    ] {
        let started = Instant::now();
        let mut cluster = start(&[
            "sh",
            "-c",
            "kubectl run sleeper --image=10.77.0.1:5000/pause:1 && kubectl wait --for=condition=Ready pod/sleeper && echo ready && exec sleep 1000",
        ]);
        if moment == "ready" {
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
                cluster.stdout.take().expect("stdout"),
            ));
            assert!(
                lines.any(|line| line.expect("a line") == "ready"),
                "the pod is ready"
            );
        } else {
            wait_for_boot(&log(moment), started);
        }
        cluster.kill().expect("kill -9");
        cluster.wait().expect("reaped");
        poll(
            &format!("every process has ended after the kill at {moment}"),
            DEADLINE,
            || {
                Traces::now()
                    .pid_namespaces
                    .is_subset(&before.pid_namespaces)
            },
        );
        let left = Traces::now();
        assert_eq!(
            (&left.mounts, &left.devices, &left.sysctls),
            (&before.mounts, &before.devices, &before.sysctls),
            "killed at {moment}"
        );

        let next = start(&[
            "kubectl",
            "wait",
            "--for=condition=Ready",
            "node/wfe",
            "--timeout=30s",
        ]);
        assert!(
            next.wait_with_output().expect("next run").status.success(),
            "the next cluster boots after the kill at {moment}"
        );
        assert_eq!(
            Traces::now(),
            before,
            "after the next cluster, killed at {moment}"
        );
    }
}
