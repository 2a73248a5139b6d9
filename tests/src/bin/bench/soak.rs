//! Half an hour of load while the leader is killed again and again: nothing is lost, nothing runs
//! twice, and memory does not grow.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join;
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::system::{Program, Script, System, install_crd};
use wfe_tests::{Cluster, wait};

use crate::process::{machine, mebibytes, memory};

const PER_SECOND: u32 = 3;
const KILL_EVERY: Duration = Duration::from_secs(30);
const LED_WITHIN: Duration = Duration::from_mins(1);
const DRAINED_WITHIN: Duration = Duration::from_mins(5);
const EVENTS: usize = 4;
/// From then on as many objects come as go.
const SETTLED: Duration = Duration::from_mins(5);

/// Memory of a leader just before it was killed.
struct Sample {
    at: Duration,
    kibibytes: u64,
}

/// Runs for `lasting`, and prints what was seen.
pub async fn run(lasting: Duration) -> Result<()> {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await?;
    let workflow = Script::of("soak", format!("r.io/soak@sha256:{}", "9".repeat(64)), "");
    let mut system = System::install(&cluster, "soak", &[&workflow]).await?;
    system.elect_leader().await?;
    system.start_data_storage().await?;
    system.expire_after("1m").await?;
    let flags = [
        "--log-filter=info",
        "--retention=0s",
        "--cooldown=0s",
        "--backoff-max=1m",
        "--data-storage-timeout=3s",
    ];
    system.controller_flags.extend(flags.map(str::to_owned));
    let node = FakeNode::start(&system.execution, |_| Ending::Success);
    println!("{} minutes on {}", lasting.as_secs() / 60, machine()?);

    let uids = Mutex::new(HashMap::new());
    let end = Instant::now() + lasting;
    let creating = create(&system, &workflow, end, &uids);
    let killing = kill_leaders(&system, end);
    // The last leader is alive and delivers the rest.
    let ((), (samples, alive)) = try_join(creating, killing).await?;
    let uids = uids.into_inner();
    let names: Vec<_> = uids.keys().cloned().collect();
    until_delivered(&system, &names).await?;
    let trails = system.storage()?.trails()?;
    for (name, uid) in &uids {
        let events = trails.get(name).map_or(0, Vec::len);
        ensure!(events == EVENTS, "{name} has {events} audit events");
        let started = node.started_for(uid);
        ensure!(started == 1, "{name} has run {started} times");
    }
    println!(
        "{} executions, {} leaders killed: each has run once, and its trail of {EVENTS} events is complete",
        names.len(),
        samples.len()
    );
    describe(&samples);
    drop(alive);
    Ok(())
}

/// Creates executions at a steady rate.
async fn create(
    system: &System,
    workflow: &Script,
    end: Instant,
    uids: &Mutex<HashMap<String, String>>,
) -> Result<()> {
    let mut ticks = interval(Duration::from_secs(1) / PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0.. {
        ticks.tick().await;
        if Instant::now() >= end {
            break;
        }
        let name = format!("soak-{number}");
        let created = system.create(workflow, &name, &json!({})).await?;
        uids.lock().insert(name, created.uid().unwrap_or_default());
    }
    Ok(())
}

/// Kills the leader again and again, and starts another process each time; returns the memory of each
/// leader, and the process that is left.
async fn kill_leaders(system: &System, end: Instant) -> Result<(Vec<Sample>, Vec<Program>)> {
    let began = Instant::now();
    let (mut programs, mut samples) = (Vec::new(), Vec::new());
    for number in 0..2 {
        programs.push((number, system.launch_controller_number(number).await?));
    }
    let mut ticks = interval(KILL_EVERY);
    ticks.tick().await;
    while Instant::now() + KILL_EVERY < end {
        ticks.tick().await;
        let pid = leader(system).await?;
        let is_leader = |it: &(usize, Program)| it.1.pid().ok() == Some(pid);
        let index = programs.iter().position(is_leader);
        let (number, program) = programs.swap_remove(index.context("an unknown leader")?);
        samples.push(Sample {
            at: began.elapsed(),
            kibibytes: memory(pid)?,
        });
        program.kill().await?;
        programs.push((number, system.launch_controller_number(number).await?));
    }
    Ok((samples, programs.into_iter().map(|(_, it)| it).collect()))
}

/// The process id in the identity of the leader whose Lease is valid.
async fn leader(system: &System) -> Result<u32> {
    let leases = system.programs.api::<Lease>();
    let identity = |lease: &Lease| {
        let holder = lease.spec.as_ref()?.holder_identity.clone()?;
        holder.split('_').nth(1)?.parse::<u32>().ok()
    };
    let alive = |lease: &Lease| {
        identity(lease).is_some_and(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists())
    };
    let lease = wait::until(&leases, "wfe-controller", "a leader", LED_WITHIN, alive).await?;
    identity(&lease).context("no identity")
}

/// Waits until Data Storage has the whole trail of every execution.
async fn until_delivered(system: &System, names: &[String]) -> Result<()> {
    let polling = async {
        loop {
            let trails = system.storage()?.trails()?;
            let complete = |name: &String| trails.get(name).is_some_and(|it| it.len() >= EVENTS);
            if names.iter().all(complete) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(DRAINED_WITHIN, polling)
        .await
        .context("the trails are not complete")?
}

/// Prints the memory of the leaders, and its slope (least squares) since [`SETTLED`].
#[expect(clippy::cast_precision_loss, reason = "rounded for display")]
fn describe(samples: &[Sample]) {
    let first = samples.partition_point(|it| it.at < SETTLED);
    let samples = samples.get(first..).unwrap_or_default();
    let number = samples.len().max(1) as f64;
    let points = samples
        .iter()
        .map(|it| (it.at.as_secs_f64() / 3_600.0, mebibytes(it.kibibytes)));
    let points: Vec<_> = points.collect();
    let mean_x = points.iter().map(|it| it.0).sum::<f64>() / number;
    let mean_y = points.iter().map(|it| it.1).sum::<f64>() / number;
    let covariance = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum::<f64>();
    let variance = points
        .iter()
        .map(|(x, _)| (x - mean_x).powi(2))
        .sum::<f64>();
    let least = points.iter().map(|it| it.1).fold(f64::INFINITY, f64::min);
    let most = points.iter().map(|it| it.1).fold(0.0, f64::max);
    println!(
        "memory of a leader just before it was killed, from minute {} on: {mean_y:.1} MiB on average, {least:.1} to {most:.1}; slope {:.2} MiB per hour",
        SETTLED.as_secs() / 60,
        covariance / variance.max(f64::EPSILON)
    );
}
