//! From facts to the reason of a failure, and the words for it.
//!
//! Reasons come from structured facts: container reason, exit code, condition reason. Never from
//! searching in a message.

use wfe_model::workflow_execution::FailureReason;

use crate::execution::{Cause, Facts, Waiting};

/// What a failure is.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The class.
    pub reason: FailureReason,
    /// What was found.
    pub message: String,
    /// Of the container that failed.
    pub exit_code: Option<i32>,
    /// Whether a container of the workflow may have run.
    pub was_execution_failure: bool,
}

/// Judges the facts of an ended execution. `began`: a container was seen to have started.
/// `waited`: the last waiting fact that was stored, since an execution over its deadline deletes
/// its pods.
pub fn judge(facts: &Facts, began: bool, waited: Option<&Waiting>) -> Failure {
    let end = facts.container.as_ref();
    let over_deadline = facts.over_deadline;
    let said = || {
        facts
            .message
            .clone()
            .unwrap_or_else(|| "the execution failed without a message".to_owned())
    };
    if let Some(end) = end.filter(|end| end.oom_killed) {
        return Failure {
            reason: FailureReason::OOMKilled,
            message: "the container used more memory than its limit and was killed".to_owned(),
            exit_code: Some(end.exit_code),
            was_execution_failure: true,
        };
    }
    // Whoever loses its node or makes room has an exit code, too.
    let taken = facts.waiting.as_ref().or(waited);
    if let Some(taken) = taken.filter(|it| it.cause == Cause::Disrupted) {
        return Failure {
            reason: FailureReason::ResourceExhausted,
            message: taken.message.clone(),
            exit_code: None,
            was_execution_failure: began || end.is_some_and(|end| end.started),
        };
    }
    // A container that is ended for the deadline has an exit code, too: the deadline is the reason.
    if over_deadline && (began || end.is_some_and(|end| end.started)) {
        return Failure {
            reason: FailureReason::DeadlineExceeded,
            message: said(),
            exit_code: None,
            was_execution_failure: true,
        };
    }
    if let Some(end) = end {
        if !end.started && !began {
            let message = end.message.clone().unwrap_or_else(said);
            return Failure {
                reason: FailureReason::ConfigurationError,
                message: format!("the container could not be started: {}", message.trim()),
                exit_code: Some(end.exit_code),
                was_execution_failure: false,
            };
        }
        if end.exit_code != 0 && (end.started || began) {
            let message = end
                .message
                .as_deref()
                .map(|message| format!(": {}", message.trim()))
                .unwrap_or_default();
            return Failure {
                reason: FailureReason::TaskFailed,
                message: format!(
                    "the container ended with exit code {}{message}",
                    end.exit_code
                ),
                exit_code: Some(end.exit_code),
                was_execution_failure: true,
            };
        }
    }
    if let Some(waiting) = facts.waiting.as_ref().or(waited).filter(|_| !began) {
        return Failure {
            reason: waiting.cause.into(),
            message: waiting.message.clone(),
            exit_code: None,
            was_execution_failure: false,
        };
    }
    Failure {
        reason: if over_deadline {
            FailureReason::DeadlineExceeded
        } else {
            FailureReason::Unknown
        },
        message: said(),
        exit_code: None,
        // Nothing says that it did not run.
        was_execution_failure: true,
    }
}

/// An execution that was given up, since no container started in time; for the cause that was stored
/// then. `ran`: a container did start, while the execution was being deleted.
pub fn never_started(waited: Option<Waiting>, ran: bool) -> Failure {
    let waited = waited.unwrap_or_else(|| Waiting {
        cause: Cause::NotStarted,
        message: "no container started in time".to_owned(),
    });
    Failure {
        reason: waited.cause.into(),
        message: waited.message,
        exit_code: None,
        was_execution_failure: ran,
    }
}

/// The class of failure of an execution that never started, or was taken away.
impl From<Cause> for FailureReason {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::ImageNotPulled => Self::ImagePullBackOff,
            Cause::ContainerConfigInvalid | Cause::VolumeNotMounted => Self::ConfigurationError,
            Cause::Unschedulable
            | Cause::QuotaExceeded
            | Cause::NodeRejected
            | Cause::Disrupted => Self::ResourceExhausted,
            Cause::PodRefused => Self::Forbidden,
            Cause::NotStarted => Self::DeadlineExceeded,
            Cause::Other => Self::Unknown,
        }
    }
}

/// One or two sentences for the operator, with the next thing to do.
pub fn summary(failure: &Failure, workflow: &str, target: &str, execution: Option<&str>) -> String {
    let log = execution
        .map(|it| format!("read its log (kubectl logs {it})"))
        .unwrap_or_default();
    let (what, next) = match failure.reason {
        FailureReason::OOMKilled => {
            ("ran out of memory".to_owned(), "Raise the memory limit in the workflow's execution.resources, and look at the target before you clear the block.".to_owned())
        }
        FailureReason::DeadlineExceeded if !failure.was_execution_failure => {
            ("was not started in time".to_owned(), format!("Nothing ran ({}): look at the events of the execution namespace, and whether its nodes and quotas have room.", failure.message))
        }
        FailureReason::DeadlineExceeded => (
            "did not end within its timeout and was stopped in the middle".to_owned(),
            "Look at the target before you clear the block; a longer executionConfig.timeout may be needed.".to_owned(),
        ),
        FailureReason::TaskFailed => {
            let code = failure.exit_code.map(|code| format!(" with exit code {code}")).unwrap_or_default();
            (format!("failed{code}"), format!("Part of it may have been done: {log} and look at the target before you clear the block."))
        }
        FailureReason::ImagePullBackOff
        | FailureReason::ConfigurationError
        | FailureReason::Forbidden
            if failure.was_execution_failure =>
        {
            ("started while it was being given up".to_owned(), format!("It may have run in part: look at the target before you clear the block. What kept it before: {}.", failure.message))
        }
        FailureReason::ImagePullBackOff => {
            ("was not started, because its image cannot be pulled".to_owned(), "Nothing ran; check that the image is in the registry and that the node may pull it.".to_owned())
        }
        FailureReason::ConfigurationError => {
            ("was not run, because its configuration is wrong".to_owned(), format!("Nothing ran; correct this and create a new one: {}.", failure.message))
        }
        FailureReason::ResourceExhausted if failure.was_execution_failure => {
            ("lost its place in the cluster in the middle".to_owned(), format!("It may have run in part ({}): look at the target before you clear the block.", failure.message))
        }
        FailureReason::ResourceExhausted => {
            ("was not started, because there is no room for it".to_owned(), format!("Nothing ran; {}.", failure.message))
        }
        FailureReason::Forbidden => {
            ("was not started, because the cluster refuses it".to_owned(), format!("Nothing ran; the API server said: {}", failure.message))
        }
        FailureReason::UnsupportedEngine => {
            ("was not run, because its engine is not installed in this cluster".to_owned(), "Install Tekton, or use a workflow for engine job.".to_owned())
        }
        FailureReason::ServiceAccountNotAllowed => ("was not run".to_owned(), format!("{}.", failure.message)),
        FailureReason::ExecutionDeleted => {
            ("was deleted by somebody while it ran".to_owned(), "It may have run in part: look at the target before you clear the block.".to_owned())
        }
        FailureReason::Cancelled if failure.was_execution_failure => {
            ("was cancelled while it ran".to_owned(), "It may have run in part: look at the target before you clear the block.".to_owned())
        }
        FailureReason::Cancelled => ("was cancelled before it ran".to_owned(), "Nothing ran.".to_owned()),
        FailureReason::Unknown if !failure.was_execution_failure => {
            ("was not started".to_owned(), format!("Nothing ran; what is known: {}.", failure.message))
        }
        FailureReason::Unknown => {
            ("failed for a reason that is not known".to_owned(), format!("It may have run in part: look at the target before you clear the block ({}).", failure.message))
        }
    };
    format!("The workflow {workflow} on {target} {what}. {next}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::execution::ContainerEnd;

    fn facts(reason: &str, container: Option<(i32, &str, bool)>, waiting: Option<Cause>) -> Facts {
        Facts {
            reason: Some(reason.to_owned()),
            message: Some("the Job's own words".to_owned()),
            over_deadline: reason == "DeadlineExceeded",
            container: container.map(|(exit_code, reason, started)| ContainerEnd {
                exit_code,
                oom_killed: reason == "OOMKilled",
                message: None,
                started,
            }),
            waiting: waiting.map(why),
        }
    }

    fn why(cause: Cause) -> Waiting {
        Waiting {
            cause,
            message: "why".to_owned(),
        }
    }

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
    fn br_we_012_facts_have_one_reason(
        #[case] facts: Facts,
        #[case] began: bool,
        #[case] reason: FailureReason,
        #[case] exit_code: Option<i32>,
        #[case] was_execution_failure: bool,
    ) {
        let failure = judge(&facts, began, None);
        assert_eq!(
            (
                failure.reason,
                failure.exit_code,
                failure.was_execution_failure
            ),
            (reason, exit_code, was_execution_failure)
        );
        let summary = summary(&failure, "w", "a/B/c", Some("job/x"));
        assert!(
            summary.starts_with("The workflow w on a/B/c ") && summary.ends_with(['.', ')']),
            "{summary}"
        );
    }

    #[rstest]
    fn br_we_012_what_an_operator_reads_agrees_with_whether_it_ran(
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
        let waited = why(cause);
        let failure = never_started(Some(waited), ran);
        let summary = summary(&failure, "w", "a/B/c", None);
        assert_eq!(summary.contains("Nothing ran"), !ran, "{summary}");
        let looks = summary.to_lowercase().contains("look at the target");
        assert_eq!(looks, ran, "{summary}");
    }

    #[test]
    fn br_we_012_a_container_whose_fate_nobody_knows_may_have_run() {
        let lost = facts(
            "BackoffLimitExceeded",
            Some((137, "ContainerStatusUnknown", true)),
            None,
        );
        let failure = judge(&lost, false, None);
        assert!(failure.was_execution_failure);
        let never = facts("BackoffLimitExceeded", Some((137, "Error", false)), None);
        assert!(
            judge(&never, true, None).was_execution_failure,
            "it was seen to run"
        );
    }

    #[test]
    fn br_we_012_a_stored_disruption_outlives_the_pod_and_what_the_container_said() {
        let evicted = why(Cause::Disrupted);
        let killed = facts("BackoffLimitExceeded", Some((137, "Error", true)), None);
        let failure = judge(&killed, true, Some(&evicted));
        assert_eq!(
            (failure.reason, failure.was_execution_failure),
            (FailureReason::ResourceExhausted, true)
        );
        let summary = summary(&failure, "w", "a/B/c", None);
        assert!(summary.contains("look at the target"), "{summary}");
    }

    #[test]
    fn br_we_012_a_stored_waiting_fact_outlives_the_pod() {
        let waited = Waiting {
            cause: Cause::ImageNotPulled,
            message: "ErrImagePull: not found".to_owned(),
        };
        let failure = judge(&facts("DeadlineExceeded", None, None), false, Some(&waited));
        assert_eq!(
            (failure.reason, failure.was_execution_failure),
            (FailureReason::ImagePullBackOff, false)
        );
        assert_eq!(failure.message, "ErrImagePull: not found");
    }
}
