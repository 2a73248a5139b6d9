//! An API server that is slow, overloaded, unreachable or has another clock: every execution ends as
//! it should, and the requests stay within their rate.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;
use wfe_tests::Cluster;
use wfe_tests::fakes::node::{Ending, FakeNode};
use wfe_tests::fakes::proxy::{Proxy, Weather};
use wfe_tests::system::{Program, Script, System, condition, install_crd};

const RUNS: usize = 10;
const QPS: u32 = 40;
const BURST: u32 = 60;
/// Growing delays between attempts come after the bad weather.
const ENDED_WITHIN: Duration = Duration::from_mins(5);
const HEARD_WITHIN: Duration = Duration::from_secs(90);

struct Setup {
    system: System,
    workflow: Script,
    node: FakeNode,
    controller: Program,
}

impl Setup {
    async fn start(prefix: &str, ending: Ending) -> Result<Self> {
        let cluster = Cluster::connect().await;
        install_crd(&cluster).await?;
        let workflow = Script::of("w", format!("r.io/w@sha256:{}", "5".repeat(64)), "");
        let mut system = System::install(&cluster, prefix, &[&workflow]).await?;
        let flags = [
            format!("--kube-qps={QPS}"),
            format!("--kube-burst={BURST}"),
            "--cooldown=0s".to_owned(),
        ];
        system.controller_flags.extend(flags);
        system.start_proxy().await?;
        let controller = system.launch_controller().await?;
        let node = FakeNode::start(&system.execution, move |_| ending);
        Ok(Self {
            system,
            workflow,
            node,
            controller,
        })
    }

    fn proxy(&self) -> &Proxy {
        self.system.proxy.as_ref().expect("a proxy")
    }

    async fn create(&self, names: &[String]) -> Result<()> {
        for name in names {
            self.system.create(&self.workflow, name, &json!({})).await?;
        }
        Ok(())
    }

    /// Each execution has succeeded and has run once.
    async fn check(&self, names: &[String]) -> Result<()> {
        for name in names {
            let wfe = self.system.ended_within(name, ENDED_WITHIN).await?;
            ensure!(condition(&wfe, "Ready") == "True/Ready", "{name}: {wfe:?}");
            let started = self.node.started_for(&wfe.uid().unwrap_or_default());
            ensure!(started == 1, "{name} has run {started} times");
        }
        Ok(())
    }
}

fn names(prefix: &str) -> Vec<String> {
    (0..RUNS)
        .map(|number| format!("{prefix}-{number}"))
        .collect()
}

/// Half of the executions are created before the weather changes, half after.
async fn run_through(weather: Weather, lasting: Duration) -> Result<()> {
    let setup = Setup::start("weather", Ending::Success).await?;
    let (names, proxy) = (names("run"), setup.proxy());
    let (before, during) = names.split_at(RUNS / 2);
    setup.create(before).await?;
    let (began, received) = (Instant::now(), proxy.received());
    proxy.weather(weather);
    setup.create(during).await?;
    proxy.clear_after(lasting).await;
    setup.check(&names).await?;
    let requests = proxy.received() - received;
    let allowed = f64::from(BURST) + f64::from(QPS) * began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let within = requests as f64 <= allowed;
    ensure!(within, "{requests} requests, {allowed:.0} are allowed");
    setup.controller.terminate(Duration::from_secs(30)).await?;
    Ok(())
}

/// BR-WE-003, BR-WE-009
#[tokio::test(flavor = "multi_thread")]
async fn executions_in_bad_weather_run_once_within_the_request_rate() {
    let weathers = [
        (Weather::Throttled(2), 15),
        (Weather::Slow(Duration::from_secs(2)), 30),
        (Weather::Flaky, 30),
        (Weather::Expired, 15),
        (Weather::Silent, 120),
    ];
    let runs = weathers.map(async |(weather, seconds)| {
        let run = Box::pin(run_through(weather, Duration::from_secs(seconds))).await;
        run.with_context(|| format!("{weather:?}"))
    });
    if let Err(error) = try_join_all(runs).await {
        panic!("{error:#}");
    }
}

/// BR-WE-009: connections that are dead without a word.
#[tokio::test(flavor = "multi_thread")]
async fn pause_and_cancel_behind_dead_watches_are_heard() {
    let setup = Setup::start("dead", Ending::Never).await.expect("started");
    let (system, running) = (&setup.system, "running".to_owned());
    setup
        .create(std::slice::from_ref(&running))
        .await
        .expect("stored");
    let runs = system
        .until(&running, "ExecutionRunning", "True/ExecutionStarted")
        .await;
    runs.expect("runs");
    setup.proxy().freeze();
    let namespaces: Api<Namespace> = Api::all(system.cluster.admin());
    let pause = json!({ "metadata": { "annotations": { "kubernaut.ai/paused": "true" } } });
    let paused = namespaces
        .patch(
            system.execution.name(),
            &PatchParams::default(),
            &Patch::Merge(pause),
        )
        .await;
    paused.expect("paused");
    system
        .cancel(&running, "not needed")
        .await
        .expect("cancelled");
    setup.create(&["late".to_owned()]).await.expect("stored");
    let cancelled = system
        .ended_within(&running, HEARD_WITHIN)
        .await
        .expect("ended");
    assert_eq!(
        condition(&cancelled, "ExecutionComplete"),
        "False/Cancelled"
    );
    let waits = system.until("late", "Blocked", "True/Paused").await;
    waits.expect("paused");
    drop(setup);
}

/// BR-WE-003
#[tokio::test(flavor = "multi_thread")]
async fn clock_that_differs_from_the_api_servers_makes_not_ready() {
    let setup = Setup::start("clock", Ending::Success)
        .await
        .expect("started");
    setup.proxy().weather(Weather::Behind);
    let names = names("run");
    setup.create(&names).await.expect("stored");
    let within = Duration::from_secs(30);
    let ready = setup.controller.wait_for_readiness(false, within).await;
    ready.expect("not ready");
    let report = setup.controller.readiness().await.expect("a response");
    let says = "clock-in-sync (it differs from the API server's by 3";
    assert!(report.contains(says), "{report}");
    setup.proxy().weather(Weather::Fair);
    setup.check(&names).await.expect("converges");
    let ready = setup.controller.wait_for_readiness(true, within).await;
    ready.expect("ready");
}
