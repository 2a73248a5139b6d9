//! Builds Kubernetes, etcd, containerd, crane and Tekton from the Go modules pinned in `modules/`.
//!
//! A build is cached under a hash of its module files and flags, so that each version is built once
//! and a changed version never uses an old binary.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::cluster::args::Extent;
use crate::cluster::home::Home;

/// A cold build of the largest module takes 6 minutes on two cores.
const BUILD_DEADLINE: Duration = Duration::from_mins(30);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(15);

const COMPILER_FLAGS: &str = "all=-dwarf=false";

fn go(source: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(source)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "")
        .env_remove("GOWORK")
        .stdin(Stdio::null());
    go
}

/// Copies the directory `config` of a Go module.
fn copy_config(source: &Path, module: &str, output: &Path) -> Result<()> {
    let listed = go(source)
        .args(["list", "-m", "-f", "{{.Dir}}", module])
        .output()
        .context("start go")?;
    let directory = String::from_utf8(listed.stdout)?;
    let copied = Command::new("cp")
        .args(["-r", "--no-preserve=mode"])
        .arg(Path::new(directory.trim()).join("config"))
        .arg(output)
        .status()
        .context("start cp")?;
    ensure!(copied.success(), "copy config of {module}: cp failed");
    Ok(())
}

/// One Go module and the commands built from it.
struct Module {
    name: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// Name of the binary, where it differs from the one that Go chooses.
    rename: Option<&'static str>,
    tags: &'static str,
    /// The module whose version the binaries report, and the Go variable that holds the version.
    version: Option<(&'static str, &'static str)>,
    /// The smallest cluster that needs it.
    extent: Extent,
    /// A module of which the directory `config` is kept beside the binaries.
    config_of: Option<&'static str>,
}

macro_rules! module {
    ($name:literal, $($field:ident: $value:expr),* $(,)?) => {
        Module {
            name: $name,
            go_mod: include_str!(concat!("modules/", $name, "/go.mod")),
            go_sum: include_str!(concat!("modules/", $name, "/go.sum")),
            $($field: $value),*
        }
    };
}

const MODULES: [Module; 4] = [
    module!("etcd", rename: Some("etcd"), tags: "", version: None, extent: Extent::ApiServer, config_of: None),
    module!("kubernetes", rename: None, tags: "", extent: Extent::ApiServer, config_of: None,
        version: Some(("k8s.io/kubernetes", "k8s.io/component-base/version.gitVersion"))),
    module!("containerd", rename: None, extent: Extent::Node, config_of: None,
        tags: "no_btrfs no_devmapper no_zfs no_aufs no_dynamic_plugins",
        version: Some(("github.com/containerd/containerd/v2", "github.com/containerd/containerd/v2/version.Version"))),
    module!("crane", rename: None, tags: "", version: None, extent: Extent::Node, config_of: None),
];

/// Runs in pods: its binaries become images.
const TEKTON: Module = module!("tekton", rename: None, tags: "", version: None, extent: Extent::Tekton,
    config_of: Some("github.com/tektoncd/pipeline"));

/// Directories with what was built.
pub(crate) struct Built {
    /// To prepend to `PATH`.
    pub path: Vec<PathBuf>,
    /// Tekton's binaries, and `config` with its manifests.
    pub tekton: Option<PathBuf>,
}

/// Builds what is missing.
pub(crate) fn build(home: &Home, extent: Extent) -> Result<Built> {
    let needed = |module: &&Module| module.extent <= extent;
    let path = MODULES.iter().filter(needed);
    let path = path
        .map(|module| module.build(home))
        .collect::<Result<_>>()?;
    let tekton = Some(&TEKTON).filter(needed);
    let tekton = tekton.map(|module| module.build(home)).transpose()?;
    Ok(Built { path, tekton })
}

impl Module {
    fn build(&self, home: &Home) -> Result<PathBuf> {
        let done = home.bin().join(format!("{}-{}", self.name, self.key()));
        if done.is_dir() {
            return Ok(done);
        }
        // The process id keeps concurrent builds apart.
        let source = home
            .bin()
            .join(format!("building-{}-{}", self.name, std::process::id()));
        let output = source.join("out");
        fs::create_dir_all(&output)?;
        fs::write(source.join("go.mod"), self.go_mod)?;
        fs::write(source.join("go.sum"), self.go_sum)?;
        self.compile(
            &source,
            &output,
            &home.log().join(format!("build-{}.log", self.name)),
        )?;
        if let Some(module) = self.config_of {
            copy_config(&source, module, &output)?;
        }
        fs::rename(&output, &done)
            // A concurrent build may have finished first.
            .or_else(|error| if done.is_dir() { Ok(()) } else { Err(error) })
            .with_context(|| format!("move the build to {}", done.display()))?;
        fs::remove_dir_all(&source)?;
        Ok(done)
    }

    /// Cache key of a build: a hash of module files and flags.
    fn key(&self) -> String {
        let mut hash = Sha256::new();
        for part in [
            self.go_mod,
            self.go_sum,
            self.tags,
            COMPILER_FLAGS,
            &self.ldflags(),
            self.rename.unwrap_or_default(),
        ] {
            hash.update(part);
            hash.update([0]);
        }
        hex::encode(hash.finalize()).chars().take(16).collect()
    }

    fn ldflags(&self) -> String {
        let Some((module, variable)) = self.version else {
            return "-s -w".to_owned();
        };
        let version = self
            .go_mod
            .lines()
            .find_map(|line| {
                line.trim()
                    .trim_start_matches("require ")
                    .strip_prefix(module)?
                    .strip_prefix(' ')
            })
            .and_then(|rest| rest.split(' ').next())
            .unwrap_or("unknown");
        // Kubernetes also compares the variables for major and minor version.
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (
            numbers.next().unwrap_or_default(),
            numbers.next().unwrap_or_default(),
        );
        let prefix = variable.trim_end_matches("gitVersion");
        if prefix == variable {
            format!("-s -w -X {variable}={version}")
        } else {
            format!(
                "-s -w -X {variable}={version} -X {prefix}gitMajor={major} -X {prefix}gitMinor={minor}"
            )
        }
    }

    fn compile(&self, source: &Path, output: &Path, log: &Path) -> Result<()> {
        let step = || format!("step build {}", self.name);
        eprintln!("building {} (later runs use the cached build)", self.name);
        let started = Instant::now();
        let mut target = output.to_path_buf();
        if let Some(name) = self.rename {
            target.push(name);
        }
        let child = go(source)
            .args([
                "build",
                "-v",
                "-trimpath",
                // No debug data: a tenth of the compile time.
                "-gcflags",
                COMPILER_FLAGS,
                "-tags",
                self.tags,
                "-ldflags",
                &self.ldflags(),
                "-o",
            ])
            .arg(&target)
            .arg("tool")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: start go: is Go installed?", step()))?;
        let success = self.follow(child, started, log)?;
        if !success {
            bail!("{} failed, see {}", step(), log.display());
        }
        eprintln!("built {} in {} s", self.name, started.elapsed().as_secs());
        Ok(())
    }

    /// Prints progress until the build ends or its deadline is over; returns whether it succeeded.
    fn follow(&self, mut child: Child, started: Instant, log: &Path) -> Result<bool> {
        let stderr = child.stderr.take().context("go has no stderr")?;
        let (lines, received) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            BufReader::new(stderr)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| lines.send(line))
        });
        let mut log_file =
            File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut done = 0;
        let mut reported = Instant::now();
        loop {
            match received.recv_timeout(PROGRESS_INTERVAL) {
                Ok(line) => {
                    writeln!(log_file, "{line}")?;
                    done += usize::from(!line.starts_with("go: "));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if started.elapsed() > BUILD_DEADLINE {
                child.kill()?;
                child.wait()?;
                bail!(
                    "step build {} took longer than {} minutes, see {}",
                    self.name,
                    BUILD_DEADLINE.as_secs() / 60,
                    log.display()
                );
            }
            if reported.elapsed() >= PROGRESS_INTERVAL {
                reported = Instant::now();
                eprintln!(
                    "  {}: {done} packages compiled, {} s",
                    self.name,
                    started.elapsed().as_secs()
                );
            }
        }
        let _ = reader.join();
        Ok(child.wait()?.success())
    }
}
