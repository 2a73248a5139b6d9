//! How a block is cleared: the commands that messages give, and the clearance of a target whose
//! blocking WorkflowExecution is gone.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use serde::{Deserialize, Serialize};
use wfe_model::workflow_execution::WorkflowExecution;

use crate::history::Entry;
use crate::lock;
use crate::names::CLEARED;

pub use wfe_model::workflow_execution::clear_command as command;

/// The command that clears the block of a target whose WorkflowExecution is gone.
fn command_for_target(target: &str, execution_namespace: &str) -> String {
    format!(
        "wfe-controller clear-target {target} --execution-namespace {execution_namespace} --reason '<what you found>'"
    )
}

/// The command that clears the block of `entry`, which depends on whether `objects`, the
/// WorkflowExecutions on the target, still have its WorkflowExecution.
pub fn command_for<'a>(
    entry: &Entry,
    objects: impl IntoIterator<Item = &'a WorkflowExecution>,
    target: &str,
    execution_namespace: &str,
) -> String {
    let mut objects = objects.into_iter();
    if objects.any(|it| it.metadata.uid.as_ref() == Some(&entry.uid)) {
        command(&entry.namespace, &entry.name)
    } else {
        command_for_target(target, execution_namespace)
    }
}

/// Who cleared a target, as an annotation of its lock.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetClearance {
    /// User name.
    pub cleared_by: String,
    /// Time of the clearance.
    pub cleared_at: Timestamp,
    /// What the user found.
    pub clear_reason: String,
}

/// `lease` with every record cleared, and the clearance; with the records that it clears. `None` if
/// no record can block the target.
pub fn cleared(lease: Lease, clearance: &TargetClearance) -> Option<(Lease, Vec<Entry>)> {
    let (mut lease, changed) = lock::map_records(lease, |entry| {
        (!entry.cleared && entry.failed()).then(|| Entry {
            cleared: true,
            cleared_at: Some(clearance.cleared_at),
            ..entry.clone()
        })
    });
    lock::annotate(&mut lease, CLEARED, clearance);
    (!changed.is_empty()).then_some((lease, changed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Limits, Outcome, Restriction};
    use crate::lock::TargetLock;
    use std::sync::Arc;
    use std::time::Duration;

    fn failed(uid: &str, ran: bool, failures: u32) -> Entry {
        Entry {
            uid: uid.to_owned(),
            namespace: "prod".to_owned(),
            name: uid.to_owned(),
            workflow_id: "w".to_owned(),
            outcome: Outcome::Failed,
            was_execution_failure: ran,
            cleared: false,
            completion_time: Timestamp::UNIX_EPOCH,
            consecutive_failures: failures,
            cleared_at: None,
        }
    }

    /// BR-WE-013
    #[test]
    fn cleared_lease_restricts_nothing() {
        let limits = Limits {
            cooldown: Duration::ZERO,
            backoff_base: Duration::ZERO,
            backoff_max: Duration::ZERO,
            max_consecutive_failures: 5,
        };
        let now = Timestamp::UNIX_EPOCH + Duration::from_hours(1);
        let clearance = TargetClearance {
            cleared_by: "ann".to_owned(),
            cleared_at: now,
            clear_reason: "looked at it".to_owned(),
        };
        let restriction = |lease: &Lease| {
            let lock = TargetLock::from(Some(Arc::new(lease.clone())));
            let history = History::of([], lock.records().cloned());
            history.restriction("w", now, &limits)
        };
        for (entry, exhausted) in [(failed("a", true, 0), false), (failed("a", false, 5), true)] {
            let lease = lock::new("n", &"abc".into());
            let lease = lock::freed(lease, Some(&entry), now);
            let lease = lock::recorded(lease, &entry, &limits, now);
            let found = restriction(&lease);
            let is_exhausted = matches!(found, Some(Restriction::ExhaustedRetries(..)));
            assert!(found.is_some() && is_exhausted == exhausted, "{found:?}");
            let (lease, records) = cleared(lease, &clearance).expect("cleared");
            assert_eq!(records.len(), 2, "the last one and the past one");
            assert_eq!(restriction(&lease), None);
            assert!(cleared(lease, &clearance).is_none(), "nothing to clear");
        }
    }
}
