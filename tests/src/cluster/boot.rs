//! Boots the cluster inside the namespaces and runs the command.
//!
//! Needs no teardown: this process is the first of its PID namespace. When it ends, the kernel
//! kills all other processes of the namespace and removes network devices and mounts.

mod control_plane;
mod node;
mod tekton;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::args::Extent;
use crate::cluster::home::{Home, State};
use crate::cluster::pki::Authority;
use crate::cluster::processes::Processes;
use crate::cluster::registry::Registry;
use crate::cluster::{binaries, sandbox};

/// Address of the node, the API server and the registry: that of the bridge of the pod network.
const NODE_ADDRESS: &str = "10.77.0.1";
const SERVER: &str = "https://10.77.0.1:6443";
const POD_NETWORK: &str = "10.77.0.0/24";
const SERVICE_NETWORK: &str = "10.96.0.0/24";

/// State shared by the components while they boot.
struct Boot {
    run: PathBuf,
    authority: Authority,
    processes: Processes,
}

impl Boot {
    /// Issues an identity and writes its certificate, key and kubeconfig.
    fn identity(&self, file: &str, user: &str, group: Option<&str>, names: &[&str]) -> Result<()> {
        let identity = self.authority.issue(user, group, names)?;
        self.write(&format!("{file}.crt"), &identity.certificate)?;
        self.write(&format!("{file}.key"), &identity.key)?;
        self.write(
            &format!("{file}.conf"),
            &self.authority.kubeconfig(SERVER, &identity).to_string(),
        )
    }

    fn write(&self, file: &str, content: &str) -> Result<()> {
        let path = self.path(file);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }

    fn path(&self, file: &str) -> PathBuf {
        self.run.join(file)
    }

    /// A path as text, for configuration files and flags.
    fn text(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }
}

/// Boots the cluster, then runs `command`, or waits for a signal; returns the exit code.
pub(crate) fn inside(
    home: &Home,
    supervisor: u32,
    extent: Extent,
    command: &[OsString],
) -> Result<ExitCode> {
    let init_pid = sandbox::set_up_namespaces(home, supervisor, extent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let code = runtime.block_on(async {
        let started = Instant::now();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (state, mut boot) = tokio::select! {
            booted = boot(home, extent, init_pid, command.is_empty()) => booted?,
            _ = terminate.recv() => return Ok(ExitCode::FAILURE),
            _ = interrupt.recv() => return Ok(ExitCode::FAILURE),
        };
        state.write(&home.state())?;
        if command.is_empty() {
            boot.processes.wait_until_ended(terminate).await
        } else {
            eprintln!(
                "cluster ready after {:.1} s",
                started.elapsed().as_secs_f32()
            );
            let state_file = home.state();
            tokio::select! {
                // From here on, Ctrl-C in the terminal is for the command only.
                ended = run(command, &state, &state_file) => ended,
                // SIGTERM, or a process of the cluster has died.
                died = boot.processes.wait_until_ended(terminate) => died.map(|_| ExitCode::FAILURE),
            }
        }
    });
    runtime.shutdown_background();
    code
}

async fn boot(home: &Home, extent: Extent, init_pid: i32, serves: bool) -> Result<(State, Boot)> {
    let built = binaries::build(home, extent)?;
    let path = std::env::join_paths(built.path.iter().cloned().chain(std::env::split_paths(
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )))?;
    let mut boot = Boot {
        run: home.run(),
        authority: Authority::new()?,
        processes: Processes::new(home.log(), path),
    };
    if extent.has_node() {
        node::bridge()?;
    } else {
        sandbox::ip(&["addr", "add", NODE_ADDRESS, "dev", "lo"])?;
    }
    control_plane::start_api_server(&mut boot, extent)?;
    let registry = if extent.has_node() {
        node::start_runtime(&mut boot)?;
        control_plane::start_controllers(&mut boot)?;
        let registry = Registry::start(&mut boot.processes, NODE_ADDRESS, &home.run()).await?;
        registry.push_base_images()?;
        Some(registry)
    } else {
        None
    };
    let client = control_plane::wait_for_api_server(&mut boot).await?;
    if let Some(registry) = &registry {
        let tekton = built
            .tekton
            .map(|directory| tekton::prepare(&boot, registry, &directory))
            .transpose()?;
        node::wait_until_ready(&mut boot, client.clone()).await?;
        if let Some(manifests) = tekton {
            tekton::install(&boot, &client, &manifests).await?;
        }
    }
    let state = State {
        init_pid,
        serves,
        extent,
        kubeconfig: boot.path("admin.conf"),
        server: SERVER.to_owned(),
        ca_certificate: boot.path("ca.crt"),
        ca_key: boot.path("ca.key"),
        temporary: boot.path("tmp"),
        bin: built.path,
        registry: registry.map(|it| it.address().to_owned()),
    };
    Ok((state, boot))
}

/// Runs the command in the foreground; returns its exit code.
async fn run(command: &[OsString], state: &State, state_file: &Path) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .envs(state.environment(state_file)?)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let status = child.wait().await?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
