//! Builds the images of both programs and pushes them to a registry: with docker or buildah from the
//! `Dockerfile`s where one of them runs and has the base image of the compile stage, else from binaries that
//! are built here.

use std::env::consts::ARCH;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::registry::{Image, Registry};
use crate::folder::workspace;

/// The programs; the image is `kubernaut/NAME`.
pub const PROGRAMS: [&str; 2] = ["wfe-controller", "wfe-webhook"];
/// The stand-ins around them.
const STAND_INS: &str = "wfe-platform";
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The user of both images.
const USER: &str = "65532:65532";

/// How the programs are compiled.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Profile {
    /// As they are released.
    Release,
    /// Quickly, for tests.
    Dev,
}

/// Builds and pushes `kubernaut/wfe-controller:TAG` and `kubernaut/wfe-webhook:TAG`, and with `stand_ins`
/// `kubernaut/wfe-platform:TAG`; prints which way was taken, and returns the references by digest.
pub(crate) fn build_and_push(
    registry: &Registry,
    tag: &str,
    profile: Profile,
    stand_ins: bool,
) -> Result<Vec<String>> {
    let builder = match profile {
        Profile::Release if !stand_ins => builder(),
        _ => None,
    };
    if let Some(builder) = builder {
        let built: Result<()> = PROGRAMS.iter().try_for_each(|program| {
            let image = format!("{}/{}", registry.address(), name(program, tag));
            build_with(builder, program, &image)
        });
        match built {
            Ok(()) => {
                eprintln!("built with {builder} from the Dockerfiles");
                let digest = |program: &&str| registry.digest(&name(program, tag));
                return PROGRAMS.iter().map(digest).collect();
            }
            Err(error) => eprintln!("{error:#}; the images are made from binaries instead"),
        }
    } else if matches!(profile, Profile::Release) && !stand_ins {
        eprintln!("neither docker nor buildah runs here: the images are made from binaries");
    }
    let more = stand_ins.then_some(STAND_INS);
    let programs: Vec<_> = PROGRAMS.into_iter().chain(more).collect();
    let binaries = compile(profile, &programs)?;
    let push = |program: &&str| {
        let image = image(program, &binaries.join(program));
        registry.push(&name(program, tag), &image)
    };
    programs.iter().map(push).collect()
}

fn name(program: &str, tag: &str) -> String {
    format!("kubernaut/{program}:{tag}")
}

fn builder() -> Option<&'static str> {
    let runs = |builder: &&str| {
        let command = Command::new(builder)
            .arg("info")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        command.is_ok_and(|it| it.success())
    };
    ["docker", "buildah"].into_iter().find(runs)
}

fn build_with(builder: &str, program: &str, image: &str) -> Result<()> {
    let file = format!("Dockerfile.{}", program.trim_start_matches("wfe-"));
    let revision = format!("REVISION={}", revision());
    let version = concat!("VERSION=", env!("CARGO_PKG_VERSION"));
    let run = |arguments: &[&str]| {
        let status = Command::new(builder)
            .args(arguments)
            .current_dir(workspace())
            .status()
            .with_context(|| format!("start {builder}"))?;
        ensure!(status.success(), "{builder} {} failed", arguments.join(" "));
        Ok(())
    };
    let build = ["build", "-f", &file, "-t", image, "--build-arg", version];
    run(&[&build[..], &["--build-arg", &revision, "."]].concat())?;
    run(&["push", image])
}

/// Builds static binaries; returns their directory.
fn compile(profile: Profile, programs: &[&str]) -> Result<PathBuf> {
    let target = format!("{ARCH}-unknown-linux-gnu");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--locked", "--target", &target])
        .args(programs.iter().flat_map(|it| ["-p", it]))
        .current_dir(workspace())
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    let directory = match profile {
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
        Profile::Dev => "debug",
    };
    let status = cargo.status().context("start cargo")?;
    ensure!(status.success(), "cargo build failed");
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || workspace().join("target"),
        |directory| workspace().join(directory),
    );
    Ok(built.join(target).join(directory))
}

/// The final stage of the `Dockerfile`.
fn image(program: &str, binary: &Path) -> Image {
    let entrypoint = format!("/{program}");
    Image::scratch()
        .file(&entrypoint, binary)
        .file(CERTIFICATES, CERTIFICATES)
        .entrypoint(&[&entrypoint])
        .user(USER)
        .label("title", program)
        .label("licenses", "Apache-2.0")
        .label("version", env!("CARGO_PKG_VERSION"))
        .label("revision", &revision())
}

/// The commit.
fn revision() -> String {
    let git = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(workspace())
        .output();
    let commit = git.ok().filter(|it| it.status.success());
    let commit = commit.and_then(|it| String::from_utf8(it.stdout).ok());
    commit.map_or_else(|| "unknown".to_owned(), |it| it.trim().to_owned())
}

/// The registry at `address`, reached with crane from the PATH.
pub(crate) fn registry(address: &str, crane: &Path) -> Result<Registry> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(crane.to_owned()).chain(std::env::split_paths(&path));
    let path: OsString = std::env::join_paths(path)?;
    Ok(Registry::with_path(address, path))
}
