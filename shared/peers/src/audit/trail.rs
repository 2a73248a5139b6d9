//! An event as it is read again.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use wfe_model::audit::Identity;

/// An event of a trail. A sink may have dropped some of the details, or have events of others.
#[derive(Clone, Debug, Deserialize)]
pub struct TrailEvent {
    /// What happened.
    pub event_type: String,
    /// When.
    pub event_timestamp: Timestamp,
    /// How it ended.
    pub event_outcome: String,
    /// Who did it.
    #[serde(default)]
    pub actor_id: String,
    /// Name of the WorkflowExecution.
    #[serde(default)]
    pub resource_id: String,
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// What it belongs to.
    pub correlation_id: String,
    /// Details.
    #[serde(default)]
    pub event_data: Map<String, Value>,
}

impl TrailEvent {
    /// A text of the details.
    pub fn detail(&self, name: &str) -> Option<&str> {
        self.event_data.get(name)?.as_str()
    }
}

/// Only what makes an event known again: the rest may be newer than this program.
#[derive(Deserialize)]
pub(super) struct Known {
    event_type: String,
    namespace: Option<String>,
    resource_id: Option<String>,
    event_timestamp: Timestamp,
}

impl Known {
    pub(super) fn identity(self) -> Identity {
        Identity {
            event_type: self.event_type,
            namespace: self.namespace.unwrap_or_default(),
            name: self.resource_id.unwrap_or_default(),
            timestamp: self.event_timestamp,
        }
    }
}
