//! Measures both engines side by side: the time from the create of a WorkflowExecution to its
//! success, and the memory of what only engine `tekton` needs. Needs a cluster with Tekton.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::time::Instant;
use wfe_tests::Cluster;
use wfe_tests::system::{Script, System, Task, install_crd, pipeline};

use super::process::{machine, mebibytes, memory};
use super::report::table;

const RUNS: usize = 12;
/// Tekton's programs in its pods.
const TEKTON: [&str; 3] = ["/ko-app/controller", "/ko-app/webhook", "/ko-app/resolvers"];

/// Measures and prints everything.
pub async fn measure() -> Result<()> {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await?;
    let job = Script::push(&cluster, "bench-job", "true", "");
    let task = |name| Task::of(name, &cluster, &["true"]);
    let none = json!({});
    let one = pipeline(&cluster, "bench-one", &[task("one")], &none, "");
    let two = [task("one"), task("two")];
    let two = pipeline(&cluster, "bench-two", &two, &none, "");
    let mut system = System::install(&cluster, "bench", &[&job, &one, &two]).await?;
    system.controller_flags = vec!["--cooldown=0s".to_owned(), "--log-filter=info".to_owned()];
    system.start_webhook().await?;
    system.start_controller().await?;
    println!("wfe on {}, with one node of its own\n", machine()?);
    let mut table = table(&["engine", "what runs", "p50", "slowest"]);
    for (workflow, what) in [
        (&job, "one container"),
        (&one, "a pipeline of one task"),
        (&two, "a pipeline of two tasks"),
    ] {
        let times = run(&system, workflow).await?;
        let seconds = |it: u64| format!("{:.1} s", Duration::from_millis(it).as_secs_f64());
        table.add_row([
            workflow.engine.to_string(),
            what.to_owned(),
            seconds(times.value_at_quantile(0.5)),
            seconds(times.max()),
        ]);
    }
    println!(
        "{RUNS} executions each, one after another, created to Succeeded; images are on the node\n\n{table}\n"
    );
    let mut sum = 0;
    for program in TEKTON {
        let memory = memory(process(program)?)?;
        println!("memory of {program}: {:.0} MiB", mebibytes(memory));
        sum += memory;
    }
    println!("memory of Tekton: {:.0} MiB", mebibytes(sum));
    Ok(())
}

/// Milliseconds from create to success.
async fn run(system: &System, workflow: &Script) -> Result<Histogram<u64>> {
    let mut times = Histogram::new(3)?;
    for index in 0..=RUNS {
        let name = format!("{}-{index}", workflow.id);
        let started = Instant::now();
        system.create(workflow, &name, &json!({})).await?;
        system.until(&name, "Ready", "True/Ready").await?;
        // The first run fills caches.
        if index > 0 {
            times.record(u64::try_from(started.elapsed().as_millis())?)?;
        }
        system.ended(&name).await?;
    }
    Ok(times)
}

/// The process that runs this program.
fn process(program: &str) -> Result<u32> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|it| it.parse().ok()) else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.split(|byte| *byte == 0).next() == Some(program.as_bytes()) {
            return Ok(pid);
        }
    }
    None.with_context(|| format!("{program} does not run: has the cluster Tekton?"))
}
