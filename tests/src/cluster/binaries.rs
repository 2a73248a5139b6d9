//! Builds Kubernetes, etcd, containerd, crane, Tekton, Helm and cert-manager from the Go modules pinned in
//! `modules/`.
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

/// Copies a directory of a Go module.
fn copy_directory(source: &Path, (module, directory): (&str, &str), output: &Path) -> Result<()> {
    let downloaded = go(source).args(["mod", "download", module]).status();
    let downloaded = downloaded.context("start go")?;
    ensure!(downloaded.success(), "go mod download {module} failed");
    let listed = go(source)
        .args(["list", "-m", "-f", "{{.Dir}}", module])
        .output()
        .context("start go")?;
    let root = String::from_utf8(listed.stdout)?;
    let copied = Command::new("cp")
        .args(["-r", "--no-preserve=mode"])
        .arg(Path::new(root.trim()).join(directory))
        .arg(output)
        .status()
        .context("start cp")?;
    ensure!(copied.success(), "copy {directory} of {module}: cp failed");
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
    /// A module and the directory of it that is kept beside the binaries.
    files: Option<(&'static str, &'static str)>,
    /// A program of our own, instead of those that `go.mod` names as tools.
    main: Option<&'static str>,
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
    module!("etcd", rename: Some("etcd"), tags: "", version: None, extent: Extent::ApiServer, files: None, main: None),
    module!("kubernetes", rename: None, tags: "", extent: Extent::ApiServer, files: None, main: None,
        version: Some(("k8s.io/kubernetes", "k8s.io/component-base/version.gitVersion"))),
    module!("containerd", rename: None, extent: Extent::Node, files: None, main: None,
        tags: "no_btrfs no_devmapper no_zfs no_aufs no_dynamic_plugins",
        version: Some(("github.com/containerd/containerd/v2", "github.com/containerd/containerd/v2/version.Version"))),
    CRANE,
];

const CRANE: Module = module!("crane", rename: None, tags: "", version: None, extent: Extent::Node, files: None, main: None);

/// Runs in pods: its binaries become images.
const TEKTON: Module = module!("tekton", rename: None, tags: "", version: None, extent: Extent::Tekton,
    files: Some(("github.com/tektoncd/pipeline", "config")), main: None);

/// What the tests of the chart need.
const TOOLS: [Module; 5] = [
    module!("helm", rename: None, tags: "", version: Some(("helm.sh/helm/v4", "helm.sh/helm/v4/internal/version.version")),
        extent: Extent::ApiServer, files: None, main: None),
    module!("helm-unittest", rename: None, tags: "", version: None, extent: Extent::ApiServer, files: None, main: None),
    // Documentation and schema of the values.
    module!("helm-docs", rename: None, tags: "", version: None, extent: Extent::ApiServer, files: None, main: None),
    // Upstream's programs are modules of their own that the module proxy does not have.
    module!("cert-manager", rename: Some("cert-manager"), tags: "", version: None, extent: Extent::ApiServer,
        files: Some(("github.com/cert-manager/cert-manager", "deploy/crds")), main: Some(include_str!("modules/cert-manager/main.go"))),
    // Only its CRDs.
    module!("prometheus-operator", rename: None, tags: "", version: None, extent: Extent::ApiServer,
        files: Some(("github.com/prometheus-operator/prometheus-operator", "example/prometheus-operator-crd")), main: None),
];

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

/// Builds crane if it is missing; returns its directory.
pub(crate) fn build_crane(home: &Home) -> Result<PathBuf> {
    CRANE.build(home)
}

/// Builds what is missing of the tools for the chart; returns their directories.
pub(crate) fn build_tools(home: &Home) -> Result<Vec<PathBuf>> {
    TOOLS.iter().map(|module| module.build(home)).collect()
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
        if let Some(main) = self.main {
            fs::write(source.join("main.go"), main)?;
        }
        if self.main.is_some() || self.go_mod.contains("\ntool ") {
            let log = home.log().join(format!("build-{}.log", self.name));
            self.compile(&source, &output, &log)?;
        }
        if let Some(files) = self.files {
            copy_directory(&source, files, &output)?;
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
            self.main.unwrap_or_default(),
            self.files.map_or("", |(_, directory)| directory),
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
            .arg(if self.main.is_some() { "." } else { "tool" })
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
