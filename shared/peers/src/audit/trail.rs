//! Audit events as read from a sink.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use wfe_model::audit::Identity;

/// An audit event read from a sink. The sink may have dropped keys, and may have events of other
/// components.
#[derive(Clone, Debug, Deserialize)]
pub struct TrailEvent {
    /// Type of the event.
    pub event_type: String,
    /// Time of the event.
    pub event_timestamp: Timestamp,
    /// Outcome of the action.
    pub event_outcome: String,
    /// Name of the service or user.
    #[serde(default)]
    pub actor_id: String,
    /// Name of the WorkflowExecution.
    #[serde(default)]
    pub resource_id: String,
    /// Namespace of the WorkflowExecution.
    #[serde(default)]
    pub namespace: String,
    /// Name of the RemediationRequest, or of the WorkflowExecution if it refers to none.
    pub correlation_id: String,
    /// Details that depend on the event type.
    #[serde(default)]
    pub event_data: Map<String, Value>,
}

impl TrailEvent {
    /// The detail `name`, if it is a text.
    pub fn detail(&self, name: &str) -> Option<&str> {
        self.event_data.get(name)?.as_str()
    }
}

/// The fields of the [`Identity`]. Other fields are ignored, because a newer version of this
/// program may have written them.
#[derive(Deserialize)]
pub(super) struct StoredIdentity {
    event_type: String,
    namespace: Option<String>,
    resource_id: Option<String>,
    event_timestamp: Timestamp,
}

impl StoredIdentity {
    pub(super) fn identity(self) -> Identity {
        Identity {
            event_type: self.event_type,
            namespace: self.namespace.unwrap_or_default(),
            name: self.resource_id.unwrap_or_default(),
            timestamp: self.event_timestamp,
        }
    }
}
