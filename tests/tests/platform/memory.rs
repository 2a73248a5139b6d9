//! What the whole cluster uses.

use std::collections::BTreeMap;
use std::fs;

/// 4 GB: what the platform must fit in.
const LIMIT: u64 = 4_000_000_000;

/// Prints the proportional memory of every process, by program, and checks the sum. This process is not
/// part of the cluster.
pub fn check() {
    let own = std::process::id().to_string();
    let mut programs = BTreeMap::<String, (usize, u64)>::new();
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = process.file_name();
        let pid = name.to_string_lossy();
        if pid == own || !pid.bytes().all(|it| it.is_ascii_digit()) {
            continue;
        }
        let Ok(rollup) = fs::read_to_string(process.path().join("smaps_rollup")) else {
            // It has ended, or is a thread of the kernel.
            continue;
        };
        let pss = rollup.lines().find_map(|it| it.strip_prefix("Pss:"));
        let pss = pss.and_then(|it| it.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let mut words = command.split('\0');
        let program = words
            .next()
            .unwrap_or_default()
            .rsplit('/')
            .next()
            .unwrap_or_default();
        let service = words.next().filter(|_| program == "wfe-platform");
        let program = service.map_or(program.to_owned(), |it| format!("{program} {it}"));
        let (count, sum) = programs.entry(program).or_default();
        *count += 1;
        *sum += pss.unwrap_or_default() * 1024;
    }
    let mut by_size: Vec<_> = programs.iter().collect();
    by_size.sort_by_key(|(_, (_, sum))| std::cmp::Reverse(*sum));
    println!("memory of the cluster (PSS):");
    for (program, (count, sum)) in by_size {
        println!("{:8.1} MB  {count} x {program}", megabytes(*sum));
    }
    let total: u64 = programs.values().map(|(_, sum)| sum).sum();
    println!("{:8.1} MB  in all", megabytes(total));
    assert!(total > 100_000_000, "the processes of the cluster are seen");
    assert!(total < LIMIT, "{total} bytes are 4 GB or more");
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
