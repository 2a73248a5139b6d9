//! One of our programs, as a process.

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

/// A running program; killed when the value goes. When a test fails, its log is shown.
pub struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
    health: String,
    started: Instant,
    ready_after: Duration,
}

impl Program {
    /// Starts `name`, which was built beside this program, and waits until it says that it is ready.
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
            // Ctrl-C in the terminal is for who started it.
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
            // Asked before it is believed: what answers could be another program.
            if probe(health).await.unwrap_or(false) && self.child.try_wait()?.is_none() {
                self.ready_after = self.started.elapsed();
                return Ok(());
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }

    /// SIGTERM: how it ended, within `deadline`.
    pub async fn terminate(self, deadline: Duration) -> Result<ExitStatus> {
        self.ask_to_end()?;
        self.ended(deadline).await
    }

    /// SIGTERM.
    pub fn ask_to_end(&self) -> Result<()> {
        Ok(kill(
            Pid::from_raw(i32::try_from(self.pid()?)?),
            Signal::SIGTERM,
        )?)
    }

    /// From its start to when it first said that it is ready.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("it has ended already")
    }

    /// The most memory it ever had, in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        Ok(memory_kib(self.pid()?, "VmHWM:")? << 10)
    }

    /// How often its log has `text`.
    pub fn logs(&self, text: &str) -> Result<usize> {
        Ok(std::fs::read_to_string(&self.log)?.matches(text).count())
    }

    /// Until its log has `text` so many times.
    pub async fn logged(&self, text: &str, times: usize, deadline: Duration) -> Result<()> {
        let looking = async {
            while self.logs(text)? < times {
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
            anyhow::Ok(())
        };
        let looked = tokio::time::timeout(deadline, looking).await;
        looked.with_context(|| format!("{text:?} is not there:\n{}", self.end_of_log()))?
    }

    /// How it ended, within `deadline`.
    pub async fn ended(mut self, deadline: Duration) -> Result<ExitStatus> {
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

    /// Until it says that it is ready, or that it is not.
    pub async fn says(&self, ready: bool, deadline: Duration) -> Result<()> {
        let asking = async {
            while probe(&self.health).await.unwrap_or(!ready) != ready {
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        };
        let asked = tokio::time::timeout(deadline, asking).await;
        asked.with_context(|| {
            format!(
                "{}: ready is not {ready}:\n{}",
                self.name,
                self.end_of_log()
            )
        })
    }

    /// SIGKILL, and gone.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Lets it run on after this program.
    pub(super) fn leave(self) {
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

/// What the kernel calls `key` in a process's status, in KiB.
pub fn memory_kib(pid: u32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("the kernel says how much")?.trim().parse()?)
}

/// Runs `name` to its end.
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

/// The whole answer, headers included.
pub(super) async fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Tests are in a folder below the one that has the programs.
fn path_of(name: &str) -> Result<PathBuf> {
    let ours = std::env::current_exe()?;
    let directory = ours.parent().context("no folder")?;
    let directory = if directory.ends_with("deps") {
        directory.parent().context("no folder")?
    } else {
        directory
    };
    Ok(directory.join(name))
}
