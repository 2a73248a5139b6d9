//! How a status changes: conditions, phases, times.

use std::time::Duration;

use crate::condition::{ConditionType, Reason};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use wfe_model::workflow_execution::{TriState, WorkflowExecution, WorkflowExecutionStatus};

/// A status on its way to the API server.
#[derive(Clone, Debug)]
pub struct Change {
    status: WorkflowExecutionStatus,
    generation: Option<i64>,
    now: Time,
}

impl Change {
    /// Begins with what is stored.
    pub fn of(wfe: &WorkflowExecution, now: Timestamp) -> Self {
        let mut status = wfe.status.clone().unwrap_or_default();
        status.observed_generation = wfe.metadata.generation;
        Self {
            status,
            generation: wfe.metadata.generation,
            now: time(now),
        }
    }

    /// Sets a condition, since now unless it was so already.
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

    /// Sets a condition, since `since` unless it was so already.
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

    /// A condition as it is now.
    pub fn stored(&self, kind: ConditionType) -> Option<&Condition> {
        self.status
            .conditions
            .iter()
            .find(|it| it.type_ == kind.as_str())
    }

    /// Changes whatever else.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut WorkflowExecutionStatus)) -> Self {
        change(&mut self.status);
        self
    }

    /// What to store; none when nothing would change.
    pub fn unless_stored(self, wfe: &WorkflowExecution) -> Option<WorkflowExecutionStatus> {
        (wfe.status.as_ref() != Some(&self.status)).then_some(self.status)
    }

    /// What to store.
    pub fn into_status(self) -> WorkflowExecutionStatus {
        self.status
    }
}

/// A moment as statuses have it: whole seconds, since that is what Kubernetes keeps.
pub fn time(timestamp: Timestamp) -> Time {
    let seconds = TimestampRound::new()
        .smallest(Unit::Second)
        .mode(RoundMode::Floor);
    Time(timestamp.round(seconds).unwrap_or(timestamp))
}

/// `span` after `moment`: what ends after the end of time never ends.
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

/// Whether a condition of the stored status is True.
pub fn holds(wfe: &WorkflowExecution, kind: ConditionType) -> bool {
    stored(wfe, kind).is_some_and(|it| it.status == TriState::True.as_str())
}
