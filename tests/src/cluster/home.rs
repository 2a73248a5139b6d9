//! The directory that is kept between clusters: binaries, logs, and the lock of the running
//! cluster.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cluster::args::Extent;

/// Environment variable with the path of the state file of the cluster that a process runs in.
pub(crate) const STATE_VARIABLE: &str = "WFE_CLUSTER";

/// Paths under `$WFE_CLUSTER_HOME`, by default `~/.cache/wfe-cluster`.
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
            .context("neither WFE_CLUSTER_HOME nor HOME is set: set one, to keep binaries in it")?;
        let home = Self(std::path::absolute(home)?);
        for directory in [home.bin(), home.log(), home.run()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        Ok(home)
    }

    /// Binaries, in a directory for each build.
    pub(crate) fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// Logs of the last cluster and the last builds.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Files of the running cluster: mount point of a tmpfs, visible in its mount namespace only.
    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// State file, written when the cluster is ready.
    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// List of directories that were created on the host as mount points, to be removed again. One
    /// for the machine, like the lock.
    pub(crate) fn created_mount_points(&self) -> PathBuf {
        self.lock_file().with_extension("made")
    }

    /// With root, one lock for the machine: clusters with a node share control groups and mount
    /// points.
    fn lock_file(&self) -> PathBuf {
        if nix::unistd::geteuid().is_root() {
            "/run/wfe-cluster.lock".into()
        } else {
            self.0.join("lock")
        }
    }

    /// Takes the lock of the running cluster, and writes this process id into the file; none if
    /// another process holds the lock. The kernel releases the lock when the process ends.
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

    /// Process id of the lock's holder.
    pub(crate) fn holder(&self) -> Result<i32> {
        let text = fs::read_to_string(self.lock_file()).context("read the lock file")?;
        text.trim().parse().with_context(|| {
            format!(
                "{text:?} in {} is not a process id",
                self.lock_file().display()
            )
        })
    }
}

/// What processes inside and outside need to know of a running cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct State {
    /// Process id of the first process inside, in the outer PID namespace.
    pub init_pid: i32,
    /// Whether the cluster runs until a signal (`up`), or for one command (`run`).
    pub serves: bool,
    /// What the cluster consists of.
    pub extent: Extent,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// URL of the API server.
    pub server: String,
    /// Certificate of the CA that the API server trusts for clients.
    pub ca_certificate: PathBuf,
    /// Key of the CA.
    pub ca_key: PathBuf,
    /// Directory for temporary files.
    pub temporary: PathBuf,
    /// Directories with the cluster's binaries.
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

    /// Replaces the file atomically: `up` polls for it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, path).with_context(|| format!("write {}", path.display()))
    }

    /// Environment variables of a command inside the cluster.
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
            // On the tmpfs, so that temporary files disappear with the cluster.
            ("TMPDIR", self.temporary.clone().into()),
        ])
    }
}
