//! Measures what an execution costs the controller: its CPU time, its memory, and how many
//! executions it completes per second. Kubelet and Job controller are fakes, whose CPU time is not
//! the controller's.

use std::time::Duration;

use anyhow::Result;
use futures::future::try_join_all;
use serde_json::json;
use tokio::time::Instant;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::system::{Script, System, install_crd};

use super::process::{anonymous_memory, machine, mebibytes, memory, processor_time};

const EXECUTIONS: usize = 400;
const WARM_UP: usize = 40;
const AT_A_TIME: usize = 8;

/// Measures and prints everything.
pub async fn measure() -> Result<()> {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await?;
    let image = format!("r.io/workflows/bench:v1@sha256:{}", "6".repeat(64));
    let workflow = Script::of("bench", image, "");
    let mut system = System::install(&cluster, "bench", &[&workflow]).await?;
    // The default log level: tests run the controller with debug.
    system.controller_flags.push("--log-filter=info".to_owned());
    let controller = system.launch_controller().await?;
    let pid = controller.pid()?;
    println!("wfe-controller on {}, fakes beside it\n", machine()?);
    println!(
        "memory idle: {:.1} MiB, {:.1} MiB without the pages of its binary",
        mebibytes(memory(pid)?),
        mebibytes(anonymous_memory(pid)?)
    );
    let _node = FakeNode::start(&system.execution, |_| Ending::Success);
    run(&system, &workflow, "warm-up", WARM_UP).await?;
    let (started, before) = (Instant::now(), processor_time(pid)?);
    run(&system, &workflow, "bench", EXECUTIONS).await?;
    let (took, processor) = (
        started.elapsed(),
        processor_time(pid)?.saturating_sub(before),
    );
    println!(
        "{EXECUTIONS} executions, {AT_A_TIME} at a time: {:.1} ms of CPU per execution, {:.0} executions/s, memory {:.1} MiB",
        per_execution(processor),
        1e3 / per_execution(took),
        mebibytes(memory(pid)?)
    );
    Ok(())
}

/// Milliseconds per execution.
#[expect(clippy::cast_precision_loss, reason = "rounded for display")]
fn per_execution(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3 / EXECUTIONS as f64
}

/// Runs `number` executions to their end, each on its own target.
async fn run(system: &System, workflow: &Script, prefix: &str, number: usize) -> Result<()> {
    let runs = (0..AT_A_TIME).map(async |lane| {
        for index in (lane..number).step_by(AT_A_TIME) {
            let name = format!("{prefix}-{index}");
            system.create(workflow, &name, &json!({})).await?;
            system.ended(&name).await?;
            system
                .until(&name, "AuditRecorded", "True/AuditSucceeded")
                .await?;
        }
        anyhow::Ok(())
    });
    try_join_all(runs).await.map(drop)
}
