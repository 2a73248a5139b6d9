//! Metrics. Labels are closed sets and never object names, so the number of series is bounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use strum::VariantArray;
use wfe_model::audit::EventType;
use wfe_model::engine::Engine;
use wfe_model::workflow_execution::{Phase, SkipReason, WorkflowExecution};

use wfe_core::step::Notice;
use wfe_peers::client::Exchange;

use crate::watches::{Caches, WatchAges};

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EngineLabels {
    execution_engine: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabels {
    execution_engine: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    verb: &'static str,
    resource: String,
    code: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    execution_engine: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AuditLabels {
    event_type: &'static str,
    result: &'static str,
}

/// Buckets for the duration of executions: 1 s to 1 h.
const DURATIONS: [f64; 10] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
];
/// Buckets for the start latency: 5 ms to 1 min.
const LATENCIES: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

/// The metrics; [`Metrics::new`] has their names and descriptions.
#[derive(Clone, Debug)]
pub struct Metrics {
    ended: Family<OutcomeLabels, Counter>,
    duration: Family<OutcomeLabels, Histogram>,
    creations: Family<EngineLabels, Counter>,
    skips: Family<ReasonLabels, Counter>,
    backoff_skips: Family<ReasonLabels, Counter>,
    notices: Family<ReasonLabels, Counter>,
    completion_notice: Family<EngineLabels, Histogram>,
    start_latency: Family<EngineLabels, Histogram>,
    block_clearances: Counter,
    audit_events: Family<AuditLabels, Counter>,
    audit_pending: Gauge<i64, AtomicI64>,
    kube_requests: Family<RequestLabels, Counter>,
    events_dropped: Counter,
    /// 1 while this process decides and acts.
    pub leader: Gauge<i64, AtomicI64>,
    /// Number of catalog entries that are invalid and therefore set aside.
    pub catalog_rejected_entries: Gauge<i64, AtomicI64>,
}

impl Metrics {
    /// Registers all metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            ended: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            creations: Family::default(),
            skips: Family::default(),
            backoff_skips: Family::default(),
            notices: Family::default(),
            completion_notice: Family::new_with_constructor(|| Histogram::new(LATENCIES)),
            start_latency: Family::new_with_constructor(|| Histogram::new(LATENCIES)),
            block_clearances: Counter::default(),
            audit_events: Family::default(),
            audit_pending: Gauge::default(),
            kube_requests: Family::default(),
            events_dropped: Counter::default(),
            leader: Gauge::default(),
            catalog_rejected_entries: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("workflowexecution");
        registry.register(
            "reconciler",
            "WorkflowExecutions that ended, by outcome",
            metrics.ended.clone(),
        );
        registry.register(
            "reconciler_duration_seconds",
            "Time from the start to the end of an execution",
            metrics.duration.clone(),
        );
        registry.register(
            "reconciler_execution_creations",
            "Jobs and PipelineRuns that were created",
            metrics.creations.clone(),
        );
        registry.register(
            "skip",
            "WorkflowExecutions that ended as Skipped, by reason",
            metrics.skips.clone(),
        );
        registry.register(
            "backoff_skip",
            "WorkflowExecutions that ended as Skipped because of earlier failures on the target",
            metrics.backoff_skips.clone(),
        );
        registry.register(
            "notice",
            "WorkflowExecutions that need attention: Overdue, PodRemains, DeletionStuck, DeletionWaits, AuditAbandoned, ReconcileFails",
            metrics.notices.clone(),
        );
        registry.register(
            "completion_notice_seconds",
            "Time from the end of an execution, by its own account, to the final phase",
            metrics.completion_notice.clone(),
        );
        registry.register(
            "start_latency_seconds",
            "Time from the creation of a WorkflowExecution to the creation of its execution",
            metrics.start_latency.clone(),
        );
        registry.register(
            "block_clearances",
            "Blocks of targets that users cleared",
            metrics.block_clearances.clone(),
        );
        registry.register(
            "audit_events",
            "Audit events by result: delivered, found (already stored, after a restart or an unanswered request), rejected, abandoned, lost",
            metrics.audit_events.clone(),
        );
        registry.register(
            "audit_pending",
            "Audit events that are due and not delivered yet",
            metrics.audit_pending.clone(),
        );
        registry.register(
            "leader",
            "1 while this process reconciles, else 0",
            metrics.leader.clone(),
        );
        registry.register(
            "kube_requests",
            "Requests to the API server, by HTTP status code; code 0: no response",
            metrics.kube_requests.clone(),
        );
        registry.register(
            "events_dropped",
            "Kubernetes Events that were not published, because too many waited",
            metrics.events_dropped.clone(),
        );
        registry.register(
            "catalog_rejected_entries",
            "Catalog entries that are invalid and set aside: their workflows are not found",
            metrics.catalog_rejected_entries.clone(),
        );
        metrics
    }

    /// Counts the result of the delivery of an audit event.
    pub fn audit_event(&self, event_type: EventType, result: &'static str) {
        let event_type = event_type.as_str();
        let labels = AuditLabels { event_type, result };
        self.audit_events.get_or_create(&labels).inc();
    }

    /// Sets the number of undelivered audit events.
    pub fn audit_pending(&self, events: usize) {
        self.audit_pending
            .set(i64::try_from(events).unwrap_or(i64::MAX));
    }

    /// Counts a request to the API server.
    pub fn kube_request(&self, exchange: &Exchange) {
        let labels = RequestLabels {
            verb: exchange.verb,
            resource: exchange.resource.clone(),
            code: exchange.code.unwrap_or_default(),
        };
        self.kube_requests.get_or_create(&labels).inc();
    }

    /// Counts an Event that is not published.
    pub fn event_dropped(&self) {
        self.events_dropped.inc();
    }

    /// Counts a cleared block.
    pub fn block_cleared(&self) {
        self.block_clearances.inc();
    }

    /// Counts a published notice.
    pub fn notice(&self, wfe: &WorkflowExecution, notice: Notice) {
        let labels = ReasonLabels {
            execution_engine: engine_of(wfe),
            reason: notice.as_str(),
        };
        self.notices.get_or_create(&labels).inc();
    }

    /// Counts a stored change of phase.
    pub fn transition(&self, wfe: &WorkflowExecution, now: Timestamp) {
        let execution_engine = engine_of(wfe);
        let engine = EngineLabels { execution_engine };
        let Some(status) = &wfe.status else { return };
        let seconds = |from: Option<Timestamp>, to: Timestamp| {
            from.map(|from| to.duration_since(from).as_secs_f64().max(0.0))
        };
        let started = status.start_time.as_ref().map(|time| time.0);
        let outcome = match status.phase {
            None | Some(Phase::Pending) => return,
            Some(Phase::Running) => {
                self.creations.get_or_create(&engine).inc();
                let accepted = wfe.metadata.creation_timestamp.as_ref().map(|time| time.0);
                if let Some(latency) = seconds(accepted, now) {
                    self.start_latency.get_or_create(&engine).observe(latency);
                }
                return;
            }
            Some(Phase::Skipped) => {
                let reason = status.skip_details.as_ref().map(|details| details.reason);
                let labels = ReasonLabels {
                    execution_engine,
                    reason: reason.map(SkipReason::as_str).unwrap_or_default(),
                };
                self.skips.get_or_create(&labels).inc();
                let backoff = [SkipReason::BackoffActive, SkipReason::ExhaustedRetries];
                if reason.is_some_and(|reason| backoff.contains(&reason)) {
                    self.backoff_skips.get_or_create(&labels).inc();
                }
                return;
            }
            Some(Phase::Succeeded) => "Succeeded",
            Some(Phase::Failed) => "Failed",
        };
        let outcome = OutcomeLabels {
            execution_engine,
            outcome,
        };
        self.ended.get_or_create(&outcome).inc();
        let completed = status.completion_time.as_ref().map_or(now, |time| time.0);
        if status.execution_ref.is_some()
            && let Some(latency) = seconds(Some(completed), now)
        {
            self.completion_notice
                .get_or_create(&engine)
                .observe(latency);
        }
        if let Some(duration) = seconds(started, completed) {
            self.duration.get_or_create(&outcome).observe(duration);
        }
    }
}

/// Metrics that are computed from the caches at each scrape.
pub struct CacheMetrics {
    /// Caches.
    pub caches: Caches,
    /// Ages of the watches that fill them.
    pub watches: WatchAges,
}

impl std::fmt::Debug for CacheMetrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("CacheMetrics")
    }
}

impl Collector for CacheMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut active = encoder.encode_descriptor(
            "workflowexecution_active",
            "Executions that were created and have not ended",
            None,
            MetricType::Gauge,
        )?;
        for (engine, count) in active_executions(&self.caches.unfinished()) {
            active
                .encode_family(&[("execution_engine", engine)])?
                .encode_gauge(&count)?;
        }
        let mut unreadable = encoder.encode_descriptor(
            "workflowexecution_unreadable",
            "Objects that this version cannot read; their targets count as in use",
            None,
            MetricType::Gauge,
        )?;
        let count = i64::try_from(self.caches.unreadable()).unwrap_or(i64::MAX);
        unreadable
            .encode_family(&[("kind", "WorkflowExecution")])?
            .encode_gauge(&count)?;
        let mut ages = encoder.encode_descriptor(
            "workflowexecution_watch_age_seconds",
            "Time since the oldest watch of a resource was opened: more than 75 s if it is dead",
            None,
            MetricType::Gauge,
        )?;
        for (resource, age) in self.watches.ages() {
            ages.encode_family(&[("kind", resource)])?
                .encode_gauge(&age.as_secs_f64())?;
        }
        Ok(())
    }
}

/// The number of running WorkflowExecutions of each engine.
fn active_executions(all: &[Arc<WorkflowExecution>]) -> BTreeMap<&'static str, i64> {
    let engines = Engine::VARIANTS.iter().map(|it| (it.as_str(), 0));
    let mut active: BTreeMap<_, _> = engines.collect();
    for wfe in all.iter().filter(|it| it.phase() == Some(Phase::Running)) {
        *active.entry(engine_of(wfe)).or_default() += 1;
    }
    active
}

/// Label of the engine; `unknown` for a value that is no engine, so that the set stays closed.
fn engine_of(wfe: &WorkflowExecution) -> &'static str {
    Engine::parse(&wfe.spec.execution_engine).map_or("unknown", Engine::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wfe(status: serde_json::Value) -> WorkflowExecution {
        let mut wfe = WorkflowExecution::default();
        wfe.spec.execution_engine = "job".to_owned();
        wfe.status = serde_json::from_value(status).expect("a status");
        wfe
    }

    /// BR-WE-008
    #[test]
    fn metrics_after_transitions_count_start_end_and_skip() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let now = "2026-01-01T00:01:00Z".parse().expect("a timestamp");
        let job = json!({ "apiVersion": "batch/v1", "kind": "Job", "name": "a", "namespace": "n", "uid": "u" });
        let running =
            json!({ "phase": "Running", "startTime": "2026-01-01T00:00:00Z", "executionRef": job });
        metrics.transition(&wfe(running), now);
        let ended = json!({ "phase": "Succeeded", "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:30Z", "executionRef": job });
        metrics.transition(&wfe(ended), now);
        let skipped = json!({ "phase": "Skipped", "skipDetails": { "reason": "ResourceBusy", "message": "", "skippedAt": "2026-01-01T00:00:00Z" } });
        metrics.transition(&wfe(skipped), now);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "workflowexecution_reconciler_total{execution_engine=\"job\",outcome=\"Succeeded\"} 1",
            "workflowexecution_reconciler_duration_seconds_sum{execution_engine=\"job\",outcome=\"Succeeded\"} 30.0",
            "workflowexecution_reconciler_execution_creations_total{execution_engine=\"job\"} 1",
            "workflowexecution_completion_notice_seconds_sum{execution_engine=\"job\"} 30.0",
            "workflowexecution_skip_total{execution_engine=\"job\",reason=\"ResourceBusy\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert!(
            !text.contains("outcome=\"Skipped\""),
            "skips have their own metric"
        );
    }

    /// BR-WE-008: also after a restart, and when another process has ended an execution.
    #[tokio::test]
    async fn active_executions_are_counted_from_the_cache() {
        let named = |name: &str, phase: &str| {
            let mut wfe = wfe(json!({ "phase": phase }));
            wfe.metadata.name = Some(name.to_owned());
            wfe
        };
        let all = [("a", "Running"), ("b", "Running"), ("c", "Succeeded")];
        let all = all.map(|(name, phase)| named(name, phase));
        let caches = Caches::of(all.to_vec()).await;
        let mut registry = Registry::default();
        let watches = WatchAges::default();
        registry.register_collector(Box::new(CacheMetrics { caches, watches }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "workflowexecution_active{execution_engine=\"job\"} 2",
            "workflowexecution_active{execution_engine=\"tekton\"} 0",
            "workflowexecution_unreadable{kind=\"WorkflowExecution\"} 0",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }
}
