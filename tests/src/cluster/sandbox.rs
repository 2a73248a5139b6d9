//! The namespaces a cluster lives in.
//!
//! The program outside (the supervisor) makes new network, process and IPC namespaces (and, without
//! root, a user namespace) and starts itself again as the first process inside, which makes itself
//! a mount namespace. When
//! that process ends, or the supervisor is killed, the kernel kills every process inside, and with
//! the last one network devices and mounts go too. Files that processes would leave on the host
//! lie on tmpfs mounts that only the inside sees. What remains is removed by [`clean_up`]: empty
//! control groups and mount points.

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

use crate::cluster::home::{Home, State};

/// The control group that containers live under.
pub(crate) const CGROUP: &str = "wfe-cluster";

/// Folders that containerd, libcni and the kubelet write to whatever they are told.
const PRIVATE_DIRECTORIES: [&str; 4] = [
    "/run/containerd",
    "/var/lib/cni",
    "/var/log/containers",
    "/var/log/pods",
];

/// Settings of the whole machine that the kubelet would change: inside, copies are mounted over them.
const SYSCTLS: [&str; 6] = [
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// Outside: moves into new namespaces, starts `arguments` of this program as their first process,
/// and waits for its end. A SIGTERM is passed on; SIGINT reaches the inside by the terminal.
pub(crate) fn enter(home: &Home, api_only: bool, arguments: &[OsString]) -> Result<ExitCode> {
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
    let mut child = start(api_only, arguments)?;
    let inside = Pid::from_raw(i32::try_from(child.id())?);
    let code = loop {
        match signals.wait()? {
            Signal::SIGTERM | Signal::SIGHUP => kill(inside, Signal::SIGTERM)?,
            Signal::SIGCHLD => match waitpid(inside, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, code) => break ExitCode::from(u8::try_from(code)?),
                WaitStatus::Signaled(_, signal, _) => {
                    eprintln!("wfe-cluster: the cluster's first process was ended by {signal}");
                    break ExitCode::FAILURE;
                }
                _ => {}
            },
            _ => {}
        }
    };
    // Reaped above; this only tells the handle.
    let _ = child.try_wait();
    clean_up(home);
    Ok(code)
}

fn start(api_only: bool, arguments: &[OsString]) -> Result<Child> {
    let (user, group) = (geteuid(), getegid());
    let mut namespaces =
        CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC;
    if !user.is_root() {
        ensure!(
            api_only,
            "a node needs root; without it there is --api-only"
        );
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(namespaces).context("step namespaces: does this kernel let you make them?")?;
    if !user.is_root() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    let mut program = Command::new(std::env::current_exe()?);
    if api_only {
        program.arg("--api-only");
    }
    program
        .args(["inside", "--supervisor", &std::process::id().to_string()])
        .args(arguments)
        .spawn()
        .context("step namespaces: start the first process inside")
}

/// Inside: ties this process to its supervisor and makes the namespaces a place to live in.
/// Returns this process's id as seen from outside.
pub(crate) fn furnish(home: &Home, supervisor: u32, api_only: bool) -> Result<i32> {
    SigSet::all().thread_unblock()?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // /proc is still the outer one. A supervisor that died before the line above is seen here.
    let init = fs::read_link("/proc/self")?.to_string_lossy().parse()?;
    ensure!(is_alive(supervisor), "the supervisor is gone");

    // Made here and not outside: the supervisor must not see these mounts, it removes their points.
    unshare(CloneFlags::CLONE_NEWNS).context("step namespaces: mounts")?;
    let no_source = None::<&str>;
    mount(
        no_source,
        "/",
        no_source,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        no_source,
    )?;
    // Among ourselves mounts are shared: the kubelet's volumes must reach containers.
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
    if geteuid().is_root() && !api_only {
        for directory in PRIVATE_DIRECTORIES {
            mount_new("tmpfs", Path::new(directory), Some("mode=0755"))?;
        }
        shadow_sysctls(home)?;
    }
    bring_up_loopback()?;
    Ok(init)
}

/// Whether a process exists and has not ended: one that nobody has waited for yet still exists.
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
        .with_context(|| format!("step namespaces: cover {}", real.display()))?;
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

/// Mount points that are not there are made, and written down to be removed again. Without root
/// none are needed.
fn make_mount_points(home: &Home) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let missing: Vec<_> = PRIVATE_DIRECTORIES
        .iter()
        .copied()
        .filter(|directory| !Path::new(directory).exists())
        .collect();
    fs::write(home.made(), missing.join("\n"))?;
    missing
        .iter()
        .try_for_each(fs::create_dir_all)
        .context("make mount points")
}

/// Removes what the kernel does not: nothing of it is in use when no cluster runs.
pub(crate) fn clean_up(home: &Home) {
    let _ = fs::remove_file(home.state());
    for directory in fs::read_to_string(home.made()).unwrap_or_default().lines() {
        let _ = fs::remove_dir(directory);
    }
    let _ = fs::remove_file(home.made());
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

/// Makes the control group that containers live under.
pub(crate) fn make_cgroups() -> Result<()> {
    cgroups()
        .iter()
        .try_for_each(fs::create_dir_all)
        .context("step node: make control groups")
}

/// Our control group: one path in the unified hierarchy, one for each controller in the old ones.
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

/// A control group and those below it; the kernel refuses where a process lives.
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

/// Starts this program again to hold a cluster, in the background.
pub(crate) fn start_serving(home: &Home, api_only: bool) -> Result<Child> {
    let log = fs::File::create(home.log().join("serve.log"))?;
    let mut program = Command::new(std::env::current_exe()?);
    if api_only {
        program.arg("--api-only");
    }
    program
        .arg("serve")
        // Ctrl-C in the terminal is not for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start the cluster in the background")
}
