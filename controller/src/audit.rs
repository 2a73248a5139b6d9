//! The audit trail: nothing is lost, whatever becomes of the sink or of this process.
//!
//! [`wfe_core::audit`] derives from a stored status what there is to report; [`ledger`] knows of each
//! WorkflowExecution how much of that the sink has; [`outbox`] delivers the rest, in batches, and asks the
//! sink first where an earlier try, or an earlier process, may have delivered already. What waits is
//! in the API server, not here: memory does not grow with an outage.

mod ledger;
pub mod outbox;
pub mod trail;
