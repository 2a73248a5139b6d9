//! Command-line flags; every flag has an environment variable.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand};
use jiff::SignedDuration;
use wfe_core::certificates::Lifetimes;
use wfe_model::duration::ExecutionTimeout;
use wfe_model::workflow::{QUANTITY, Resources};
use wfe_peers::client::Pace;
use wfe_peers::flags::{CatalogArgs, DataStorageArgs};
use wfe_process::{ExecutionArgs, ProcessArgs};

use crate::platform::PlatformArgs;
use crate::slots::MaxRunning;

/// Runs WorkflowExecutions as Kubernetes Jobs or Tekton PipelineRuns.
#[derive(Debug, Parser)]
#[command(name = "wfe-controller", version)]
pub struct Args {
    /// Subcommand; without one the controller runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the controller.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinitions as YAML, for `kubectl apply -f -`.
    Crds,
    /// Remove the controller's finalizer from every WorkflowExecution of a namespace (for
    /// uninstalling).
    ///
    /// Prints for each WorkflowExecution what is lost: an execution that still runs, a block that
    /// was not cleared, audit events that were not delivered. Stop the controller first.
    Release {
        /// Namespace of the WorkflowExecutions.
        #[arg(long)]
        namespace: String,
    },
    /// Clear the block of a target whose blocking WorkflowExecution is gone (its namespace was
    /// deleted, or its finalizer removed).
    ///
    /// Takes the verb `release` on workflowexecutions in that namespace, and `get` and `update` on
    /// leases in the execution namespace. The block of a WorkflowExecution that exists is cleared
    /// there, by `status.blockClearanceRequest`.
    ClearTarget {
        /// The target, as `[namespace/]kind/name`.
        target: String,
        /// What was found at the target, at least 10 characters.
        #[arg(long)]
        reason: String,
        /// Namespace of the locks.
        #[arg(
            long,
            env = "WFE_EXECUTION_NAMESPACE",
            default_value = "kubernaut-workflows"
        )]
        execution_namespace: String,
    },
    /// Explain why a WorkflowExecution has not run, or what keeps a target: the cause, the object,
    /// since when, until when, and the command that changes it.
    ///
    /// Reads WorkflowExecutions of all namespaces, and Leases, Jobs, PipelineRuns and pods of the
    /// execution namespace.
    Why {
        /// A target as `[namespace/]kind/name`, or the name of a WorkflowExecution.
        subject: String,
        /// Namespace of the WorkflowExecution.
        #[arg(long, short = 'n', default_value = "default")]
        namespace: String,
        /// Namespace of the locks.
        #[arg(
            long,
            env = "WFE_EXECUTION_NAMESPACE",
            default_value = "kubernaut-workflows"
        )]
        execution_namespace: String,
        /// As the controller's.
        #[command(flatten)]
        limits: Box<LimitArgs>,
    },
    /// Print the audit trail of a remediation as a table, or verify an audit file.
    Audit {
        /// Source of the audit trail: an audit file or the URL of Data Storage.
        source: String,
        /// Correlation id: name of the RemediationRequest, else of the WorkflowExecution.
        #[arg(long, required_unless_present = "verify")]
        correlation_id: Option<String>,
        /// Check that no line of the audit file, or of the renamed ones beside it, was changed,
        /// removed or added, and print the hash of the last line.
        #[arg(long, conflicts_with = "correlation_id")]
        verify: bool,
        /// Hash that a line must have, as the controller has logged it: then none was removed before
        /// or with that line.
        #[arg(long, requires = "verify")]
        expect: Option<String>,
        /// PEM file with the certificate authority of Data Storage (default: the system's).
        #[arg(long, env = "WFE_DATA_STORAGE_CA")]
        data_storage_ca: Option<PathBuf>,
        /// File with the bearer token for Data Storage.
        #[arg(long, env = "WFE_DATA_STORAGE_TOKEN_FILE")]
        data_storage_token_file: Option<PathBuf>,
        /// Send the token also to a URL with http://.
        #[arg(long, env = "WFE_DATA_STORAGE_PLAIN_HTTP")]
        data_storage_plain_http: bool,
    },
}

/// Flags of the controller.
#[derive(ClapArgs, Clone, Debug)]
pub struct RunArgs {
    /// What is executed, and where.
    #[command(flatten)]
    pub execution: ExecutionArgs,
    /// Where the workflow catalog is.
    #[command(flatten)]
    pub catalog: CatalogArgs,
    /// Namespace that is watched for WorkflowExecutions (default: all); repeatable, or several
    /// separated by commas.
    #[arg(long, env = "WFE_WATCH_NAMESPACE", value_delimiter = ',')]
    pub watch_namespace: Vec<String>,
    /// File to which audit events are appended without --data-storage-url, one JSON object per
    /// line; - for standard output. At 100 MiB the file is renamed to FILE.1, FILE.2 and so on; no
    /// file is deleted.
    #[arg(
        long,
        env = "WFE_AUDIT_FILE",
        default_value = "/var/lib/wfe/audit.jsonl",
        conflicts_with = "data_storage_url"
    )]
    pub audit_file: PathBuf,
    /// Where Data Storage is.
    #[command(flatten)]
    pub data_storage: DataStorageArgs,
    /// Deadline of a request with audit events to Data Storage, longer than Data Storage's own of 30s. After a start
    /// the events of an earlier process are asked for when its requests have passed this deadline.
    #[arg(long, env = "WFE_DATA_STORAGE_TIMEOUT", default_value = "35s", value_parser = positive)]
    pub data_storage_timeout: Duration,
    /// Reconcilers that connect the controller to Kubernaut.
    #[command(flatten)]
    pub platform: PlatformArgs,
    /// Times and limits.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Number of executions that may run at the same time; 0: any number.
    #[arg(long, env = "WFE_MAX_RUNNING", default_value_t = 0)]
    pub max_running: u32,
    /// Number of executions of WorkflowExecutions in one namespace that may run at the same time; 0:
    /// any number.
    #[arg(long, env = "WFE_MAX_RUNNING_PER_NAMESPACE", default_value_t = 0)]
    pub max_running_per_namespace: u32,
    /// Requests per second to the API server in the long run.
    #[arg(long, env = "WFE_KUBE_QPS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub kube_qps: u32,
    /// Requests that may be sent at once after a time of rest.
    #[arg(long, env = "WFE_KUBE_BURST", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub kube_burst: u32,
    /// Number of WorkflowExecutions that are reconciled concurrently.
    #[arg(long, env = "WFE_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub concurrency: u16,
    /// Whether only one of several controllers decides; =false for a single one.
    #[arg(
        long,
        env = "WFE_LEADER_ELECT",
        default_value_t = true,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub leader_elect: bool,
    /// Name of the Lease by which the leader is elected.
    #[arg(long, env = "WFE_LEASE_NAME", default_value = "wfe-controller")]
    pub lease_name: String,
    /// Namespace of that Lease (default: the controller's own).
    #[arg(long, env = "WFE_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// The webhook's certificate.
    #[command(flatten)]
    pub certificates: CertificateArgs,
    /// Logging, health and metrics flags.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// The webhook's certificate, where the controller makes it.
#[derive(ClapArgs, Clone, Debug)]
pub struct CertificateArgs {
    /// Secret in the controller's own namespace in which the leader keeps the webhook's certificate
    /// and the authority that signs it (default: another program makes the certificate). It must
    /// exist.
    #[arg(long, env = "WFE_CERTIFICATE_SECRET")]
    pub certificate_secret: Option<String>,
    /// Service of the webhook, in the controller's own namespace, for which that certificate is.
    #[arg(long, env = "WFE_CERTIFICATE_SERVICE", default_value = "wfe-webhook")]
    pub certificate_service: String,
    /// Name of the webhook configurations, one mutating and one validating, that get the authority.
    #[arg(long, env = "WFE_WEBHOOK_CONFIGURATION", default_value = "wfe-webhook")]
    pub webhook_configuration: String,
    /// Lifetime of that certificate.
    #[arg(long, env = "WFE_CERTIFICATE_DURATION", default_value = "8760h", value_parser = positive)]
    pub certificate_duration: Duration,
    /// It is renewed this long before it ends.
    #[arg(long, env = "WFE_CERTIFICATE_RENEW_BEFORE", default_value = "720h", value_parser = positive)]
    pub certificate_renew_before: Duration,
    /// Lifetime of the authority, which is renewed before a certificate would outlive it.
    #[arg(long, env = "WFE_AUTHORITY_DURATION", default_value = "87600h", value_parser = positive)]
    pub authority_duration: Duration,
}

impl CertificateArgs {
    /// The lifetimes of certificate and authority.
    pub fn lifetimes(&self) -> Lifetimes {
        let signed = |it: Duration| SignedDuration::try_from(it).unwrap_or(SignedDuration::MAX);
        Lifetimes {
            certificate: signed(self.certificate_duration),
            renew_before: signed(self.certificate_renew_before),
            authority: signed(self.authority_duration),
        }
    }

    /// Checks what clap cannot.
    pub fn check(&self) -> Result<()> {
        let (duration, renew_before) = (self.certificate_duration, self.certificate_renew_before);
        ensure!(
            renew_before < duration,
            "--certificate-renew-before: must be shorter than --certificate-duration"
        );
        ensure!(
            self.authority_duration >= 2 * (duration + renew_before),
            "--authority-duration: must be at least twice --certificate-duration and --certificate-renew-before together"
        );
        Ok(())
    }
}

/// Times and limits of executions.
#[derive(ClapArgs, Clone, Debug)]
pub struct LimitArgs {
    /// Time for which the Job of a succeeded execution is kept.
    #[arg(long, env = "WFE_RETENTION", default_value = "10m", value_parser = duration)]
    pub retention: Duration,
    /// Time for which the Job of a failed execution is kept, for diagnosis.
    #[arg(long, env = "WFE_RETENTION_FAILED", default_value = "24h", value_parser = duration)]
    pub retention_failed: Duration,
    /// Cooldown: time after a success in which the same workflow does not run again on the target.
    #[arg(long, env = "WFE_COOLDOWN", default_value = "5m", value_parser = duration)]
    pub cooldown: Duration,
    /// Backoff of a target after an execution failed before a container started; doubles with each
    /// such failure in a row.
    #[arg(long, env = "WFE_BACKOFF_BASE", default_value = "1m", value_parser = duration)]
    pub backoff_base: Duration,
    /// Maximum backoff.
    #[arg(long, env = "WFE_BACKOFF_MAX", default_value = "10m", value_parser = duration)]
    pub backoff_max: Duration,
    /// Number of such failures in a row after which the target is blocked until a user clears it.
    #[arg(long, env = "WFE_MAX_CONSECUTIVE_FAILURES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_consecutive_failures: u32,
    /// Requests and limits of Jobs, as JSON, for resources that the catalog entry does not name. Memory
    /// must have a limit.
    #[arg(
        long,
        env = "WFE_DEFAULT_RESOURCES",
        default_value = r#"{"requests":{"cpu":"50m","memory":"64Mi","ephemeral-storage":"64Mi"},"limits":{"cpu":"1","memory":"512Mi","ephemeral-storage":"1Gi"}}"#,
        value_parser = resources
    )]
    pub default_resources: Resources,
    /// Time after which an ended WorkflowExecution is deleted, with its Job, if its audit trail is
    /// delivered and its target is not blocked by it; 0s: never. Takes the verb `delete` on
    /// workflowexecutions.
    #[arg(long, env = "WFE_TTL_AFTER_FINISHED", default_value = "0s", value_parser = duration)]
    pub ttl_after_finished: Duration,
    /// Number of WorkflowExecutions that may wait for one target; the next one is skipped. 0: any
    /// number.
    #[arg(long, env = "WFE_MAX_WAITING_PER_TARGET", default_value_t = 64)]
    pub max_waiting_per_target: u32,
    /// Time within which a container of an execution must start; after it the execution is deleted
    /// and fails.
    #[arg(long, env = "WFE_START_TIMEOUT", default_value = "5m", value_parser = positive)]
    pub start_timeout: Duration,
    /// Timeout of WorkflowExecutions without executionConfig.timeout.
    #[arg(long, env = "WFE_DEFAULT_TIMEOUT", default_value = "30m", value_parser = timeout)]
    pub default_timeout: Duration,
}

impl RunArgs {
    /// How many requests are sent to the API server.
    pub fn pace(&self) -> Pace {
        Pace {
            qps: self.kube_qps,
            burst: self.kube_burst,
        }
    }

    /// How many executions may run at the same time.
    pub fn max_running(&self) -> MaxRunning {
        MaxRunning {
            cluster: self.max_running,
            namespace: self.max_running_per_namespace,
        }
    }
}

impl LimitArgs {
    /// Checks rules that concern more than one flag.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.backoff_base <= self.backoff_max,
            "--backoff-base must be at most --backoff-max"
        );
        ensure!(
            self.retention <= self.retention_failed,
            "--retention must be at most --retention-failed: a failed execution is evidence"
        );
        Ok(())
    }
}

/// Parses a duration such as `90s`, `10m` or `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|parsed| Duration::try_from(parsed).ok())
        .ok_or_else(|| "must be a duration such as 90s, 10m or 1h30m".to_owned())
}

/// Parses a duration of at least a second.
fn positive(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    let positive = parsed >= Duration::from_secs(1);
    positive
        .then_some(parsed)
        .ok_or_else(|| "must be at least 1s".to_owned())
}

/// Parses requests and limits.
fn resources(text: &str) -> Result<Resources, String> {
    let parsed = serde_json::from_str::<Resources>(text);
    let parsed = parsed.map_err(|error| {
        format!(r#"must be JSON such as {{"limits":{{"memory":"512Mi"}}}}: {error}"#)
    })?;
    let mut amounts = parsed.requests.iter().chain(&parsed.limits);
    if let Some((name, amount)) = amounts.find(|(_, amount)| !QUANTITY.accepts(amount)) {
        return Err(format!("{name}: {amount:?}: must be {}", QUANTITY.allowed));
    }
    let limited = parsed.limits.contains_key("memory");
    limited
        .then_some(parsed)
        .ok_or_else(|| "limits must have memory".to_owned())
}

/// Parses a timeout as `executionConfig.timeout` is parsed.
fn timeout(text: &str) -> Result<Duration, String> {
    let parsed = ExecutionTimeout::parse(text).map(ExecutionTimeout::get);
    parsed.ok_or_else(|| "must be a duration from 1s to 24h, such as 90s, 10m or 1h30m".to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(flags: &[&str]) -> Result<()> {
        let program = ["wfe-controller", "--catalog-dir=/catalog"];
        let arguments = program.iter().chain(flags);
        Args::try_parse_from(arguments)?.run.limits.check()
    }

    #[rstest]
    #[case(
        "--start-timeout=0s",
        "--start-timeout <START_TIMEOUT>': must be at least 1s"
    )]
    #[case("--default-timeout=25h", "must be a duration from 1s to 24h")]
    #[case("--concurrency=0", "0 is not in 1..=65535")]
    #[case("--max-consecutive-failures=0", "0 is not in 1..")]
    #[case("--default-resources=cpu=1", "must be JSON such as")]
    #[case(
        "--default-resources={\"limits\":{\"cpu\":\"1\"}}",
        "limits must have memory"
    )]
    #[case(
        "--default-resources={\"limits\":{\"memory\":\"much\"}}",
        "memory: \"much\": must be"
    )]
    #[case("--cooldown=soon", "must be a duration such as")]
    #[case("--backoff-base=11m", "--backoff-base must be at most --backoff-max")]
    #[case("--retention=48h", "--retention must be at most --retention-failed")]
    fn invalid_flag_is_refused_with_its_rule(#[case] flag: &str, #[case] says: &str) {
        let error = parse(&[flag]).expect_err("invalid").to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn default_flags_are_valid() {
        parse(&[]).expect("valid");
    }
}
