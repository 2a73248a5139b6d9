//! SIGKILL for one program of the platform with all its replicas, chosen by a seed.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::timeline::Hop;

/// Beginnings of the command lines of the programs that may be killed.
const VICTIMS: [&str; 7] = [
    "/wfe-platform gateway",
    "/wfe-platform signal-processing",
    "/wfe-platform holmesgpt-api",
    "/wfe-platform data-storage",
    "/wfe-platform notification",
    "/wfe-controller",
    "/wfe-webhook",
];
/// When it may be killed: as soon as the hop is seen.
const MOMENTS: [Hop; 10] = [
    Hop::Killed,
    Hop::Requested,
    Hop::Classified,
    Hop::Investigating,
    Hop::Selected,
    Hop::Admitted,
    Hop::Running,
    Hop::Healthy,
    Hop::Finished,
    Hop::Ended,
];

/// The program to kill, and when.
pub fn choose(seed: usize) -> (&'static str, Hop) {
    let moment = seed / VICTIMS.len() % MOMENTS.len();
    (VICTIMS[seed % VICTIMS.len()], MOMENTS[moment])
}

/// Kills every process of the cluster whose command line begins like this.
pub fn strike(victim: &str) {
    let mut struck = 0;
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // Processes of this machine have longer paths: these are files in the root of an image.
        if command.starts_with(victim) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killed");
            struck += 1;
        }
    }
    assert!(struck > 0, "{victim} runs");
}
