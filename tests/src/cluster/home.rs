//! The folder that outlives a cluster: binaries, logs, and who holds it now.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Names the state file of the cluster that a process runs in.
pub(crate) const STATE_VARIABLE: &str = "WFE_CLUSTER";

/// Paths under `$WFE_CLUSTER_HOME`, else `~/.cache/wfe-cluster`.
#[derive(Clone, Debug)]
pub(crate) struct Home(PathBuf);

impl Home {
    pub(crate) fn locate() -> Result<Self> {
        let from = |variable: &str| {
            std::env::var_os(variable)
                .filter(|it| !it.is_empty())
                .map(PathBuf::from)
        };
        let home = from("WFE_CLUSTER_HOME")
            .or_else(|| from("XDG_CACHE_HOME").map(|it| it.join("wfe-cluster")))
            .or_else(|| from("HOME").map(|it| it.join(".cache/wfe-cluster")))
            .context("neither WFE_CLUSTER_HOME nor HOME is set: where may binaries be kept?")?;
        let home = Self(std::path::absolute(home)?);
        for directory in [home.bin(), home.log(), home.run()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        Ok(home)
    }

    /// Binaries, a folder for each build.
    pub(crate) fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// Logs of the last cluster and the last builds.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The running cluster's files: a tmpfs that only its own namespace sees.
    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Written when the cluster is ready.
    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Folders that were made on the host as mount points, to be removed again; of the machine,
    /// like the lock.
    pub(crate) fn made(&self) -> PathBuf {
        self.lock_file().with_extension("made")
    }

    /// With a node there can be one cluster on a machine, whatever its home: control groups and
    /// mount points are shared.
    fn lock_file(&self) -> PathBuf {
        if nix::unistd::geteuid().is_root() {
            "/run/wfe-cluster.lock".into()
        } else {
            self.0.join("lock")
        }
    }

    /// Takes the one place for a running cluster; the kernel frees it with the process. The
    /// holder's process id is in the file.
    pub(crate) fn lock(&self) -> Result<Option<File>> {
        let path = self.lock_file();
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {
                fs::write(&path, std::process::id().to_string())?;
                Ok(Some(file))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("lock {}", path.display()))
            }
        }
    }

    /// Who holds the lock.
    pub(crate) fn holder(&self) -> Result<i32> {
        let text = fs::read_to_string(self.lock_file()).context("read who holds the cluster")?;
        text.trim().parse().with_context(|| {
            format!(
                "{text:?} in {} is no process id",
                self.lock_file().display()
            )
        })
    }
}

/// A running cluster, as its own processes and tests see it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct State {
    /// Its first process, as seen from outside.
    pub init_pid: i32,
    /// Whether it holds until a signal (`up`), or for one command (`run`).
    pub serves: bool,
    /// Administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// URL of the API server.
    pub server: String,
    /// Certificate and key of the CA that the API server trusts for clients.
    pub ca_certificate: PathBuf,
    /// Its key.
    pub ca_key: PathBuf,
    /// Folder for temporary files.
    pub temporary: PathBuf,
    /// Folders with the cluster's binaries.
    pub bin: Vec<PathBuf>,
    /// `host:port` of the registry; none without a node.
    pub registry: Option<String>,
}

impl State {
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Written whole or not at all: `up` waits for the file.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, path).with_context(|| format!("write {}", path.display()))
    }

    /// What a command inside the cluster needs in its environment.
    pub(crate) fn environment(
        &self,
        state_file: &Path,
    ) -> Result<[(&'static str, std::ffi::OsString); 4]> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths(self.bin.iter().cloned().chain(std::env::split_paths(&path)))?;
        Ok([
            ("PATH", path),
            ("KUBECONFIG", self.kubeconfig.clone().into()),
            (STATE_VARIABLE, state_file.into()),
            // Temporary files go with the cluster.
            ("TMPDIR", self.temporary.clone().into()),
        ])
    }
}
