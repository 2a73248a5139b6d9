//! When each execution was created, its Job was seen, completed, and its end was stored, by watches
//! of another client.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::stream::{BoxStream, select};
use futures::{StreamExt, TryStreamExt};
use hdrhistogram::Histogram;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::Instant;
use wfe_model::workflow_execution::{Phase, WorkflowExecution};
use wfe_tests::system::{System, condition, job_has_ended, message};

/// Executions that are not done after this time will never be.
const DEADLINE: Duration = Duration::from_mins(15);

/// Watches the WorkflowExecutions and Jobs of one system.
pub struct Observer {
    changes: BoxStream<'static, Result<(String, Change)>>,
    seen: HashMap<String, Seen>,
}

enum Change {
    JobStarted,
    JobEnded,
    Pending,
    Running,
    Ended {
        audited: bool,
    },
    /// It did not succeed, and why.
    Unsuccessful(String),
    Nothing,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    created: Option<Instant>,
    job_started: Option<Instant>,
    job_ended: Option<Instant>,
    pending: bool,
    running: bool,
    ended: Option<Instant>,
    audited: bool,
}

impl Observer {
    /// Watches from when it is first asked.
    pub fn start(system: &System) -> Self {
        let jobs = watcher(system.execution.api::<Job>(), watcher::Config::default());
        let jobs = jobs.default_backoff().map_ok(|event| match event {
            Event::Apply(job) | Event::InitApply(job) => {
                let label = job.labels().get("kubernaut.ai/workflow-execution");
                let name = label.cloned().unwrap_or_default();
                let suspended = job.spec.as_ref().and_then(|it| it.suspend) == Some(true);
                let change = match (job_has_ended(&job), suspended) {
                    (true, _) => Change::JobEnded,
                    (false, false) => Change::JobStarted,
                    (false, true) => Change::Nothing,
                };
                (name, change)
            }
            _ => (String::new(), Change::Nothing),
        });
        let wfes = watcher(
            system.namespace.api::<WorkflowExecution>(),
            watcher::Config::default(),
        );
        let wfes = wfes.default_backoff().map_ok(|event| match event {
            Event::Apply(wfe) | Event::InitApply(wfe) => {
                let change = match wfe.phase() {
                    Some(Phase::Pending) => Change::Pending,
                    Some(Phase::Running)
                        if condition(&wfe, "ExecutionRunning").starts_with("True") =>
                    {
                        Change::Running
                    }
                    Some(phase) if phase.is_final() && phase != Phase::Succeeded => {
                        Change::Unsuccessful(message(&wfe, "Stalled"))
                    }
                    Some(phase) if phase.is_final() => Change::Ended {
                        audited: condition(&wfe, "AuditRecorded").starts_with("True"),
                    },
                    _ => Change::Nothing,
                };
                (wfe.name_any(), change)
            }
            _ => (String::new(), Change::Nothing),
        });
        let changes = select(jobs.boxed(), wfes.boxed());
        Self {
            changes: changes.map_err(anyhow::Error::from).boxed(),
            seen: HashMap::new(),
        }
    }

    /// Waits until the status of each of `names` says that it waits; returns how many do, the others
    /// have run.
    pub async fn until_pending(&mut self, names: &[String]) -> Result<usize> {
        self.until(names, |it| it.pending || it.audited).await?;
        let pending = |it: &&String| {
            self.seen
                .get(*it)
                .is_some_and(|it| it.pending && !it.running)
        };
        Ok(names.iter().filter(pending).count())
    }

    /// Waits until the containers of all of `names` run.
    pub async fn until_running(&mut self, names: &[String]) -> Result<()> {
        self.until(names, |it| it.running).await
    }

    /// Waits until all of `names` have ended and their audit trail is delivered.
    pub async fn until_ended(&mut self, names: &[String]) -> Result<()> {
        self.until(names, |it| it.audited).await
    }

    async fn until(&mut self, names: &[String], done: impl Fn(&Seen) -> bool) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let mut open = names
            .iter()
            .filter(|it| !self.seen.get(*it).is_some_and(&done))
            .count();
        while open > 0 {
            let next = tokio::time::timeout_at(deadline, self.changes.next()).await;
            let Ok(next) = next else {
                bail!(
                    "{open} executions are not done after {} s",
                    DEADLINE.as_secs()
                );
            };
            let (name, change) = next.context("the watches ended")??;
            let now = Instant::now();
            let seen = self.seen.entry(name.clone()).or_default();
            let before = done(seen);
            match change {
                Change::JobStarted => drop(seen.job_started.get_or_insert(now)),
                Change::JobEnded => drop(seen.job_ended.get_or_insert(now)),
                Change::Pending => seen.pending = true,
                Change::Running => seen.running = true,
                Change::Ended { audited } => {
                    seen.ended.get_or_insert(now);
                    seen.audited = audited;
                }
                Change::Unsuccessful(why) if names.contains(&name) => bail!("{name}: {why}"),
                Change::Unsuccessful(_) | Change::Nothing => {}
            }
            if !before && done(seen) {
                open = open.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// When the Job of an execution was started.
    pub fn started(&self, name: &str) -> Option<Instant> {
        let seen = self.seen.get(name)?;
        seen.job_started.or(seen.job_ended)
    }

    /// What was seen of the executions that were created at these times.
    pub fn times(mut self, created: &HashMap<String, Instant>) -> Times {
        let times = created.iter().map(|(name, at)| Seen {
            created: Some(*at),
            ..self.seen.remove(name).unwrap_or_default()
        });
        Times(times.collect())
    }
}

/// Times of executions that have ended.
pub struct Times(Vec<Seen>);

impl Times {
    /// Number of started Jobs by the time from the first create to the last start.
    #[expect(clippy::cast_precision_loss, reason = "rounded for display")]
    pub fn starts_per_second(&self) -> f64 {
        let first = self.0.iter().filter_map(|it| it.created).min();
        let last = self
            .0
            .iter()
            .filter_map(|it| it.job_started.or(it.job_ended))
            .max();
        let took = first
            .zip(last)
            .map_or(Duration::ZERO, |(first, last)| last - first);
        self.0.len() as f64 / took.as_secs_f64()
    }

    /// From the create to the started Job.
    pub fn start_latency(&self, quantile: f64) -> String {
        let times = |it: &Seen| Some(it.job_started.or(it.job_ended)? - it.created?);
        self.quantile(quantile, times)
    }

    /// From the ended Job to the ended WorkflowExecution.
    pub fn notice(&self, quantile: f64) -> String {
        let times = |it: &Seen| Some(it.ended?.saturating_duration_since(it.job_ended?));
        self.quantile(quantile, times)
    }

    fn quantile(&self, quantile: f64, time: impl Fn(&Seen) -> Option<Duration>) -> String {
        let mut histogram = Histogram::<u64>::new_with_max(600_000_000, 3).ok();
        for time in self.0.iter().filter_map(time) {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            if let Some(histogram) = &mut histogram {
                histogram.saturating_record(micros);
            }
        }
        let micros = histogram.map_or(0, |it| it.value_at_quantile(quantile));
        format!(
            "{:.1} ms",
            Duration::from_micros(micros).as_secs_f64() * 1e3
        )
    }
}
