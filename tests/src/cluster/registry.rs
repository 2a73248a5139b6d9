//! The cluster's OCI registry, and images built from static binaries.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tar::{EntryType, Header};

use crate::cluster::bundle;
use crate::cluster::processes::Processes;

/// Platform of the images: that of this machine, whose binaries they contain.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/amd64"
};
const BUSYBOX: &str = "/bin/busybox";
const DEADLINE: Duration = Duration::from_secs(30);

/// Address of the registry of a node. The address is private, so that clients use plain HTTP
/// without configuration.
pub(crate) fn address(node: &str) -> String {
    format!("{node}:5000")
}

/// A registry to push images to.
#[derive(Clone, Debug)]
pub struct Registry {
    address: String,
    path: OsString,
}

/// An image to push: one layer of files, and an entrypoint.
#[derive(Debug, Default)]
pub struct Image {
    files: Vec<(PathBuf, Content)>,
    entrypoint: Vec<String>,
    base: Option<String>,
    user: Option<String>,
    labels: Vec<String>,
}

#[derive(Debug)]
enum Content {
    File(PathBuf),
    Text(String),
    Link(String),
    Directory,
}

impl Image {
    /// An empty image with a `/tmp`.
    pub fn scratch() -> Self {
        Self {
            files: vec![("tmp".into(), Content::Directory)],
            ..Self::default()
        }
    }

    /// An image on top of an image in the registry, given by name, as `busybox:1`.
    pub fn from(base: &str) -> Self {
        Self {
            base: Some(base.to_owned()),
            ..Self::default()
        }
    }

    /// Adds an executable file, copied from this machine.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, source: impl Into<PathBuf>) -> Self {
        self.files
            .push((relative(path), Content::File(source.into())));
        self
    }

    /// Adds an executable file with the given text.
    #[must_use]
    pub fn text(mut self, path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        self.files
            .push((relative(path), Content::Text(text.into())));
        self
    }

    /// Sets the entrypoint.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Sets the user.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Adds a label of the OCI specification, without its prefix.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels
            .push(format!("org.opencontainers.image.{name}={value}"));
        self
    }

    fn link(mut self, path: impl Into<PathBuf>, target: &str) -> Self {
        self.files
            .push((relative(path), Content::Link(target.to_owned())));
        self
    }

    /// Writes the layer reproducibly: the same files have the same digest.
    fn write_layer(&self, layer: &Path) -> Result<()> {
        let mut archive = tar::Builder::new(File::create(layer)?);
        for (path, content) in &self.files {
            let mut header = Header::new_gnu();
            header.set_mode(if matches!(content, Content::Directory) {
                0o1777
            } else {
                0o755
            });
            match content {
                Content::File(source) => {
                    let bytes =
                        fs::read(source).with_context(|| format!("read {}", source.display()))?;
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, path, bytes.as_slice())?;
                }
                Content::Text(text) => {
                    header.set_size(text.len() as u64);
                    archive.append_data(&mut header, path, text.as_bytes())?;
                }
                Content::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_size(0);
                    archive.append_link(&mut header, path, target)?;
                }
                Content::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_size(0);
                    archive.append_data(&mut header, path, std::io::empty())?;
                }
            }
        }
        archive.finish()?;
        Ok(())
    }
}

fn relative(path: impl Into<PathBuf>) -> PathBuf {
    let path = path.into();
    path.strip_prefix("/")
        .map(Path::to_path_buf)
        .unwrap_or(path)
}

impl Registry {
    pub(crate) async fn start(processes: &mut Processes, node: &str, run: &Path) -> Result<Self> {
        let address = address(node);
        let disk = run.join("registry");
        fs::create_dir_all(&disk)?;
        // The binary is crane, so the log file is crane.log.
        processes.start(
            "crane",
            [
                "registry",
                "serve",
                "--address",
                &address,
                "--disk",
                &disk.display().to_string(),
            ],
        )?;
        let probe = async || Ok(tokio::net::TcpStream::connect(&address).await.is_ok());
        processes
            .wait_until("registry answers", "crane", DEADLINE, probe)
            .await?;
        Ok(Self::with_path(&address, processes.path()))
    }

    /// A registry at `host:port`, reached with crane from the `PATH`.
    pub fn at(address: &str) -> Self {
        Self::with_path(address, std::env::var_os("PATH").unwrap_or_default())
    }

    /// As [`at`](Self::at), with crane from `path`.
    pub(crate) fn with_path(address: &str, path: OsString) -> Self {
        Self {
            address: address.to_owned(),
            path,
        }
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Pushes the images that every cluster has: `busybox:1`, and `pause:1` for pod sandboxes.
    pub fn push_base_images(&self) -> Result<()> {
        let applets = Command::new(BUSYBOX)
            .arg("--list")
            .output()
            .context("list busybox's applets")?;
        let users = "root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532::/tmp:/bin/sh\n";
        let busybox = Image::scratch()
            .file("bin/busybox", BUSYBOX)
            .text("etc/passwd", users);
        let busybox = String::from_utf8(applets.stdout)?
            .lines()
            .filter(|applet| *applet != "busybox")
            .fold(busybox, |image, applet| {
                image.link(format!("bin/{applet}"), "busybox")
            });
        self.push("busybox:1", &busybox.entrypoint(&["/bin/sh"]))?;
        let pause = Image::scratch().file("bin/busybox", BUSYBOX).entrypoint(&[
            "/bin/busybox",
            "sleep",
            "2147483647",
        ]);
        self.push("pause:1", &pause)?;
        Ok(())
    }

    /// Pushes an image as `name`; returns its reference by digest, `host:port/name@sha256:…`.
    pub fn push(&self, name: &str, image: &Image) -> Result<String> {
        let directory = tempfile::tempdir()?;
        let layer = directory.path().join("layer.tar");
        image.write_layer(&layer)?;
        let target = format!("{}/{name}", self.address);
        let mut append: Vec<OsString> = ["append", "-t", &target, "-f"].map(Into::into).to_vec();
        append.push(layer.into());
        if let Some(base) = &image.base {
            append.extend(["-b".into(), format!("{}/{base}", self.address).into()]);
        }
        self.crane(&append)?;
        let entrypoint = image.entrypoint.join(",");
        let mut mutate = vec![
            "mutate",
            &target,
            "--set-platform",
            PLATFORM,
            "--env",
            "PATH=/bin",
            "-t",
            &target,
        ];
        if !image.entrypoint.is_empty() {
            mutate.extend(["--entrypoint", &entrypoint]);
        }
        if let Some(user) = &image.user {
            mutate.extend(["--user", user]);
        }
        for label in &image.labels {
            mutate.extend(["--label", label]);
        }
        self.crane(&mutate.into_iter().map(Into::into).collect::<Vec<_>>())?;
        self.digest(name)
    }

    /// The reference by digest of an image that was pushed as `name`.
    pub(crate) fn digest(&self, name: &str) -> Result<String> {
        let target = format!("{}/{name}", self.address);
        let digest = self.crane(&["digest".into(), target.clone().into()])?;
        let (name, _tag) = target
            .rsplit_once(':')
            .context("the image name has no tag")?;
        ensure!(
            digest.starts_with("sha256:"),
            "crane digest printed {digest:?}"
        );
        Ok(format!("{name}@{digest}"))
    }

    /// Pushes a Tekton bundle as `name`: an image with a layer for each object. Returns its reference
    /// by digest.
    pub fn push_bundle(&self, name: &str, objects: &[Value]) -> Result<String> {
        let directory = tempfile::tempdir()?;
        bundle::write(directory.path(), objects)?;
        let target = format!("{}/{name}", self.address);
        // Prints the reference by digest.
        self.crane(&["push".into(), directory.path().into(), target.into()])
    }

    fn crane(&self, arguments: &[OsString]) -> Result<String> {
        let output = Command::new("crane")
            .args(arguments)
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .output()
            .context("start crane")?;
        if !output.status.success() {
            bail!(
                "crane {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}
