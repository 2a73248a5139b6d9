//! Measures the webhook alone, and creates through the API server with and without the webhook.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::time::Instant;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::Cluster;
use wfe_tests::system::{Script, System, dry_run, install_crd};

use super::body::Request;
use super::load::{Pace, load};
use super::process::{anonymous_memory, machine, mebibytes, memory, processor_time};
use super::report::{quantiles, table};

const CONNECTIONS: usize = 16;
const TIME: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(2);
const SIZES: [(&str, usize); 2] = [("2 KB", 2 << 10), ("18 KB", 18 << 10)];
const COLD_STARTS: usize = 9;
const CREATES: usize = 2_000;
const CREATORS: usize = 4;
const VALIDATE: &str = "/validate-workflowexecution";
const MUTATE: &str = "/mutate-workflowexecution";

/// A workflow for which the webhook checks everything: parameters of each type, Secrets, a
/// ConfigMap.
fn workflow() -> Script {
    let image = format!("r.io/workflows/bench:v1@sha256:{}", "6".repeat(64));
    Script::of(
        "bench",
        image,
        "dependencies: {secrets: [{name: token}, {name: registry}], configMaps: [{name: limits}]}
parameters:
- {name: REPLICAS, type: integer, required: true, minimum: 1, maximum: 10}
- {name: MEMORY_LIMIT, type: string, pattern: '^[1-9][0-9]{0,4}Mi$'}
- {name: MODE, type: string, enum: [safe, fast]}
- {name: FORCE, type: boolean}
- {name: RATIO, type: float, minimum: 0, maximum: 1}
- {name: NODES, type: array}
- {name: NOTE, type: string, dependsOn: [MODE]}
- {name: MORE, type: string}
- {name: STILL_MORE, type: string}
",
    )
}

/// A valid WorkflowExecution; `filling` sets its size.
fn request(workflow: &Script, namespace: &str, filling: &str) -> WorkflowExecution {
    let (first, rest) = filling.split_at(filling.len().min(8_000));
    let (second, third) = rest.split_at(rest.len().min(8_000));
    let parameters = json!({
        "REPLICAS": "3", "MEMORY_LIMIT": "512Mi", "MODE": "safe", "FORCE": "false", "RATIO": "0.5",
        "NODES": "[\"a\",\"b\"]", "NOTE": first, "MORE": second, "STILL_MORE": third,
    });
    let mut request = workflow.request(
        "bench",
        &json!({
            "parameters": parameters, "executionConfig": { "timeout": "10m" },
            "remediationRequestRef": { "name": "rr-bench" },
        }),
    );
    request.metadata.namespace = Some(namespace.to_owned());
    request
}

/// Measures and prints everything.
pub async fn measure() -> Result<()> {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await?;
    let workflow = workflow();
    let mut system = System::install(&cluster, "bench", &[&workflow]).await?;
    for name in ["token", "registry"] {
        system.add_secret(name, json!({ "a": "b" })).await?;
    }
    system.add_config_map("limits", json!({ "a": "b" })).await?;
    println!(
        "wfe-webhook on {}, load from one process beside it\n",
        machine()?
    );

    let mut starts = Vec::new();
    // The default log level: tests run the webhook with debug.
    system.webhook_flags.push("--log-filter=info".to_owned());
    for _ in 0..COLD_STARTS {
        system.start_webhook().await?;
        let webhook = system.webhook.as_ref().context("no webhook runs")?;
        starts.push(webhook.ready_after());
        if starts.len() < COLD_STARTS {
            system.remove_webhook().await?;
        }
    }
    starts.sort();
    let median = starts.get(COLD_STARTS / 2).context("no starts")?;
    println!(
        "cold start to ready (median of {COLD_STARTS}): {} ms",
        median.as_millis()
    );
    let pid = system.webhook.as_ref().context("no webhook runs")?.pid()?;
    println!(
        "memory idle: {:.1} MiB, {:.1} MiB without the pages of its binary\n",
        mebibytes(memory(pid)?),
        mebibytes(anonymous_memory(pid)?)
    );

    measure_reviews(&system, &workflow, pid).await?;
    measure_creates(&mut system, &workflow, pid).await
}

async fn measure_reviews(system: &System, workflow: &Script, pid: u32) -> Result<()> {
    let client = system.webhook_client()?;
    let namespace = system.namespace.name();
    let mut table = table(&[
        "path",
        "review",
        "load",
        "reviews/s",
        "p50",
        "p99",
        "p99.9",
        "CPU per 1,000",
        "handler p99",
        "client",
        "memory",
    ]);
    for (path, label) in [(VALIDATE, "validate"), (MUTATE, "mutate")] {
        for (size_label, size) in SIZES {
            let body = Request::new(path, size, |filling| request(workflow, namespace, filling))?;
            load(&client, &body, CONNECTIONS, Pace::Saturation, WARM_UP).await?;
            for (pace, pace_label) in [
                (Pace::PerSecond(1_000), "1,000/s"),
                (Pace::PerSecond(5_000), "5,000/s"),
                (Pace::Saturation, "saturation"),
            ] {
                let handled_before = handled(system, label).await?;
                let (before, own) = (processor_time(pid)?, processor_time(std::process::id())?);
                let outcome = load(&client, &body, CONNECTIONS, pace, TIME).await?;
                let processor = processor_time(pid)?.saturating_sub(before);
                let own = processor_time(std::process::id())?.saturating_sub(own);
                #[expect(clippy::cast_precision_loss, reason = "rounded for display")]
                let reviews = outcome.latencies.len() as f64;
                let mut row = vec![
                    label.to_owned(),
                    size_label.to_owned(),
                    pace_label.to_owned(),
                    format!("{:.0}", reviews / outcome.took.as_secs_f64()),
                ];
                row.extend(quantiles(&outcome.latencies));
                row.push(format!("{:.0} ms", processor.as_secs_f64() * 1e6 / reviews));
                let handled_after = handled(system, label).await?;
                row.push(p99(&handled_before, &handled_after).context("no reviews")?);
                let share = own.as_secs_f64() / outcome.took.as_secs_f64();
                row.push(format!("{:.0} %", share * 100.0));
                row.push(format!("{:.1} MiB", mebibytes(memory(pid)?)));
                table.add_row(row);
            }
        }
    }
    println!(
        "{CONNECTIONS} connections (HTTP/1.1, TLS 1.3), {} s each; CPU is the webhook's, client is the load generator's share of one core\n\n{table}\n",
        TIME.as_secs()
    );
    Ok(())
}

/// Buckets of the webhook's histogram of handler time: upper bound in seconds, cumulative count.
async fn handled(system: &System, operation: &str) -> Result<Vec<(f64, u64)>> {
    let label = format!(",operation=\"{operation}\"");
    let metrics = system.webhook_metrics().await?;
    let buckets = metrics.lines().filter_map(|line| {
        let (bound, count) = line
            .strip_prefix("wfe_webhook_review_duration_seconds_bucket{le=\"")?
            .split_once("} ")?;
        let bound = bound.strip_suffix(&label)?.trim_matches('"');
        Some((
            bound.replace("+Inf", "inf").parse().ok()?,
            count.parse().ok()?,
        ))
    });
    Ok(buckets.collect())
}

/// Upper bound of the bucket with the 99th percentile of the reviews between two samples.
fn p99(before: &[(f64, u64)], after: &[(f64, u64)]) -> Option<String> {
    let counts = after.iter().enumerate().map(|(index, (bound, count))| {
        let earlier = before.get(index).map_or(0, |(_, count)| *count);
        (bound, count - earlier)
    });
    let (_, all) = counts.clone().next_back()?;
    let (bound, _) = counts
        .into_iter()
        .find(|(_, count)| count * 100 >= all * 99)?;
    Some(format!("<= {} ms", bound * 1e3))
}

/// Measures dry-run creates through the API server, with the webhooks and without.
async fn measure_creates(system: &mut System, workflow: &Script, pid: u32) -> Result<()> {
    let mut table = table(&[
        "dry-run create through the API server",
        "object",
        "p50",
        "p99",
        "p99.9",
        "creates/s",
        "webhook's CPU per create",
    ]);
    for with in [true, false] {
        if !with {
            system.delete_webhook_configurations().await?;
        }
        for (size_label, filling) in [("2 KB", 600), ("18 KB", 16_800)] {
            let wfe = request(workflow, system.namespace.name(), &"x".repeat(filling));
            create_all(system, &wfe, CREATES / 10).await?;
            let (started, before) = (Instant::now(), processor_time(pid)?);
            let latencies = create_all(system, &wfe, CREATES).await?;
            let processor = processor_time(pid)?.saturating_sub(before);
            #[expect(clippy::cast_precision_loss, reason = "rounded for display")]
            let creates = latencies.len() as f64;
            let label = if with {
                "with both webhooks"
            } else {
                "without"
            };
            let mut row = vec![label.to_owned(), size_label.to_owned()];
            row.extend(quantiles(&latencies));
            row.push(format!("{:.0}", creates / started.elapsed().as_secs_f64()));
            row.push(format!("{:.2} ms", processor.as_secs_f64() * 1e3 / creates));
            table.add_row(row);
        }
    }
    println!("{CREATES} creates, {CREATORS} at a time\n\n{table}\n");
    let webhook = system.webhook.as_ref().context("no webhook runs")?;
    let peak = webhook.peak_memory()?;
    println!("memory at its peak: {:.1} MiB", mebibytes(peak >> 10));
    Ok(())
}

async fn create_all(
    system: &System,
    wfe: &WorkflowExecution,
    number: usize,
) -> Result<Histogram<u64>> {
    let api = system.namespace.api::<WorkflowExecution>();
    let creators = (0..CREATORS).map(async |_| {
        let mut latencies = Histogram::<u64>::new(3)?;
        for _ in 0..number / CREATORS {
            let started = Instant::now();
            api.create(&dry_run(), wfe).await?;
            latencies.record(u64::try_from(started.elapsed().as_nanos())?)?;
        }
        anyhow::Ok(latencies)
    });
    let mut all = Histogram::new(3)?;
    for latencies in try_join_all(creators).await? {
        all.add(latencies)?;
    }
    Ok(all)
}
