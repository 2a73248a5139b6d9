//! CPU time and memory of a process, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use wfe_tests::system::memory_kib;

/// `USER_HZ`, the unit of CPU times in `/proc`.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of all threads so far.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The process name, in parentheses, may contain spaces.
    let (_, fields) = stat.rsplit_once(')').context("no process name")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks =
        |index: usize| -> Result<u64> { Ok(fields.get(index).context("missing field")?.parse()?) };
    let (user, system) = (ticks(11)?, ticks(12)?);
    Ok(Duration::from_millis(
        (user + system) * 1_000 / TICKS_PER_SECOND,
    ))
}

/// Resident memory, in KiB.
pub fn memory(pid: u32) -> Result<u64> {
    memory_kib(pid, "VmRSS:")
}

/// Resident memory without pages of files, such as the binary, in KiB.
pub fn anonymous_memory(pid: u32) -> Result<u64> {
    memory_kib(pid, "RssAnon:")
}

/// Converts KiB to MiB, for display.
#[expect(clippy::cast_precision_loss, reason = "rounded for display")]
pub fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1_024.0
}

/// CPUs and kernel of this machine.
pub fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let models = cpus
        .lines()
        .filter_map(|line| line.strip_prefix("model name"));
    let models: Vec<_> = models.filter_map(|line| line.split_once(": ")).collect();
    let model = models.first().map_or("unknown", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!(
        "{} x {model}, Linux {}",
        models.len(),
        kernel.trim()
    ))
}
