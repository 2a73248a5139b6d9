//! Audit trail. No event is lost by an outage of the sink or a crash of this process.
//!
//! [`wfe_core::audit`] derives the events from a stored status, [`ledger`] keeps the delivery state
//! of each WorkflowExecution, and [`outbox`] delivers the events in batches. If an earlier request
//! or process may have delivered an event, the outbox asks the sink first. Undelivered events are
//! stored in the API server as statuses, so memory does not grow with an outage.

mod ledger;
pub mod outbox;
pub mod trail;
