//! promtool, from Debian's package `prometheus`, which is not installed: it would start a server.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cluster::home::Home;

const PACKAGE: &str = "prometheus";

/// Extracts promtool if it is missing; returns its directory.
pub(crate) fn extract(home: &Home) -> Result<PathBuf> {
    let done = home.bin().join("promtool");
    if done.is_dir() {
        return Ok(done);
    }
    eprintln!("downloading Debian's package {PACKAGE} for promtool (once)");
    let directory = home
        .bin()
        .join(format!("building-promtool-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let run = |program: &str, arguments: &[&str]| -> Result<bool> {
        let status = Command::new("timeout")
            .args(["5m", program])
            .args(arguments)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        Ok(status
            .with_context(|| format!("start {program}"))?
            .success())
    };
    // The package lists may be missing or old.
    if !run("apt-get", &["download", PACKAGE])? {
        run("apt-get", &["-qq", "update"])?;
        let downloaded = run("apt-get", &["download", PACKAGE])?;
        ensure!(
            downloaded,
            "step promtool: apt-get download {PACKAGE} failed"
        );
    }
    let extracted = run("sh", &["-c", &format!("dpkg-deb -x {PACKAGE}_*.deb .")])?;
    ensure!(extracted, "step promtool: dpkg-deb failed");
    fs::rename(directory.join("usr/bin"), &done)
        // Another process may have finished first.
        .or_else(|error| if done.is_dir() { Ok(()) } else { Err(error) })?;
    fs::remove_dir_all(&directory)?;
    Ok(done)
}
