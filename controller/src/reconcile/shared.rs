//! What observing and carrying out share with each other and with the rest of the process.

use std::sync::Arc;

use wfe_core::observed::Settings;
use wfe_peers::catalog::Catalog;

use super::failing::Failing;
use super::notified::Notified;
use super::schema::Schema;
use crate::audit::outbox::Outbox;
use crate::election::Leadership;
use crate::executor::Executors;
use crate::metrics::Metrics;
use crate::view::View;

/// The parts that observing and carrying out have in common.
pub struct Shared {
    /// Newest known objects.
    pub view: Arc<View>,
    /// Executors of the engines.
    pub executors: Executors,
    /// Workflow catalog.
    pub catalog: Arc<dyn Catalog>,
    /// Delivers audit events.
    pub outbox: Arc<Outbox>,
    /// Notices that were published already.
    pub notified: Arc<Notified>,
    /// Objects whose last pass failed.
    pub failing: Arc<Failing>,
    /// Until when this process may write.
    pub leadership: Leadership,
    /// Flags that decisions depend on.
    pub settings: Arc<Settings>,
    /// Metrics.
    pub metrics: Metrics,
    /// Whether the CRD in the cluster has every field that the controller writes.
    pub schema: Schema,
}
