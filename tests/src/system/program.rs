//! Runs the controller or the webhook as a process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const READY_DEADLINE: Duration = Duration::from_secs(20);
const PROBE_INTERVAL: Duration = Duration::from_millis(5);

/// A running program; killed when the value is dropped. When a test fails, the end of its log is
/// printed.
pub struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
    health: String,
    started: Instant,
    ready_after: Duration,
}

impl Program {
    /// Starts the binary `name` from the build directory of this test and waits until it is ready.
    pub(super) async fn start(
        name: &'static str,
        flags: &[String],
        kubeconfig: &Path,
        log: &Path,
        health: &str,
    ) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let started = Instant::now();
        let child = Command::new(path_of(name)?)
            .args(flags)
            .env("KUBECONFIG", kubeconfig)
            .env(
                "WFE_LOG_FILTER",
                "info,wfe_controller=debug,wfe_webhook=debug",
            )
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            // Keeps Ctrl-C in the terminal from reaching it: the test ends it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}: was it built?"))?;
        let mut program = Self {
            name,
            child,
            log: log.to_owned(),
            health: health.to_owned(),
            started,
            ready_after: Duration::ZERO,
        };
        match tokio::time::timeout(READY_DEADLINE, program.ready(health)).await {
            Ok(result) => result.map(|()| program),
            Err(_) => bail!(
                "{name} is not ready after {} s:\n{}",
                READY_DEADLINE.as_secs(),
                program.end_of_log()
            ),
        }
    }

    async fn ready(&mut self, health: &str) -> Result<()> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.name, self.end_of_log());
            }
            // Checks again that the process lives: another process may answer on this port.
            if probe(health).await.unwrap_or(false) && self.child.try_wait()?.is_none() {
                self.ready_after = self.started.elapsed();
                return Ok(());
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }

    /// Sends SIGTERM and waits for the exit status.
    pub async fn terminate(self, deadline: Duration) -> Result<ExitStatus> {
        self.send_sigterm()?;
        self.wait_for_exit(deadline).await
    }

    /// Sends SIGTERM.
    pub fn send_sigterm(&self) -> Result<()> {
        self.send(Signal::SIGTERM)
    }

    /// Stops the process (SIGSTOP): it runs nothing until it is [resumed](Self::resume).
    pub fn stop(&self) -> Result<()> {
        self.send(Signal::SIGSTOP)
    }

    /// Lets a stopped process continue.
    pub fn resume(&self) -> Result<()> {
        self.send(Signal::SIGCONT)
    }

    fn send(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid()?)?), signal)?)
    }

    /// Time from the start of the process until it was first ready.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The process id.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("the process has ended")
    }

    /// Peak resident memory, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        Ok(memory_kib(self.pid()?, "VmHWM:")? << 10)
    }

    /// How many times the log contains `text`.
    pub fn log_count(&self, text: &str) -> Result<usize> {
        Ok(std::fs::read_to_string(&self.log)?.matches(text).count())
    }

    /// Waits until the log contains `text` at least `times` times.
    pub async fn wait_for_log(&self, text: &str, times: usize, deadline: Duration) -> Result<()> {
        let polling = async {
            while self.log_count(text)? < times {
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
            anyhow::Ok(())
        };
        let logged = tokio::time::timeout(deadline, polling).await;
        logged.with_context(|| format!("the log has no {text:?}:\n{}", self.end_of_log()))?
    }

    /// Waits for the exit status.
    pub async fn wait_for_exit(mut self, deadline: Duration) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(deadline, self.child.wait()).await;
        let late = || {
            format!(
                "{} did not end within {} s:\n{}",
                self.name,
                deadline.as_secs(),
                self.end_of_log()
            )
        };
        Ok(ended.with_context(late)??)
    }

    /// Waits until `/readyz` reports that the program is ready, or that it is not.
    pub async fn wait_for_readiness(&self, ready: bool, deadline: Duration) -> Result<()> {
        let polling = async {
            while probe(&self.health).await.unwrap_or(!ready) != ready {
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        };
        let reported = tokio::time::timeout(deadline, polling).await;
        reported.with_context(|| {
            format!(
                "{}: ready is not {ready}:\n{}",
                self.name,
                self.end_of_log()
            )
        })
    }

    /// What `/readyz` says.
    pub async fn readiness(&self) -> Result<String> {
        get(&self.health, "/readyz").await
    }

    /// Sends SIGKILL and waits for the end.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Keeps the process running after this program ends.
    pub(super) fn detach(self) {
        std::mem::forget(self);
    }

    fn end_of_log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines.split_at(lines.len().saturating_sub(60)).1.join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "the end of the log of {}:\n{}",
                self.name,
                self.end_of_log()
            );
        }
    }
}

/// The value of `key` in `/proc/<pid>/status`, in KiB.
pub fn memory_kib(pid: u32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib
        .context("no such value in the process status")?
        .trim()
        .parse()?)
}

/// Runs the binary `name`; returns whether it succeeded, and its output.
pub(super) async fn run(
    name: &str,
    arguments: &[&str],
    kubeconfig: &Path,
) -> Result<(bool, String)> {
    let output = Command::new(path_of(name)?)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

async fn probe(health: &str) -> Result<bool> {
    let answer = get(health, "/readyz").await?;
    Ok(answer.split(' ').nth(1) == Some("200"))
}

/// The response to a GET, headers included.
pub(super) async fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Path of a binary of this build. Cargo puts tests into `deps`, a folder below the one with the binaries.
pub fn path_of(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let directory = test.parent().context("no folder")?;
    let directory = if directory.ends_with("deps") {
        directory.parent().context("no folder")?
    } else {
        directory
    };
    Ok(directory.join(name))
}
