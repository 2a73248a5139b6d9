//! Measures what executions cost the controller, and how fast it is. Kubelet and Job controller are
//! fakes, whose CPU time is not the controller's; they and the API server use the same cores.

mod floor;
mod observer;
mod usage;

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use futures::future::try_join;
use futures::{StreamExt, TryStreamExt, stream};
use kube::ResourceExt;
use kube::api::PostParams;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};
use wfe_model::FINALIZER;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::fakes::proxy::Weather;
use wfe_tests::system::{Program, Script, System, install_crd};

use super::process::{machine, mebibytes, memory};
use super::report::table;
use observer::{Observer, Times};
use usage::Usage;

const STEADY: usize = 50;
const PER_SECOND: u32 = 5;
const BURST: usize = 500;
const ENDED: usize = 10_000;
const RUNNING: usize = 1_000;
const PENDING: usize = 10_000;
const WAITING: usize = 500;
const LARGEST: usize = 1_000;
/// Requests that the load has open at the same time.
const CONCURRENCY: usize = 32;
/// Time in which nothing changes.
const QUIET: Duration = Duration::from_secs(30);
const DELAY: Duration = Duration::from_millis(5);

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Part {
    /// A steady load, then a burst.
    Load,
    /// Memory with many objects, and a time in which nothing changes.
    Memory,
    /// Many requests whose catalog is down.
    CatalogOutage,
    /// Many that wait for one target.
    OneTarget,
    /// An API server that takes longer.
    SlowApiServer,
    /// Requests of the largest size that the policies let in.
    Largest,
}

/// Measures and prints one part or everything.
pub async fn measure(only: Option<Part>) -> Result<()> {
    let cluster = Cluster::connect().await;
    install_crd(&cluster).await?;
    println!("wfe-controller on {}, fakes beside it\n", machine()?);
    let bench = Bench {
        cluster,
        workflow: Script::of(
            "bench",
            format!("r.io/workflows/bench:v1@sha256:{}", "6".repeat(64)),
            "",
        ),
    };
    for part in Part::value_variants() {
        if only.is_some_and(|it| it != *part) {
            continue;
        }
        match part {
            Part::Load => bench.load().await?,
            Part::Memory => bench.memory().await?,
            Part::CatalogOutage => bench.catalog_outage().await?,
            Part::OneTarget => bench.one_target().await?,
            Part::SlowApiServer => bench.slow_api_server().await?,
            Part::Largest => bench.largest().await?,
        }
    }
    Ok(())
}

struct Bench {
    cluster: Cluster,
    workflow: Script,
}

impl Bench {
    async fn system(&self, prefix: &str) -> Result<System> {
        self.system_with(prefix, &self.workflow).await
    }

    async fn system_with(&self, prefix: &str, workflow: &Script) -> Result<System> {
        let mut system = System::install(&self.cluster, prefix, &[workflow]).await?;
        // The default log level: tests run the controller with debug.
        let flags = ["--log-filter=info", "--cooldown=0s"];
        system.controller_flags.extend(flags.map(str::to_owned));
        Ok(system)
    }

    /// A steady load, then a burst.
    async fn load(&self) -> Result<()> {
        let mut system = self.system("bench").await?;
        system.elect_leader().await?;
        let controller = system.launch_controller().await?;
        let pid = controller.pid()?;
        println!("memory idle: {}", usage::describe_memory(pid)?);
        let _node = FakeNode::start(&system.execution, |_| Ending::Success);
        self.run(&system, "warm-up", 20, None).await?;
        let mut results = table(&[
            "load",
            "starts/s",
            "created -> Job p99",
            "notice p50",
            "p99",
            "CPU per execution",
            "requests",
            "memory after",
        ]);
        for (name, number, rate) in [("steady", STEADY, Some(PER_SECOND)), ("burst", BURST, None)] {
            let before = Usage::of(&system, pid).await?;
            let times = self.run(&system, name, number, rate).await?;
            let used = Usage::of(&system, pid).await?.since(&before);
            let label = rate.map_or_else(
                || format!("{number} at once"),
                |rate| format!("{number} at {rate}/s"),
            );
            results.add_row(vec![
                label,
                format!("{:.1}", times.starts_per_second()),
                times.start_latency(0.99),
                times.notice(0.5),
                times.notice(0.99),
                format!("{:.2} ms", used.cpu_per(number)),
                format!("{:.2}", used.requests_per(number)),
                usage::describe_memory(pid)?,
            ]);
        }
        println!("{results}\n");
        let before = Usage::of(&system, pid).await?;
        println!(
            "requests of the burst, by kind: {}\n",
            before.kinds(BURST + STEADY + 20)
        );
        let floor = floor::starts_per_second(&system, BURST, CONCURRENCY).await?;
        println!(
            "the same writes by a bare client, {CONCURRENCY} at a time: {floor:.1} starts/s\n"
        );
        end(controller).await
    }

    /// Many ended and many running ones, then a time in which nothing changes.
    async fn memory(&self) -> Result<()> {
        let system = self.system("bench-many").await?;
        let ended = (0..ENDED).map(|index| self.ended(&system, index));
        stream::iter(ended)
            .map(anyhow::Ok)
            .try_for_each_concurrent(CONCURRENCY, |it| it)
            .await?;
        let controller = system.launch_controller().await?;
        let pid = controller.pid()?;
        println!(
            "memory with {ENDED} ended: {}",
            usage::describe_memory(pid)?
        );
        let _node = FakeNode::start(&system.execution, |_| Ending::Never);
        let names: Vec<_> = (0..RUNNING)
            .map(|index| format!("running-{index}"))
            .collect();
        let (mut observer, spec) = (Observer::start(&system), json!({}));
        let created = names.iter().map(|name| self.create(&system, name, &spec));
        stream::iter(created)
            .map(anyhow::Ok)
            .try_for_each_concurrent(CONCURRENCY, |it| it)
            .await?;
        observer.until_running(&names).await?;
        println!(
            "memory with {RUNNING} running beside them: {}",
            usage::describe_memory(pid)?
        );
        let before = Usage::of(&system, pid).await?;
        tokio::time::sleep(QUIET).await;
        let used = Usage::of(&system, pid).await?.since(&before);
        println!(
            "{} s in which nothing changes: {:.0} requests ({}), {:.1} ms of CPU per second\n",
            QUIET.as_secs(),
            used.requests_per(1),
            used.kinds(1),
            used.cpu_per(1) / QUIET.as_secs_f64(),
        );
        end(controller).await
    }

    /// Many requests whose catalog does not answer, then does.
    async fn catalog_outage(&self) -> Result<()> {
        let system = self.system("bench-outage").await?;
        let controller = system.launch_controller().await?;
        let pid = controller.pid()?;
        let _node = FakeNode::start(&system.execution, |_| Ending::Success);
        system.hide_catalog()?;
        let names: Vec<_> = (0..PENDING)
            .map(|index| format!("outage-{index}"))
            .collect();
        let (mut observer, spec) = (Observer::start(&system), json!({}));
        let created = names.iter().map(|name| self.create(&system, name, &spec));
        let created = stream::iter(created).map(anyhow::Ok);
        let creating = created.try_for_each_concurrent(CONCURRENCY, |it| it);
        // The controller looks for changed files once a second: the first ones run.
        let ((), pending) = try_join(creating, observer.until_pending(&names)).await?;
        println!(
            "memory with {pending} pending: {}",
            usage::describe_memory(pid)?
        );
        let before = Usage::of(&system, pid).await?;
        tokio::time::sleep(QUIET * 2).await;
        let used = Usage::of(&system, pid).await?.since(&before);
        let seconds = (QUIET * 2).as_secs_f64();
        println!(
            "catalog down: {:.1} requests/s, {:.1} ms of CPU per second",
            used.requests_per(1) / seconds,
            used.cpu_per(1) / seconds
        );
        system.show_catalog()?;
        let began = Instant::now();
        observer.until_ended(&names).await?;
        println!(
            "catalog back: all have run after {:.0} s\n",
            began.elapsed().as_secs_f64()
        );
        end(controller).await
    }

    /// Many wait for one target.
    async fn one_target(&self) -> Result<()> {
        let mut system = self.system("bench-line").await?;
        system
            .controller_flags
            .push("--max-waiting-per-target=0".to_owned());
        let controller = system.launch_controller().await?;
        let pid = controller.pid()?;
        let _node = FakeNode::start(&system.execution, |_| Ending::Success);
        let spec = json!({
            "targetResource": "prod/Deployment/line", "executionConfig": { "whenBlocked": "Wait" },
        });
        let mut observer = Observer::start(&system);
        let before = Usage::of(&system, pid).await?;
        let names: Vec<_> = (0..WAITING).map(|index| format!("line-{index}")).collect();
        let creating = async {
            let mut created = Vec::new();
            for name in &names {
                let stored = self.store(&system, name, &spec).await?;
                created.push((stored.creation_timestamp(), name));
            }
            Ok(created)
        };
        let (mut line, ()) = try_join(creating, observer.until_ended(&names)).await?;
        line.sort_by_key(|(_, name)| observer.started(name));
        // Of one second, the uid decides.
        ensure!(
            line.is_sorted_by_key(|(created, _)| created.clone()),
            "not the oldest ran first"
        );
        let used = Usage::of(&system, pid).await?.since(&before);
        println!(
            "{WAITING} on one target, in order: {:.2} ms of CPU and {:.1} requests per execution\n",
            used.cpu_per(WAITING),
            used.requests_per(WAITING)
        );
        end(controller).await
    }

    /// Each request takes longer.
    async fn slow_api_server(&self) -> Result<()> {
        let mut system = self.system("bench-slow").await?;
        system.start_proxy().await?;
        let controller = system.launch_controller().await?;
        let _node = FakeNode::start(&system.execution, |_| Ending::Success);
        if let Some(proxy) = &system.proxy {
            proxy.weather(Weather::Slow(DELAY));
        }
        let times = self.run(&system, "slow", 200, None).await?;
        println!(
            "200 at once through a proxy that adds {} ms per request: {:.1} starts/s, notice p99 {}",
            DELAY.as_millis(),
            times.starts_per_second(),
            times.notice(0.99)
        );
        end(controller).await
    }

    /// Requests with as many annotations and parameters as may be.
    async fn largest(&self) -> Result<()> {
        let parameters = (0..8).map(|index| format!("- {{name: P{index}, type: string}}\n"));
        let more = format!("parameters:\n{}", parameters.collect::<String>());
        let workflow = Script::of("largest", self.workflow.image.clone(), &more);
        let system = self.system_with("bench-largest", &workflow).await?;
        let controller = system.launch_controller().await?;
        let _node = FakeNode::start(&system.execution, |_| Ending::Success);
        let values = (0..8).map(|index| (format!("P{index}"), json!("x".repeat(8_192))));
        let spec = json!({ "parameters": values.collect::<serde_json::Map<_, _>>() });
        let names: Vec<_> = (0..LARGEST)
            .map(|index| format!("largest-{index}"))
            .collect();
        let api = system.namespace.api::<WorkflowExecution>();
        let (began, bytes) = (Instant::now(), Mutex::new(0));
        let create = async |name: &String| {
            let mut request = workflow.request(name, &spec);
            request.finalizers_mut().push(FINALIZER.to_owned());
            let annotations = (0..16).map(|index| (format!("a-{index}"), "y".repeat(16_000)));
            request.annotations_mut().extend(annotations);
            *bytes.lock() = serde_json::to_vec(&request)?.len();
            api.create(&PostParams::default(), &request).await?;
            anyhow::Ok(())
        };
        let mut observer = Observer::start(&system);
        let creating = stream::iter(names.iter().map(&create)).map(anyhow::Ok);
        let creating = creating.try_for_each_concurrent(4, |it| it);
        try_join(creating, observer.until_ended(&names)).await?;
        println!(
            "{LARGEST} of {} KiB: all have ended after {:.0} s, memory {:.1} MiB, at its peak {:.1} MiB\n",
            bytes.into_inner() >> 10,
            began.elapsed().as_secs_f64(),
            mebibytes(memory(controller.pid()?)?),
            mebibytes(controller.peak_memory()? >> 10)
        );
        end(controller).await
    }

    /// Runs executions to their end, each on its own target: at a rate, or all at once.
    async fn run(
        &self,
        system: &System,
        prefix: &str,
        number: usize,
        per_second: Option<u32>,
    ) -> Result<Times> {
        let names: Vec<_> = (0..number)
            .map(|index| format!("{prefix}-{index}"))
            .collect();
        let mut observer = Observer::start(system);
        let spec = json!({});
        let created = Mutex::new(HashMap::new());
        let create = async |name: &String| {
            created.lock().insert(name.clone(), Instant::now());
            self.create(system, name, &spec).await
        };
        let creating = async {
            let Some(rate) = per_second else {
                let all = stream::iter(names.iter().map(&create)).map(anyhow::Ok);
                return all.try_for_each_concurrent(CONCURRENCY, |it| it).await;
            };
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for name in &names {
                ticks.tick().await;
                create(name).await?;
            }
            Ok(())
        };
        try_join(creating, observer.until_ended(&names)).await?;
        Ok(observer.times(&created.into_inner()))
    }

    /// Creates a request as the webhook admits it: with the finalizer.
    async fn create(&self, system: &System, name: &str, spec: &Value) -> Result<()> {
        self.store(system, name, spec).await.map(drop)
    }

    async fn store(&self, system: &System, name: &str, spec: &Value) -> Result<WorkflowExecution> {
        let mut request = self.workflow.request(name, spec);
        request.finalizers_mut().push(FINALIZER.to_owned());
        let api = system.namespace.api::<WorkflowExecution>();
        Ok(api.create(&PostParams::default(), &request).await?)
    }

    /// Creates a WorkflowExecution that has succeeded, with a delivered audit trail.
    async fn ended(&self, system: &System, index: usize) -> Result<()> {
        let name = format!("ended-{index}");
        let long =
            json!({ "parameters": { "REASON": "x".repeat(500) }, "rationale": "y".repeat(500) });
        let mut wfe = self.store(system, &name, &long).await?;
        let kinds = [
            "WorkflowResolved",
            "DependenciesReady",
            "ExecutionCreated",
            "ExecutionRunning",
            "ExecutionSucceeded",
            "Ready",
            "AuditRecorded",
        ];
        let conditions = kinds.map(|kind| {
            json!({
                "type": kind, "status": "True", "message": "the workflow succeeded",
                "reason": if kind == "AuditRecorded" { "AuditSucceeded" } else { "ExecutionSucceeded" },
                "lastTransitionTime": "2026-01-01T00:00:30Z",
            })
        });
        wfe.status = Some(serde_json::from_value(json!({
            "phase": "Succeeded", "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:30Z",
            "executionRef": { "apiVersion": "batch/v1", "kind": "Job", "name": name, "namespace": system.execution.name(), "uid": "0" },
            "conditions": conditions,
        }))?);
        let client = system.controller_client().await?;
        let api: kube::Api<WorkflowExecution> =
            kube::Api::namespaced(client, system.namespace.name());
        api.replace_status(&name, &PostParams::default(), &wfe)
            .await?;
        Ok(())
    }
}

async fn end(controller: Program) -> Result<()> {
    controller
        .terminate(Duration::from_secs(30))
        .await
        .map(drop)
}
