//! What the pods use, as the node sees it.

use std::fs;
use std::path::Path;

/// Prints the resident memory of each of our processes.
pub fn print_memory(when: &str) {
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(program) = fs::read_link(process.path().join("exe")) else {
            continue;
        };
        let Some(name) = program.file_name().and_then(|it| it.to_str()) else {
            continue;
        };
        if program.parent() == Some(Path::new("/")) && name.starts_with("wfe-") {
            let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
            let line = |it: &&str| it.starts_with("VmRSS") || it.starts_with("RssAnon");
            let memory: Vec<_> = status.lines().filter(line).collect();
            println!(
                "          {when}: {name} {}",
                memory.join(", ").replace('\t', " ")
            );
        }
    }
}
