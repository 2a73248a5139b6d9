//! The cluster's processes: each has a log file, and the death of one fails the cluster.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

const PROBE_INTERVAL: Duration = Duration::from_millis(50);
const LOG_LINES: usize = 12;

/// Started processes. They end with the PID namespace, not when this value is dropped.
pub(crate) struct Processes {
    log: PathBuf,
    path: OsString,
    running: Vec<(&'static str, Child)>,
    /// Arguments of processes that are started again when they are killed.
    restarted: HashMap<&'static str, Vec<OsString>>,
}

impl Processes {
    pub(crate) fn new(log: PathBuf, path: OsString) -> Self {
        Self {
            log,
            path,
            running: Vec::new(),
            restarted: HashMap::new(),
        }
    }

    /// `PATH` with the cluster's binaries.
    pub(crate) fn path(&self) -> OsString {
        self.path.clone()
    }

    /// Starts the binary `name`, with output to its log file.
    pub(crate) fn start<S: AsRef<OsStr>>(
        &mut self,
        name: &'static str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<()> {
        let log =
            File::create(self.log_of(name)).with_context(|| format!("create the log of {name}"))?;
        let child = Command::new(name)
            .args(arguments)
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Keeps Ctrl-C in the terminal from reaching the cluster: it is for the command.
            .process_group(0)
            .spawn()
            .with_context(|| format!("step start {name}"))?;
        self.running.push((name, child));
        Ok(())
    }

    /// As [`start`](Self::start); if the process is killed (SIGKILL), it is started again, as a static
    /// pod is.
    pub(crate) fn start_and_restart(
        &mut self,
        name: &'static str,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<()> {
        let arguments: Vec<_> = arguments.into_iter().map(OsString::from).collect();
        self.restarted.insert(name, arguments.clone());
        self.start(name, arguments)
    }

    /// Polls `probe` until it returns true. Fails at the deadline, with the end of the log of
    /// `process`, or when a process has died, with the end of its log.
    pub(crate) async fn wait_until(
        &mut self,
        what: &str,
        process: &str,
        deadline: Duration,
        mut probe: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let mut last = String::new();
        let waiting = async {
            loop {
                match probe().await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) => last = format!(": {error:#}"),
                }
                if let Some(dead) = self.dead()? {
                    return Err(self.failure(what, dead, "the process has died"));
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        };
        match tokio::time::timeout(deadline, waiting).await {
            Ok(result) => result,
            Err(_) => Err(self.failure(
                what,
                process,
                &format!("not done within {} s{last}", deadline.as_secs()),
            )),
        }
    }

    /// Waits for SIGTERM; fails when a process has died.
    pub(crate) async fn wait_until_ended(
        &mut self,
        mut terminate: tokio::signal::unix::Signal,
    ) -> Result<ExitCode> {
        let (name, status) = loop {
            let deaths = self
                .running
                .iter_mut()
                .map(|(name, child)| Box::pin(async move { (*name, child.wait().await) }));
            let (name, status) = tokio::select! {
                ((name, status), _, _) = futures::future::select_all(deaths) => (name, status?),
                _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            };
            let killed = status.signal() == Some(Signal::SIGKILL as i32);
            let Some(arguments) = self.restarted.get(name).filter(|_| killed).cloned() else {
                break (name, status);
            };
            self.running.retain(|(it, _)| *it != name);
            self.start(name, arguments)?;
        };
        Err(self.failure(
            "run the cluster",
            name,
            &format!("the process has died ({status})"),
        ))
    }

    fn dead(&mut self) -> Result<Option<&'static str>> {
        for (name, child) in &mut self.running {
            if child.try_wait()?.is_some() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn log_of(&self, process: &str) -> PathBuf {
        self.log.join(format!("{process}.log"))
    }

    fn failure(&self, what: &str, process: &str, problem: &str) -> anyhow::Error {
        let log = self.log_of(process);
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let end = lines
            .split_at(lines.len().saturating_sub(LOG_LINES))
            .1
            .join("\n  ");
        anyhow!(
            "step {what} ({process}): {problem}. The end of {}:\n  {end}",
            log.display()
        )
    }
}
