//! Builds the next status from the stored one: conditions, phases, times.

use std::time::Duration;

use crate::condition::{ConditionType, Reason};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use wfe_model::workflow_execution::{TriState, WorkflowExecution, WorkflowExecutionStatus};

/// A status that is being built for a write.
#[derive(Clone, Debug)]
pub struct Change {
    status: WorkflowExecutionStatus,
    generation: Option<i64>,
    now: Time,
}

impl Change {
    /// Starts from the stored status.
    pub fn of(wfe: &WorkflowExecution, now: Timestamp) -> Self {
        let mut status = wfe.status.clone().unwrap_or_default();
        status.observed_generation = wfe.metadata.generation;
        Self {
            status,
            generation: wfe.metadata.generation,
            now: time(now),
        }
    }

    /// Sets a condition. Its transition time is now, or unchanged if its status does not change.
    #[must_use]
    pub fn condition(
        self,
        kind: ConditionType,
        truth: TriState,
        reason: Reason,
        message: &str,
    ) -> Self {
        let now = self.now.0;
        self.condition_since(kind, truth, reason, message, now)
    }

    /// Sets a condition. Its transition time is `since`, or unchanged if its status does not
    /// change.
    #[must_use]
    pub fn condition_since(
        mut self,
        kind: ConditionType,
        truth: TriState,
        reason: Reason,
        message: &str,
        since: Timestamp,
    ) -> Self {
        let conditions = &mut self.status.conditions;
        let before = conditions
            .iter()
            .position(|it| it.type_ == kind.as_str())
            .map(|index| conditions.remove(index));
        let unchanged = before.filter(|it| it.status == truth.as_str());
        conditions.push(Condition {
            type_: kind.as_str().to_owned(),
            status: truth.as_str().to_owned(),
            reason: reason.as_str().to_owned(),
            message: message.to_owned(),
            observed_generation: self.generation,
            last_transition_time: unchanged
                .map_or_else(|| time(since), |it| it.last_transition_time),
        });
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        self
    }

    /// A condition of the status that is being built.
    pub fn stored(&self, kind: ConditionType) -> Option<&Condition> {
        self.status
            .conditions
            .iter()
            .find(|it| it.type_ == kind.as_str())
    }

    /// Changes other fields of the status.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut WorkflowExecutionStatus)) -> Self {
        change(&mut self.status);
        self
    }

    /// The status to store; `None` if it equals the stored one.
    pub fn unless_stored(self, wfe: &WorkflowExecution) -> Option<WorkflowExecutionStatus> {
        (wfe.status.as_ref() != Some(&self.status)).then_some(self.status)
    }

    /// The status to store.
    pub fn into_status(self) -> WorkflowExecutionStatus {
        self.status
    }
}

/// A time in whole seconds, the precision that Kubernetes stores.
pub fn time(timestamp: Timestamp) -> Time {
    let seconds = TimestampRound::new()
        .smallest(Unit::Second)
        .mode(RoundMode::Floor);
    Time(timestamp.round(seconds).unwrap_or(timestamp))
}

/// The time `span` after `moment`, at most the latest timestamp.
pub fn after(moment: Timestamp, span: Duration) -> Timestamp {
    moment.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// A condition of the stored status.
pub fn stored(wfe: &WorkflowExecution, kind: ConditionType) -> Option<&Condition> {
    wfe.status
        .as_ref()?
        .conditions
        .iter()
        .find(|it| it.type_ == kind.as_str())
}

/// Whether a condition of the stored status is `True`.
pub fn holds(wfe: &WorkflowExecution, kind: ConditionType) -> bool {
    stored(wfe, kind).is_some_and(|it| it.status == TriState::True.as_str())
}

/// A clearance by a clock that is ahead by less is not in the future.
const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// When the block of `wfe` was cleared. While no webhook runs, a user may write any time: the clearance
/// counts from the end at the earliest, and at the latest from when the controller noticed it, see
/// [`is_cleared_in_future`].
pub fn cleared_at(wfe: &WorkflowExecution) -> Option<Timestamp> {
    let status = wfe.status.as_ref()?;
    let written = status.block_clearance.as_ref()?.cleared_at.0;
    let noticed = stored(wfe, ConditionType::ClearanceRecorded);
    let noticed = noticed.map(|it| it.last_transition_time.0);
    let noticed = noticed.filter(|it| written > after(*it, CLOCK_SKEW));
    let ended = status.completion_time.as_ref().map_or(written, |it| it.0);
    Some(noticed.unwrap_or(written).max(ended))
}

/// Whether the stored clearance has a time that is still to come.
pub fn is_cleared_in_future(wfe: &WorkflowExecution, now: Timestamp) -> bool {
    cleared_at(wfe).is_some_and(|at| at > after(now, CLOCK_SKEW))
}
