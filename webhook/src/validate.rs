//! The validating handler: repeats the static rules, then runs the checks that need a lookup:
//! catalog entry, kind of the target, engine, ServiceAccount, dependencies. One denial lists every
//! failed check.

use std::error::Error;
use std::sync::Arc;

use futures::future::join_all;
use tokio::time::Instant;
use wfe_model::dependencies::{self, DependencyProblem};
use wfe_model::rules::{self, CheckedSpec, Violation};
use wfe_model::text::in_full;
use wfe_model::workflow::Workflow;
use wfe_peers::catalog::Catalog;
use wfe_peers::discovery::ServedKinds;

use crate::args::OnOutage;
use crate::created::Created;
use crate::lookups::Lookups;
use crate::refusal::Refusal;
use crate::review::{Request, Verdict};
use crate::scope::Scope;

/// Reviews CREATE requests.
pub struct Validator {
    /// The workflow catalog.
    pub catalog: Arc<dyn Catalog>,
    /// The kinds that the API server serves.
    pub kinds: ServedKinds,
    /// Reads in the execution namespace.
    pub lookups: Lookups,
    /// ServiceAccount of a spec without `executionConfig.serviceAccountName`.
    pub default_service_account: String,
    /// Handling of a check that an outage prevents.
    pub on_outage: OnOutage,
    /// The watched namespaces.
    pub scope: Scope,
}

/// The problem of a dependency, or why the dependency could not be read.
type DependencyResult = Result<Option<DependencyProblem>, String>;

/// Results of the checks.
#[derive(Default)]
struct Findings {
    refusals: Vec<Refusal>,
    /// Checks that an outage prevented: path of the field, and the cause.
    outages: Vec<(&'static str, String)>,
    /// Remarks about an allowed spec, returned as warnings.
    remarks: Vec<String>,
}

impl Findings {
    fn refuse(&mut self, refusals: impl IntoIterator<Item = Refusal>) {
        self.refusals.extend(refusals);
    }

    /// Returns what a check found; records an outage if the check could not run.
    fn record<T>(
        &mut self,
        field: &'static str,
        check: &str,
        result: Result<T, String>,
    ) -> Option<T> {
        let outage = |why| self.outages.push((field, format!("{check} ({why})")));
        result.map_err(outage).ok()
    }
}

impl Validator {
    /// Reviews a CREATE request. Has no side effects, so a dry run gets the same verdict. Lookups
    /// run concurrently until `deadline`.
    pub async fn validate(&self, request: &Request<'_>, deadline: Instant) -> Verdict {
        let spec = match Created::read(request) {
            Ok(created) => created.spec,
            Err(refusal) => return Verdict::refuse(vec![refusal]),
        };
        let checked = match rules::check(&spec) {
            Ok(checked) => checked,
            Err(violations) => {
                return Verdict::refuse(violations.into_iter().map(Refusal::Spec).collect());
            }
        };
        let mut findings = Findings::default();
        findings.refuse(self.scope.refusal(&request.namespace));
        let engine = checked.engine;
        let account = checked.service_account.as_ref();
        let account = account.unwrap_or(&self.default_service_account);
        let (workflow, kind_violation, engine_violation, account, missing) = tokio::join!(
            self.workflow(&checked, deadline),
            within(deadline, self.kinds.misfit(&checked.target)),
            within(deadline, self.kinds.lacks(engine)),
            self.lookups.account_refusal(account),
            tokio::time::timeout_at(deadline, self.kinds.is_missing(&checked.target)),
        );
        if let Ok(Some(true)) = missing {
            // No reason for a denial: it may be created before the workflow runs.
            let remark = format!("spec.targetResource: {} does not exist now", checked.target);
            findings.remarks.push(remark);
        }

        let workflow = findings.record(
            "spec.workflowRef.workflowId",
            "the workflow catalog is unavailable",
            workflow,
        );
        match workflow {
            Some(Some((workflow, dependencies))) => {
                match rules::validate(&spec, Ok(checked), &workflow) {
                    Ok(valid) => {
                        let remarks = valid.remarks();
                        findings
                            .remarks
                            .extend(remarks.iter().map(ToString::to_string));
                    }
                    Err(violations) => findings.refuse(violations.into_iter().map(Refusal::Spec)),
                }
                for result in dependencies {
                    let problem = findings.record(
                        "spec.workflowRef.workflowId",
                        "a dependency cannot be checked",
                        result,
                    );
                    findings.refuse(problem.flatten().map(Refusal::Dependency));
                }
            }
            Some(None) => findings.refuse([Refusal::Spec(Violation::WorkflowNotFound {
                workflow_id: checked.workflow_id,
            })]),
            None => {}
        }
        let kind_violation = findings.record(
            "spec.targetResource",
            "the kind of the target cannot be checked",
            kind_violation,
        );
        findings.refuse(kind_violation.flatten().map(Refusal::Spec));
        let engine_violation = findings.record(
            "spec.executionEngine",
            "the engine cannot be checked",
            engine_violation,
        );
        findings.refuse(engine_violation.flatten().map(Refusal::Spec));
        let account = findings.record(
            "spec.executionConfig.serviceAccountName",
            "the ServiceAccount cannot be checked",
            account.map_err(|error| in_full(&error)),
        );
        findings.refuse(account.flatten().map(Refusal::ServiceAccountNotAllowed));
        self.verdict(findings)
    }

    /// The catalog entry, and the state of each of its dependencies.
    async fn workflow(
        &self,
        checked: &CheckedSpec,
        deadline: Instant,
    ) -> Result<Option<(Arc<Workflow>, Vec<DependencyResult>)>, String> {
        let lookup = self.catalog.lookup(&checked.workflow_id);
        let Some(workflow) = within(deadline, lookup).await? else {
            return Ok(None);
        };
        let each = dependencies::each(&workflow.dependencies);
        // Not bounded by `deadline`: concurrent reviews share a read, which has its own timeout.
        let reads = each.map(async |dependency| self.lookups.dependency(&dependency).await);
        let results = join_all(reads).await.into_iter();
        let results = results
            .map(|result| result.map_err(|error| in_full(&error)))
            .collect();
        Ok(Some((workflow, results)))
    }

    /// Denies if a check found a problem. If an outage prevented a check, `on_outage` decides: the
    /// controller repeats every check before it creates a Job or PipelineRun.
    fn verdict(&self, findings: Findings) -> Verdict {
        let Findings {
            refusals,
            outages,
            remarks,
        } = findings;
        for (field, outage) in &outages {
            tracing::warn!(field, outage, "check skipped because of an outage");
        }
        if !refusals.is_empty() {
            return Verdict::refuse(refusals);
        }
        if self.on_outage == OnOutage::Deny && !outages.is_empty() {
            let unavailable = outages.into_iter();
            let unavailable = unavailable.map(|(field, why)| Refusal::Unavailable {
                field: field.to_owned(),
                why,
            });
            return Verdict::refuse(unavailable.collect());
        }
        let unchecked = outages.into_iter().map(|(_, outage)| {
            format!(
                "{outage}: not checked yet; the controller checks it before it runs the workflow"
            )
        });
        let warnings = remarks.into_iter().chain(unchecked);
        warnings.fold(Verdict::allow(), |verdict, warning| verdict.warn(&warning))
    }
}

/// The result of `lookup`, or the text of its error, or of a missed `deadline`.
pub async fn within<T, E: Error + 'static>(
    deadline: Instant,
    lookup: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout_at(deadline, lookup).await {
        Ok(result) => result.map_err(|error| in_full(&error)),
        Err(_) => Err("no response before the deadline".to_owned()),
    }
}
