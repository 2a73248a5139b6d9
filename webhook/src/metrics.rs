//! Prometheus metrics of the webhook.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::review::Verdict;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReviewLabels {
    operation: &'static str,
    decision: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct TurnedAwayLabels {
    operation: &'static str,
    code: u16,
}

/// The metrics; clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    reviews: Family<ReviewLabels, Counter>,
    durations: Family<OperationLabels, Histogram>,
    turned_away: Family<TurnedAwayLabels, Counter>,
    /// `notAfter` of the serving certificate, in seconds since the Unix epoch.
    pub certificate_expiry: Gauge<f64, AtomicU64>,
    /// Number of catalog entries that are invalid and therefore set aside.
    pub catalog_rejected_entries: Gauge,
}

impl Metrics {
    /// Registers all metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            durations: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_05, 2.0, 17))
            }),
            turned_away: Family::default(),
            certificate_expiry: Gauge::default(),
            catalog_rejected_entries: Gauge::default(),
        };
        registry.register(
            "wfe_webhook_reviews",
            "Admission reviews answered, by operation, decision and the first broken rule",
            metrics.reviews.clone(),
        );
        registry.register(
            "wfe_webhook_review_duration_seconds",
            "Time from the start of the request to the verdict",
            metrics.durations.clone(),
        );
        registry.register(
            "wfe_webhook_turned_away",
            "Requests rejected without an AdmissionReview response, by HTTP status code: 400 invalid \
             review, 408 body too slow, 413 body too large, 429 too many concurrent reviews",
            metrics.turned_away.clone(),
        );
        registry.register(
            "wfe_webhook_certificate_expiry_timestamp_seconds",
            "Expiry of the serving certificate, in seconds since the Unix epoch",
            metrics.certificate_expiry.clone(),
        );
        registry.register(
            "wfe_webhook_catalog_rejected_entries",
            "Catalog entries that are invalid and set aside: their workflows are not found",
            metrics.catalog_rejected_entries.clone(),
        );
        metrics
    }

    /// Counts a request that was rejected without an `AdmissionReview` response.
    pub fn turned_away(&self, operation: &'static str, code: StatusCode) {
        let code = code.as_u16();
        let labels = TurnedAwayLabels { operation, code };
        self.turned_away.get_or_create(&labels).inc();
    }

    /// Counts an answered review and records its duration.
    pub fn answered(&self, operation: &'static str, verdict: &Verdict, duration: Duration) {
        let (decision, reason) = match verdict.refusals.first() {
            Some(first) => ("deny", first.rule()),
            None if verdict.warnings.is_empty() => ("allow", ""),
            None => ("allow", "Warned"),
        };
        self.reviews
            .get_or_create(&ReviewLabels {
                operation,
                decision,
                reason,
            })
            .inc();
        self.durations
            .get_or_create(&OperationLabels { operation })
            .observe(duration.as_secs_f64());
    }
}
