//! What the kernel says of a process.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use wfe_tests::system::memory_kib;

/// `USER_HZ`: the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time so far, of all threads.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may have spaces.
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks =
        |index: usize| -> Result<u64> { Ok(fields.get(index).context("a field")?.parse()?) };
    let (user, system) = (ticks(11)?, ticks(12)?);
    Ok(Duration::from_millis(
        (user + system) * 1_000 / TICKS_PER_SECOND,
    ))
}

/// Resident memory now, in KiB.
pub fn memory(pid: u32) -> Result<u64> {
    memory_kib(pid, "VmRSS:")
}

/// The part of it that is not pages of the program's file, in KiB.
pub fn anonymous_memory(pid: u32) -> Result<u64> {
    memory_kib(pid, "RssAnon:")
}

/// The machine, in a few words.
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
