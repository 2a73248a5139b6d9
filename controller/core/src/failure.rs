//! Classifies a failure, and writes its summary for the operator.
//!
//! Reasons come from structured facts: container reason, exit code, condition reason. Never from
//! the text of a message.

use wfe_model::workflow_execution::FailureReason;

use crate::execution::{Cause, ContainerEnd, Facts, FailedTask, Waiting};

/// A classified failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The class of the failure.
    pub reason: FailureReason,
    /// What was found.
    pub message: String,
    /// Exit code of the container, if it failed.
    pub exit_code: Option<i32>,
    /// The task of a pipeline that failed.
    pub task: Option<FailedTask>,
    /// Whether a container of the workflow may have run.
    pub was_execution_failure: bool,
}

impl Failure {
    /// A failure without an exit code and without a failed task.
    pub fn new(reason: FailureReason, message: String, was_execution_failure: bool) -> Self {
        Self {
            reason,
            message,
            exit_code: None,
            task: None,
            was_execution_failure,
        }
    }
}

/// Classifies a failed execution. `began`: a container has started. `stored`: the waiting reason in
/// the status, since a Job that exceeds its deadline deletes its pods.
pub fn classify(facts: &Facts, began: bool, stored: Option<&Waiting>) -> Failure {
    let end = facts.container.as_ref();
    let ran = began || end.is_some_and(|end| end.started);
    let over_deadline = facts.over_deadline;
    let object_message = || {
        facts
            .message
            .clone()
            .unwrap_or_else(|| "the execution failed without a message".to_owned())
    };
    let what = facts.task.as_ref().map_or_else(
        || "the container".to_owned(),
        |task| match &task.step {
            Some(step) => format!("step {step} of task {}", task.name),
            None => format!("task {}", task.name),
        },
    );
    let of_object = |reason, message| Failure {
        task: facts.task.clone(),
        ..Failure::new(reason, message, ran)
    };
    let of_container = |reason, message, end: &ContainerEnd| Failure {
        exit_code: Some(end.exit_code),
        ..of_object(reason, message)
    };
    if let Some(end) = end.filter(|end| end.oom_killed) {
        let message = format!("{what} used more memory than its limit and was killed");
        return Failure {
            was_execution_failure: true,
            ..of_container(FailureReason::OOMKilled, message, end)
        };
    }
    // Evicted and preempted pods also report an exit code; the disruption is the cause.
    let disruption = facts.waiting.as_ref().or(stored);
    if let Some(disruption) = disruption.filter(|it| it.cause == Cause::Disrupted) {
        return of_object(FailureReason::ResourceExhausted, disruption.message.clone());
    }
    if facts.cancelled {
        let message = format!("cancelled by another client: {}", object_message());
        return of_object(FailureReason::Cancelled, message);
    }
    // A container that is killed at the deadline also reports an exit code; the deadline is the
    // cause.
    if over_deadline && ran {
        return of_object(FailureReason::DeadlineExceeded, object_message());
    }
    if let Some(end) = end {
        if !ran {
            let message = end.message.clone().unwrap_or_else(object_message);
            let message = format!("{what} could not be started: {}", message.trim());
            return of_container(FailureReason::ConfigurationError, message, end);
        }
        if end.exit_code != 0 {
            let message = end.message.as_deref();
            let message = message.map(|message| format!(": {}", message.trim()));
            let message = format!(
                "{what} ended with exit code {}{}",
                end.exit_code,
                message.unwrap_or_default()
            );
            return of_container(FailureReason::TaskFailed, message, end);
        }
    }
    // A later task of a pipeline may not start, although an earlier one ran. What is stored is older
    // than a start.
    let waiting = facts.waiting.as_ref();
    if let Some(waiting) = waiting.or(stored.filter(|_| !began)) {
        return of_object(waiting.cause.into(), waiting.message.clone());
    }
    if facts.pod_gone && !over_deadline {
        let message = "the pod was deleted before its container ended".to_owned();
        return Failure {
            // Whether a container ran is unknown.
            was_execution_failure: true,
            ..of_object(FailureReason::ExecutionDeleted, message)
        };
    }
    let reason = if over_deadline {
        FailureReason::DeadlineExceeded
    } else {
        FailureReason::Unknown
    };
    Failure {
        // Without evidence that no container ran, one may have run.
        was_execution_failure: true,
        ..of_object(reason, object_message())
    }
}

/// The failure of an execution that was deleted after its start timeout, by the `stored` cause.
/// `ran`: a container started while the execution was being deleted.
pub fn never_started(stored: Option<Waiting>, ran: bool) -> Failure {
    let waiting = stored.unwrap_or_else(|| Waiting {
        cause: Cause::NotStarted,
        message: "no container started in time".to_owned(),
    });
    Failure::new(waiting.cause.into(), waiting.message, ran)
}

/// The failure reason of an execution that never started, or lost its pod.
impl From<Cause> for FailureReason {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::ImageNotPulled => Self::ImagePullBackOff,
            Cause::ContainerConfigInvalid | Cause::VolumeNotMounted | Cause::DefinitionInvalid => {
                Self::ConfigurationError
            }
            Cause::Unschedulable
            | Cause::Suspended
            | Cause::QuotaExceeded
            | Cause::NodeRejected
            | Cause::Disrupted => Self::ResourceExhausted,
            Cause::PodRefused => Self::Forbidden,
            Cause::NotStarted | Cause::Stopping => Self::DeadlineExceeded,
            Cause::Other => Self::Unknown,
        }
    }
}

/// Some sentences for the operator: what happened, and what to do. `clear` is the command that
/// clears the block, if the failure blocks its target.
pub fn summary(
    failure: &Failure,
    workflow: &str,
    target: &str,
    execution: Option<&str>,
    clear: Option<&str>,
) -> String {
    let log = execution
        .map(|it| format!("read its log (kubectl logs {it}) and "))
        .unwrap_or_default();
    let (what, next) = match failure.reason {
        FailureReason::OOMKilled => {
            ("ran out of memory".to_owned(), "Raise the workflow's memory limit (execution.resources of its catalog entry, or of the step in its pipeline), and look at the target before you clear the block.".to_owned())
        }
        FailureReason::DeadlineExceeded if !failure.was_execution_failure => {
            ("was not started in time".to_owned(), format!("Nothing ran ({}): check the Events and quotas of the execution namespace, and the capacity of the nodes.", failure.message))
        }
        FailureReason::DeadlineExceeded => (
            "was stopped, because it did not end within its timeout".to_owned(),
            "Look at the target before you clear the block; a longer executionConfig.timeout, or execution.maxTimeout of its catalog entry, may be needed.".to_owned(),
        ),
        FailureReason::TaskFailed => {
            let code = failure.exit_code.map(|code| format!(" with exit code {code}")).unwrap_or_default();
            (format!("failed{code}"), format!("It may have changed the target in part: {log}look at the target before you clear the block."))
        }
        FailureReason::ImagePullBackOff
        | FailureReason::ConfigurationError
        | FailureReason::Forbidden
            if failure.was_execution_failure =>
        {
            ("was stopped, because a part of it could not start".to_owned(), format!("It may have changed the target in part ({}): look at the target before you clear the block.", failure.message))
        }
        FailureReason::ImagePullBackOff => {
            ("was not started, because its image or bundle cannot be pulled".to_owned(), format!("Nothing ran: check that it exists in its registry and that the cluster may pull it ({}).", failure.message))
        }
        FailureReason::ConfigurationError => {
            ("was not started, because its configuration is invalid".to_owned(), format!("Nothing ran: correct the configuration and create a new WorkflowExecution ({}).", failure.message))
        }
        FailureReason::ResourceExhausted if failure.was_execution_failure => {
            ("lost its pod before it ended".to_owned(), format!("It may have changed the target in part ({}): look at the target before you clear the block.", failure.message))
        }
        FailureReason::ResourceExhausted => {
            ("was not started, because the cluster has no room for it".to_owned(), format!("Nothing ran: add capacity or raise the quota ({}).", failure.message))
        }
        FailureReason::Forbidden => {
            ("was not started, because the API server refused the execution or its pod".to_owned(), format!("Nothing ran: grant the permission or change the policy that refuses it ({}).", failure.message))
        }
        FailureReason::UnsupportedEngine => {
            ("was not started, because its engine is not installed in this cluster".to_owned(), format!("Nothing ran: install the engine, or use a workflow for another engine ({}).", failure.message))
        }
        FailureReason::ServiceAccountNotAllowed => ("was not started, because its ServiceAccount may not run workflows".to_owned(), format!("Nothing ran: {}.", failure.message)),
        FailureReason::ExecutionDeleted => {
            ("was interrupted, because its execution or its pod was deleted".to_owned(), format!("It may have changed the target in part: look at the target before you clear the block ({}).", failure.message))
        }
        FailureReason::Cancelled if failure.was_execution_failure => {
            ("was cancelled while it ran".to_owned(), "It may have changed the target in part: look at the target before you clear the block.".to_owned())
        }
        FailureReason::Cancelled => ("was cancelled before it started".to_owned(), "Nothing ran.".to_owned()),
        FailureReason::Unknown if !failure.was_execution_failure => {
            ("was not started".to_owned(), format!("Nothing ran ({}): check the Events of the execution namespace.", failure.message))
        }
        FailureReason::Unknown => {
            ("failed for an unknown reason".to_owned(), format!("It may have changed the target in part: look at the target before you clear the block ({}).", failure.message))
        }
    };
    let clear = clear.map(|it| format!(" The target is blocked until you clear it: {it}"));
    let clear = clear.unwrap_or_default();
    format!("The workflow {workflow} on {target} {what}. {next}{clear}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn facts(reason: &str, container: Option<(i32, &str, bool)>, waiting: Option<Cause>) -> Facts {
        Facts {
            reason: Some(reason.to_owned()),
            message: Some("message of the Job".to_owned()),
            over_deadline: reason == "DeadlineExceeded",
            container: container.map(|(exit_code, reason, started)| ContainerEnd {
                exit_code,
                oom_killed: reason == "OOMKilled",
                message: None,
                started,
            }),
            waiting: waiting.map(waiting_for),
            ..Facts::default()
        }
    }

    fn waiting_for(cause: Cause) -> Waiting {
        Waiting {
            cause,
            message: "why".to_owned(),
        }
    }

    /// BR-WE-012
    #[rstest]
    #[case(facts("BackoffLimitExceeded", Some((3, "Error", true)), None), true, FailureReason::TaskFailed, Some(3), true)]
    #[case(facts("BackoffLimitExceeded", Some((137, "OOMKilled", true)), None), true, FailureReason::OOMKilled, Some(137), true)]
    #[case(facts("BackoffLimitExceeded", Some((128, "StartError", false)), None), false, FailureReason::ConfigurationError, Some(128), false)]
    #[case(
        facts("DeadlineExceeded", None, None),
        true,
        FailureReason::DeadlineExceeded,
        None,
        true
    )]
    #[case(facts("DeadlineExceeded", Some((143, "Error", true)), None), true, FailureReason::DeadlineExceeded, None, true)]
    #[case(
        facts("DeadlineExceeded", None, Some(Cause::ImageNotPulled)),
        false,
        FailureReason::ImagePullBackOff,
        None,
        false
    )]
    #[case(
        facts("DeadlineExceeded", None, Some(Cause::Unschedulable)),
        false,
        FailureReason::ResourceExhausted,
        None,
        false
    )]
    #[case(
        facts("DeadlineExceeded", None, Some(Cause::ContainerConfigInvalid)),
        false,
        FailureReason::ConfigurationError,
        None,
        false
    )]
    #[case(
        facts("BackoffLimitExceeded", None, None),
        false,
        FailureReason::Unknown,
        None,
        true
    )]
    fn classify_facts_returns_reason_exit_code_and_whether_it_ran(
        #[case] facts: Facts,
        #[case] began: bool,
        #[case] reason: FailureReason,
        #[case] exit_code: Option<i32>,
        #[case] was_execution_failure: bool,
    ) {
        let failure = classify(&facts, began, None);
        assert_eq!(
            (
                failure.reason,
                failure.exit_code,
                failure.was_execution_failure
            ),
            (reason, exit_code, was_execution_failure)
        );
        let summary = summary(&failure, "w", "a/B/c", Some("job/x"), None);
        assert!(
            summary.starts_with("The workflow w on a/B/c ") && summary.ends_with(['.', ')']),
            "{summary}"
        );
    }

    /// BR-WE-012
    #[rstest]
    fn summary_says_nothing_ran_unless_a_container_ran(
        #[values(
            Cause::ImageNotPulled,
            Cause::VolumeNotMounted,
            Cause::PodRefused,
            Cause::Unschedulable,
            Cause::Other,
            Cause::NotStarted
        )]
        cause: Cause,
        #[values(true, false)] ran: bool,
    ) {
        let waiting = waiting_for(cause);
        let failure = never_started(Some(waiting), ran);
        let summary = summary(&failure, "w", "a/B/c", None, None);
        assert_eq!(summary.contains("Nothing ran"), !ran, "{summary}");
        let looks = summary.to_lowercase().contains("look at the target");
        assert_eq!(looks, ran, "{summary}");
    }

    /// BR-WE-012: a container without a known end may have run.
    #[test]
    fn classify_unknown_container_state_counts_as_execution_failure() {
        let lost = facts(
            "BackoffLimitExceeded",
            Some((137, "ContainerStatusUnknown", true)),
            None,
        );
        let failure = classify(&lost, false, None);
        assert!(failure.was_execution_failure);
        let never = facts("BackoffLimitExceeded", Some((137, "Error", false)), None);
        assert!(
            classify(&never, true, None).was_execution_failure,
            "a container had started"
        );
    }

    /// BR-WE-012: `kubectl delete pod --force` leaves no trace of the container.
    #[test]
    fn classify_missing_pod_is_a_deleted_execution() {
        let mut facts = facts("BackoffLimitExceeded", None, None);
        facts.pod_gone = true;
        let failure = classify(&facts, true, None);
        assert_eq!(
            (failure.reason, failure.was_execution_failure),
            (FailureReason::ExecutionDeleted, true)
        );
        assert!(failure.message.contains("pod was deleted"));
    }

    /// BR-WE-012
    #[test]
    fn classify_stored_disruption_outweighs_exit_code() {
        let evicted = waiting_for(Cause::Disrupted);
        let killed = facts("BackoffLimitExceeded", Some((137, "Error", true)), None);
        let failure = classify(&killed, true, Some(&evicted));
        assert_eq!(
            (failure.reason, failure.was_execution_failure),
            (FailureReason::ResourceExhausted, true)
        );
        let summary = summary(&failure, "w", "a/B/c", None, None);
        assert!(summary.contains("look at the target"), "{summary}");
    }

    /// BR-WE-012: the image of a pipeline's second task cannot be pulled.
    #[test]
    fn classify_later_task_that_does_not_start_keeps_its_cause() {
        let facts = facts("Failed", None, Some(Cause::ImageNotPulled));
        let failure = classify(&facts, true, None);
        assert_eq!(
            (failure.reason, failure.was_execution_failure),
            (FailureReason::ImagePullBackOff, true)
        );
        let summary = summary(&failure, "w", "a/B/c", None, None);
        assert!(summary.contains("look at the target"), "{summary}");
    }

    /// BR-WE-012: the pod is gone after the Job's deadline.
    #[test]
    fn classify_stored_waiting_reason_outweighs_deadline() {
        let stored = Waiting {
            cause: Cause::ImageNotPulled,
            message: "ErrImagePull: not found".to_owned(),
        };
        let failure = classify(&facts("DeadlineExceeded", None, None), false, Some(&stored));
        assert_eq!(
            (failure.reason, failure.was_execution_failure),
            (FailureReason::ImagePullBackOff, false)
        );
        assert_eq!(failure.message, "ErrImagePull: not found");
    }
}
