//! From facts to the reason of a failure, and the words for it.
//!
//! Reasons come from structured facts: container reason, exit code, condition reason. Never from
//! searching in a message.

use wfe_model::workflow_execution::FailureReason;

use crate::execution::{Facts, Waiting};

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
    let over_deadline = facts.reason.as_deref() == Some("DeadlineExceeded");
    let said = || {
        facts
            .message
            .clone()
            .unwrap_or_else(|| "the execution failed without a message".to_owned())
    };
    if let Some(end) = end.filter(|end| end.reason.as_deref() == Some("OOMKilled")) {
        return Failure {
            reason: FailureReason::OOMKilled,
            message: "the container used more memory than its limit and was killed".to_owned(),
            exit_code: Some(end.exit_code),
            was_execution_failure: true,
        };
    }
    // Whoever loses its node or makes room has an exit code, too.
    let taken = facts.waiting.as_ref().or(waited);
    if let Some(taken) = taken.filter(|it| is_disruption(&it.reason)) {
        return Failure {
            reason: FailureReason::ResourceExhausted,
            message: format!("{}: {}", taken.reason, taken.message),
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
            reason: reason_of_waiting(&waiting.reason),
            message: format!("{}: {}", waiting.reason, waiting.message),
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

/// The word of an execution that did not start in time, and nobody can say why.
pub const NOT_STARTED: &str = "NotStarted";

/// An execution that was given up, since no container started in time; for the reason that was
/// stored then. `ran`: one did start, while it was being deleted.
pub fn never_started(waited: Option<Waiting>, ran: bool) -> Failure {
    let (reason, message) = match waited {
        Some(waited) if waited.reason == NOT_STARTED => {
            (FailureReason::DeadlineExceeded, waited.message)
        }
        Some(waited) => {
            let message = format!("{}: {}", waited.reason, waited.message);
            (reason_of_waiting(&waited.reason), message)
        }
        None => (
            FailureReason::DeadlineExceeded,
            "no container started in time".to_owned(),
        ),
    };
    Failure {
        reason,
        message,
        exit_code: None,
        was_execution_failure: ran,
    }
}

/// The Job's Event for a pod that it could not make.
pub const FAILED_CREATE: &str = "FailedCreate";
/// The same, for the quota of the namespace.
pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";

/// Whether a pod's word says that the cluster takes it away (reasons of the condition
/// `DisruptionTarget`).
pub fn is_disruption(reason: &str) -> bool {
    matches!(
        reason,
        "PreemptionByScheduler"
            | "DeletionByTaintManager"
            | "EvictionByEvictionAPI"
            | "DeletionByPodGC"
            | "TerminationByKubelet"
    )
}

/// Whether a pod's word says that its node has no place for it.
fn is_turned_away(reason: &str) -> bool {
    reason.starts_with("OutOf")
        || matches!(
            reason,
            "NodeAffinity" | "UnexpectedAdmissionError" | "Evicted"
        )
}

fn reason_of_waiting(reason: &str) -> FailureReason {
    match reason {
        reason if is_disruption(reason) || is_turned_away(reason) => {
            FailureReason::ResourceExhausted
        }
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => FailureReason::ImagePullBackOff,
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "FailedMount"
        | "FailedAttachVolume" => FailureReason::ConfigurationError,
        "Unschedulable" | QUOTA_EXCEEDED => FailureReason::ResourceExhausted,
        FAILED_CREATE => FailureReason::Forbidden,
        NOT_STARTED => FailureReason::DeadlineExceeded,
        _ => FailureReason::Unknown,
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

    fn facts(reason: &str, container: Option<(i32, &str, bool)>, waiting: Option<&str>) -> Facts {
        Facts {
            reason: Some(reason.to_owned()),
            message: Some("the Job's own words".to_owned()),
            container: container.map(|(exit_code, reason, started)| ContainerEnd {
                exit_code,
                reason: Some(reason.to_owned()),
                message: None,
                started,
            }),
            waiting: waiting.map(|reason| Waiting {
                reason: reason.to_owned(),
                message: "why".to_owned(),
            }),
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
        facts("DeadlineExceeded", None, Some("ImagePullBackOff")),
        false,
        FailureReason::ImagePullBackOff,
        None,
        false
    )]
    #[case(
        facts("DeadlineExceeded", None, Some("Unschedulable")),
        false,
        FailureReason::ResourceExhausted,
        None,
        false
    )]
    #[case(
        facts("DeadlineExceeded", None, Some("CreateContainerConfigError")),
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
            "ErrImagePull",
            "FailedMount",
            "FailedCreate",
            "Unschedulable",
            "SomethingNew",
            NOT_STARTED
        )]
        reason: &str,
        #[values(true, false)] ran: bool,
    ) {
        let waited = Waiting {
            reason: reason.to_owned(),
            message: "why".to_owned(),
        };
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
        let evicted = Waiting {
            reason: "EvictionByEvictionAPI".to_owned(),
            message: "evicting".to_owned(),
        };
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
            reason: "ErrImagePull".to_owned(),
            message: "not found".to_owned(),
        };
        let failure = judge(&facts("DeadlineExceeded", None, None), false, Some(&waited));
        assert_eq!(
            (failure.reason, failure.was_execution_failure),
            (FailureReason::ImagePullBackOff, false)
        );
        assert_eq!(failure.message, "ErrImagePull: not found");
    }
}
