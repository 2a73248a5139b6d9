//! The Linux namespaces that a cluster runs in.
//!
//! The supervisor, outside, creates network, PID and IPC namespaces (and, without root, a user
//! namespace) and starts this program again as the first process inside, which creates a mount
//! namespace. When the first process ends, or the supervisor is killed, the kernel kills every
//! process inside, and removes network devices and mounts. Files that processes would leave on the
//! host are on tmpfs mounts of the mount namespace. [`clean_up`] removes the rest: empty control
//! groups and mount points.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid};

use crate::cluster::args::Extent;
use crate::cluster::home::{Home, State};

/// The parent control group of all containers.
pub(crate) const CGROUP: &str = "wfe-cluster";

/// Directories that containerd, libcni and the kubelet write to, regardless of configuration.
const PRIVATE_DIRECTORIES: [&str; 4] = [
    "/run/containerd",
    "/var/lib/cni",
    "/var/log/containers",
    "/var/log/pods",
];

/// Kernel settings of the machine that the kubelet would change: copies are mounted over them.
const SYSCTLS: [&str; 6] = [
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// Creates the namespaces, starts this program with `arguments` as their first process, and waits
/// until it ends. Forwards SIGTERM; the terminal sends SIGINT to both processes. Called outside.
pub(crate) fn enter(home: &Home, extent: Extent, arguments: &[OsString]) -> Result<ExitCode> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
    ] {
        signals.add(signal);
    }
    signals.thread_block()?;
    make_mount_points(home)?;
    let mut child = start(extent, arguments)?;
    let inside = Pid::from_raw(i32::try_from(child.id())?);
    let code = loop {
        match signals.wait()? {
            Signal::SIGTERM | Signal::SIGHUP => kill(inside, Signal::SIGTERM)?,
            Signal::SIGCHLD => match waitpid(inside, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, code) => break ExitCode::from(u8::try_from(code)?),
                WaitStatus::Signaled(_, signal, _) => {
                    eprintln!("wfe-cluster: the cluster's first process was killed by {signal}");
                    break ExitCode::FAILURE;
                }
                _ => {}
            },
            _ => {}
        }
    };
    // The process is reaped above; this updates the handle.
    let _ = child.try_wait();
    clean_up(home);
    Ok(code)
}

fn start(extent: Extent, arguments: &[OsString]) -> Result<Child> {
    let (user, group) = (geteuid(), getegid());
    let mut namespaces =
        CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC;
    if !user.is_root() {
        ensure!(
            !extent.has_node(),
            "a node needs root: run as root, or with --api-only"
        );
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(namespaces).context("step namespaces: does this kernel allow creating them?")?;
    if !user.is_root() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    let mut program = Command::new(std::env::current_exe()?);
    program
        .args(extent.flag())
        .args(["inside", "--supervisor", &std::process::id().to_string()])
        .args(arguments)
        .spawn()
        .context("step namespaces: start the first process inside")
}

/// Binds the life of this process to its supervisor, and sets up mounts and loopback. Returns this
/// process id in the outer PID namespace. Called inside.
pub(crate) fn set_up_namespaces(home: &Home, supervisor: u32, extent: Extent) -> Result<i32> {
    SigSet::all().thread_unblock()?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // /proc still shows the outer PID namespace. A supervisor that died before prctl is noticed
    // here.
    let init = fs::read_link("/proc/self")?.to_string_lossy().parse()?;
    ensure!(is_alive(supervisor), "the supervisor has ended");

    // Created inside: the supervisor removes the mount points, so it must not see the mounts.
    unshare(CloneFlags::CLONE_NEWNS).context("step namespaces: mounts")?;
    let no_source = None::<&str>;
    mount(
        no_source,
        "/",
        no_source,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        no_source,
    )?;
    // Shared within this namespace: the kubelet's volume mounts must propagate to containers.
    mount(
        no_source,
        "/",
        no_source,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        no_source,
    )?;
    let mount_new = |kind: &str, target: &Path, options| {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("step namespaces: mount {kind} at {}", target.display()))
    };
    mount_new("proc", Path::new("/proc"), no_source)?;
    mount_new("tmpfs", &home.run(), Some("mode=0755"))?;
    fs::create_dir(home.run().join("tmp"))?;
    if geteuid().is_root() && extent.has_node() {
        for directory in PRIVATE_DIRECTORIES {
            mount_new("tmpfs", Path::new(directory), Some("mode=0755"))?;
        }
        shadow_sysctls(home)?;
    }
    bring_up_loopback()?;
    Ok(init)
}

/// Whether a process exists and is not a zombie.
fn is_alive(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| !state.trim_start().starts_with(['Z', 'X']))
}

fn shadow_sysctls(home: &Home) -> Result<()> {
    let directory = home.run().join("sysctl");
    fs::create_dir(&directory)?;
    for name in SYSCTLS {
        let real = Path::new("/proc/sys").join(name);
        let copy = directory.join(name.replace('/', "."));
        fs::copy(&real, &copy).with_context(|| format!("copy {}", real.display()))?;
        mount(
            Some(&copy),
            &real,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("step namespaces: mount over {}", real.display()))?;
    }
    Ok(())
}

fn bring_up_loopback() -> Result<()> {
    ip(&["link", "set", "lo", "up"])
}

/// Runs iproute2's `ip`.
pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("start ip (package iproute2)")?;
    if !output.status.success() {
        bail!(
            "step network: ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Replaces this process by `command` inside a running cluster.
pub(crate) fn attach(state: &State, state_file: &Path, command: &[OsString]) -> Result<ExitCode> {
    let mut nsenter = Command::new("nsenter");
    nsenter.args([
        "--target",
        &state.init_pid.to_string(),
        "--net",
        "--mount",
        "--pid",
        "--ipc",
    ]);
    if !geteuid().is_root() {
        nsenter.args(["--user", "--preserve-credentials"]);
    }
    // nsenter changes to the target's working directory otherwise.
    nsenter.arg(format!("--wd={}", std::env::current_dir()?.display()));
    Err(nsenter
        .arg("--")
        .args(command)
        .envs(state.environment(state_file)?)
        .exec())
    .context("start nsenter (package util-linux)")
}

/// Creates missing mount points, and lists them in a file for [`clean_up`]. Without root, none are
/// needed.
fn make_mount_points(home: &Home) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let missing: Vec<_> = PRIVATE_DIRECTORIES
        .iter()
        .copied()
        .filter(|directory| !Path::new(directory).exists())
        .collect();
    fs::write(home.created_mount_points(), missing.join("\n"))?;
    missing
        .iter()
        .try_for_each(fs::create_dir_all)
        .context("create mount points")
}

/// Removes what the kernel does not remove. Must be called only when no cluster is running.
pub(crate) fn clean_up(home: &Home) {
    let _ = fs::remove_file(home.state());
    for directory in fs::read_to_string(home.created_mount_points())
        .unwrap_or_default()
        .lines()
    {
        let _ = fs::remove_dir(directory);
    }
    let _ = fs::remove_file(home.created_mount_points());
    // A control group is busy for a moment after its last process was killed.
    for _ in 0..100 {
        let left: Vec<_> = cgroups()
            .into_iter()
            .filter(|cgroup| cgroup.exists())
            .collect();
        if left.is_empty() {
            break;
        }
        for cgroup in left {
            remove_cgroup(&cgroup);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for build in children(&home.bin()) {
        let name = build.file_name().unwrap_or_default().to_string_lossy();
        let builder = name
            .strip_prefix("building-")
            .and_then(|name| name.rsplit_once('-')?.1.parse().ok());
        if builder.is_some_and(|builder| !is_alive(builder)) {
            let _ = fs::remove_dir_all(&build);
        }
    }
}

/// Creates the parent control group of all containers.
pub(crate) fn make_cgroups() -> Result<()> {
    cgroups()
        .iter()
        .try_for_each(fs::create_dir_all)
        .context("step node: create control groups")
}

/// Paths of the control group: one with cgroup v2, one for each controller with cgroup v1.
fn cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        vec![root.join(CGROUP)]
    } else {
        children(root)
            .into_iter()
            .map(|hierarchy| hierarchy.join(CGROUP))
            .collect()
    }
}

/// Removes a control group and its children, except those with processes: the kernel refuses.
fn remove_cgroup(cgroup: &Path) {
    for child in children(cgroup) {
        remove_cgroup(&child);
    }
    let _ = fs::remove_dir(cgroup);
}

fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Starts this program again in the background, to run a cluster.
pub(crate) fn start_serving(home: &Home, extent: Extent) -> Result<Child> {
    let log = fs::File::create(home.log().join("serve.log"))?;
    let mut program = Command::new(std::env::current_exe()?);
    program
        .args(extent.flag())
        .arg("serve")
        // Keeps Ctrl-C in the terminal from reaching the background process.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start the cluster in the background")
}
