//! What earlier executions say about the next one on a target (BR-WE-010, BR-WE-012, BR-WE-013).
//!
//! Pure, and without memory: the history is what the WorkflowExecutions of the target say, and the
//! records that the target's lock keeps of those that are gone.

use std::cmp::Reverse;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wfe_model::workflow_execution::{Phase, WorkflowExecution};

use crate::status::after;

/// One that has ended and says something about the next; its JSON is the lock's record.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Of the WorkflowExecution.
    pub uid: String,
    /// Of the WorkflowExecution.
    pub namespace: String,
    /// Of the WorkflowExecution.
    pub name: String,
    /// What it ran.
    pub workflow_id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether a container of the workflow may have run.
    pub was_execution_failure: bool,
    /// Whether somebody has cleared the block it left.
    pub cleared: bool,
    /// When it ended.
    pub completion_time: Timestamp,
    /// Failures in a row before anything ran, up to this one; 0 for one that is no such failure.
    pub consecutive_failures: u32,
    /// When the block was cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared_at: Option<Timestamp>,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Outcome {
    /// Well.
    Succeeded,
    /// Otherwise.
    Failed,
}

/// Flags of the rules.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long after a success the same workflow does not run again on the target.
    pub cooldown: Duration,
    /// How long after the first failure nothing runs; doubles with each.
    pub backoff_base: Duration,
    /// The longest backoff.
    pub backoff_max: Duration,
    /// After so many failures in a row somebody has to look.
    pub max_consecutive_failures: u32,
}

/// Why the next one may not run, in the order of the checks.
#[derive(Clone, Debug, PartialEq)]
pub enum Obstacle {
    /// The last execution failed midway and nobody has cleared it.
    PreviousExecutionFailed(Entry),
    /// Too many failures in a row.
    ExhaustedRetries(Entry, u32),
    /// It failed a moment ago.
    BackoffActive(Entry, Timestamp),
    /// The same workflow succeeded a moment ago.
    RecentlyRemediated(Entry, Timestamp),
}

impl Entry {
    /// What `wfe` will say about the next one; none when it has not ended, or says nothing (it was
    /// skipped, or failed by its own fault before anything was made).
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
            cleared_at: cleared.map(|it| it.cleared_at.0),
        })
    }

    /// Whether the workflow ran, to its end or not.
    fn ran(&self) -> bool {
        self.outcome == Outcome::Succeeded || self.was_execution_failure
    }

    /// Whether this one keeps the target blocked while it is the last that ran.
    pub fn blocks(&self) -> bool {
        self.was_execution_failure && !self.cleared
    }

    /// Whether it may still say something about the next one.
    pub fn matters(&self, now: Timestamp, limits: &Limits) -> bool {
        let longest = limits.cooldown.max(limits.backoff_max);
        self.blocks() || now < after(self.completion_time, longest)
    }
}

/// The past of one target, newest first.
#[derive(Clone, Debug, Default)]
pub struct History(Vec<Entry>);

impl History {
    /// Of the target's WorkflowExecutions, and of the records of its lock. What an object says goes
    /// before the record of it, unless the object as seen has not ended yet.
    pub fn of<'a>(
        objects: impl IntoIterator<Item = &'a WorkflowExecution>,
        records: impl IntoIterator<Item = Entry>,
    ) -> Self {
        let mut entries: Vec<_> = objects.into_iter().filter_map(Entry::of).collect();
        for record in records {
            match entries.iter_mut().find(|entry| entry.uid == record.uid) {
                Some(entry) if !entry.cleared => {
                    (entry.cleared, entry.cleared_at) = (record.cleared, record.cleared_at);
                }
                Some(_) => {}
                None => entries.push(record),
            }
        }
        // Moments are whole seconds: of two in one second the one that blocks counts.
        entries.sort_by_key(|entry| Reverse((entry.completion_time, entry.blocks())));
        Self(entries)
    }

    /// The execution that keeps the target blocked: the last that ran, where it failed midway.
    pub fn block(&self) -> Option<&Entry> {
        self.0
            .iter()
            .find(|entry| entry.ran())
            .filter(|entry| entry.blocks())
    }

    /// Failures in a row before anything ran.
    pub fn failures(&self) -> u32 {
        let run = || self.run();
        let counted = u32::try_from(run().count()).unwrap_or(u32::MAX);
        run()
            .map(|entry| entry.consecutive_failures)
            .fold(counted, u32::max)
    }

    /// The failures since the last success, execution or clearing.
    fn run(&self) -> impl Iterator<Item = &Entry> {
        let counts = |entry: &&Entry| entry.consecutive_failures > 0;
        let ran = self.0.iter().find(|entry| entry.ran());
        let reset = ran.map(|entry| entry.completion_time);
        let cleared = |entry: &Entry| {
            let at = entry.cleared_at.unwrap_or(entry.completion_time);
            entry.cleared.then(|| at.max(entry.completion_time))
        };
        let cleared = self.0.iter().filter_map(cleared).max();
        self.0.iter().filter(counts).filter(move |entry| {
            reset.is_none_or(|reset| entry.completion_time >= reset)
                && cleared.is_none_or(|cleared| entry.completion_time > cleared)
        })
    }

    /// What keeps a run of `workflow_id` from starting at `now`.
    pub fn obstacle(&self, workflow_id: &str, now: Timestamp, limits: &Limits) -> Option<Obstacle> {
        if let Some(block) = self.block() {
            return Some(Obstacle::PreviousExecutionFailed(block.clone()));
        }
        let failures = self.failures();
        if let Some(last) = self.run().next() {
            if failures >= limits.max_consecutive_failures {
                return Some(Obstacle::ExhaustedRetries(last.clone(), failures));
            }
            let until = next_allowed(last.completion_time, failures, limits);
            if now < until {
                return Some(Obstacle::BackoffActive(last.clone(), until));
            }
        }
        let success = self
            .0
            .iter()
            .find(|it| it.outcome == Outcome::Succeeded && it.workflow_id == workflow_id)?;
        let until = after(success.completion_time, limits.cooldown);
        (now < until).then(|| Obstacle::RecentlyRemediated(success.clone(), until))
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
