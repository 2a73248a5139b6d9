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
use crate::recorder::Recorder;
use crate::slots::Slots;
use crate::view::View;
use crate::watches::WatchAges;

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
    /// How many executions may run.
    pub slots: Arc<Slots>,
    /// Until when this process may write.
    pub leadership: Leadership,
    /// When the watches were last heard of.
    pub watches: WatchAges,
    /// Flags that decisions depend on.
    pub settings: Arc<Settings>,
    /// Records Events.
    pub recorder: Recorder,
    /// Metrics.
    pub metrics: Metrics,
    /// Whether the CRD in the cluster has every field that the controller writes.
    pub schema: Schema,
}
