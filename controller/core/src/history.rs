//! What earlier executions say about the next one on a target (BR-WE-010, BR-WE-012, BR-WE-013).
//!
//! The history is derived each time from the WorkflowExecutions of the target, and from the records
//! in its lock of WorkflowExecutions that no longer exist. Nothing is kept in memory.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};

use crate::status::{self, after};

/// An ended WorkflowExecution that counts for the next one; its JSON is the lock's record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Uid of the WorkflowExecution.
    pub uid: String,
    /// Namespace of the WorkflowExecution.
    pub namespace: String,
    /// Name of the WorkflowExecution.
    pub name: String,
    /// Id of its workflow.
    pub workflow_id: String,
    /// How the WorkflowExecution ended.
    pub outcome: Outcome,
    /// Whether a container of the workflow may have run.
    pub was_execution_failure: bool,
    /// Whether its block was cleared.
    pub cleared: bool,
    /// When the WorkflowExecution ended.
    pub completion_time: Timestamp,
    /// Failures in a row before a container started, up to and with this one; 0 if this one is
    /// none.
    pub consecutive_failures: u32,
    /// When the block was cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared_at: Option<Timestamp>,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Outcome {
    /// The workflow succeeded.
    Succeeded,
    /// The workflow failed, or could not be started.
    Failed,
}

/// Flags that the history rules depend on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time after a success in which the same workflow does not run on the target again.
    pub cooldown: Duration,
    /// Time after the first failure in which nothing runs on the target; doubles with each failure.
    pub backoff_base: Duration,
    /// The longest backoff.
    pub backoff_max: Duration,
    /// Number of failures in a row after which the target is blocked until it is cleared.
    pub max_consecutive_failures: u32,
}

/// Why the history forbids the next run, in the order of the checks.
#[derive(Clone, Debug, PartialEq)]
pub enum Restriction {
    /// The last execution failed, a container of it may have run, and its block is not cleared.
    PreviousExecutionFailed(Entry),
    /// Too many executions in a row failed before a container started.
    ExhaustedRetries(Entry, u32),
    /// The backoff after the last failure ends at this time.
    BackoffActive(Entry, Timestamp),
    /// The cooldown after a success of the same workflow ends at this time.
    RecentlyRemediated(Entry, Timestamp),
}

impl Restriction {
    /// When the restriction ends; `None`: when a user clears it.
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::PreviousExecutionFailed(_) | Self::ExhaustedRetries(..) => None,
            Self::BackoffActive(_, until) | Self::RecentlyRemediated(_, until) => Some(*until),
        }
    }

    /// The execution that causes the restriction.
    pub fn entry(&self) -> &Entry {
        match self {
            Self::PreviousExecutionFailed(entry)
            | Self::ExhaustedRetries(entry, _)
            | Self::BackoffActive(entry, _)
            | Self::RecentlyRemediated(entry, _) => entry,
        }
    }
}

impl Entry {
    /// The history entry of `wfe`; `None` if it has not ended, was skipped, or failed before the
    /// create for a reason that does not count towards the backoff.
    pub fn of(wfe: &WorkflowExecution) -> Option<Self> {
        let status = wfe.status.as_ref()?;
        let outcome = match status.phase? {
            Phase::Succeeded => Outcome::Succeeded,
            Phase::Failed => Outcome::Failed,
            Phase::Pending | Phase::Running | Phase::Skipped => return None,
        };
        let failures = status.consecutive_failures.unwrap_or(0);
        if status.execution_ref.is_none() && failures == 0 {
            return None;
        }
        let details = status.failure_details.as_ref();
        let cleared = status.block_clearance.as_ref();
        Some(Self {
            uid: wfe.metadata.uid.clone()?,
            namespace: wfe.metadata.namespace.clone().unwrap_or_default(),
            name: wfe.metadata.name.clone().unwrap_or_default(),
            workflow_id: wfe.spec.workflow_ref.workflow_id.clone(),
            outcome,
            was_execution_failure: details.is_some_and(|it| it.was_execution_failure),
            cleared: cleared.is_some(),
            completion_time: status.completion_time.as_ref()?.0,
            consecutive_failures: u32::try_from(failures).unwrap_or(0),
            cleared_at: status::cleared_at(wfe),
        })
    }

    /// Whether a container of the workflow ran or may have run.
    fn ran(&self) -> bool {
        self.outcome == Outcome::Succeeded || self.was_execution_failure
    }

    /// Whether this entry blocks the target while it is the last one that ran.
    pub fn blocks(&self) -> bool {
        self.was_execution_failure && !self.cleared
    }

    /// Whether the execution failed, before or after a container started.
    pub fn failed(&self) -> bool {
        self.was_execution_failure || self.consecutive_failures > 0
    }

    /// Whether this entry can still restrict a run. What only a clearance lifts has no end.
    pub fn is_relevant(&self, now: Timestamp, limits: &Limits) -> bool {
        let longest = limits.cooldown.max(limits.backoff_max);
        let exhausted = self.consecutive_failures >= limits.max_consecutive_failures;
        self.blocks() || exhausted && !self.cleared || now < after(self.completion_time, longest)
    }
}

/// The ended WorkflowExecutions of one target.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Newest first.
    entries: Vec<Entry>,
    /// Those that are only known by a record.
    recorded: HashSet<String>,
}

impl History {
    /// Builds the history from the target's WorkflowExecutions and its lock's records. An object
    /// takes precedence over its record, unless the cached object has not ended yet: no record lifts
    /// the block of an object.
    pub fn of<'a>(
        objects: impl IntoIterator<Item = &'a WorkflowExecution>,
        records: impl IntoIterator<Item = Entry>,
    ) -> Self {
        let mut entries: Vec<_> = objects.into_iter().filter_map(Entry::of).collect();
        let mut recorded = HashSet::new();
        for record in records {
            if entries.iter().all(|entry| entry.uid != record.uid) {
                recorded.insert(record.uid.clone());
                entries.push(record);
            }
        }
        // Times have whole seconds: of two entries in one second the blocking one comes first.
        entries.sort_by_key(|entry| Reverse((entry.completion_time, entry.blocks())));
        Self { entries, recorded }
    }

    /// The execution that blocks the target: the last one that ran, if it failed and is not
    /// cleared. A record alone lifts no older block.
    pub fn block(&self) -> Option<&Entry> {
        let ran = self.entries.iter().filter(|entry| entry.ran());
        let mut last = ran.filter(|entry| entry.blocks() || self.is_object(entry));
        last.next().filter(|entry| entry.blocks())
    }

    fn is_object(&self, entry: &Entry) -> bool {
        !self.recorded.contains(&entry.uid)
    }

    /// The failure that exhausts the retries, by the objects alone.
    fn exhausted(&self, limits: &Limits) -> Option<&Entry> {
        let is_exhausted = |it: &Entry| it.consecutive_failures >= limits.max_consecutive_failures;
        let mut objects = self.entries.iter().filter(|entry| self.is_object(entry));
        let last = objects.find(|entry| entry.ran() || entry.cleared || is_exhausted(entry))?;
        (!last.ran() && !last.cleared).then_some(last)
    }

    /// Failures in a row before a container started.
    pub fn failures(&self) -> u32 {
        let failures = || self.failures_in_a_row();
        let counted = u32::try_from(failures().count()).unwrap_or(u32::MAX);
        failures()
            .map(|entry| entry.consecutive_failures)
            .fold(counted, u32::max)
    }

    /// The failures since the last success, execution or clearing.
    fn failures_in_a_row(&self) -> impl Iterator<Item = &Entry> {
        let counts = |entry: &&Entry| entry.consecutive_failures > 0;
        let ran = self.entries.iter().find(|entry| entry.ran());
        let reset = ran.map(|entry| entry.completion_time);
        let cleared = |entry: &Entry| {
            let at = entry.cleared_at.unwrap_or(entry.completion_time);
            entry.cleared.then(|| at.max(entry.completion_time))
        };
        let cleared = self.entries.iter().filter_map(cleared).max();
        self.entries.iter().filter(counts).filter(move |entry| {
            reset.is_none_or(|reset| entry.completion_time >= reset)
                && cleared.is_none_or(|cleared| entry.completion_time > cleared)
        })
    }

    /// Why a run of `workflow_id` may not start at `now`.
    pub fn restriction(
        &self,
        workflow_id: &str,
        now: Timestamp,
        limits: &Limits,
    ) -> Option<Restriction> {
        if let Some(block) = self.block() {
            return Some(Restriction::PreviousExecutionFailed(block.clone()));
        }
        if let Some(last) = self.exhausted(limits) {
            let failures = last.consecutive_failures.max(self.failures());
            return Some(Restriction::ExhaustedRetries(last.clone(), failures));
        }
        let failures = self.failures();
        if let Some(last) = self.failures_in_a_row().next() {
            if failures >= limits.max_consecutive_failures {
                return Some(Restriction::ExhaustedRetries(last.clone(), failures));
            }
            let until = next_allowed(last.completion_time, failures, limits);
            if now < until {
                return Some(Restriction::BackoffActive(last.clone(), until));
            }
        }
        let success = self
            .entries
            .iter()
            .find(|it| it.outcome == Outcome::Succeeded && it.workflow_id == workflow_id)?;
        let until = after(success.completion_time, limits.cooldown);
        (now < until).then(|| Restriction::RecentlyRemediated(success.clone(), until))
    }
}

/// The end of the backoff after the `failures`-th failure in a row, at `failed_at` (BR-WE-012).
pub fn next_allowed(failed_at: Timestamp, failures: u32, limits: &Limits) -> Timestamp {
    let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
    let backoff = doubled.and_then(|factor| limits.backoff_base.checked_mul(factor));
    after(
        failed_at,
        backoff.map_or(limits.backoff_max, |it| it.min(limits.backoff_max)),
    )
}

#[cfg(test)]
mod tests;
