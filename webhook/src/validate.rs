//! The validating handler: repeats the static rules, then runs the checks that need a lookup:
//! catalog entry, kind of the target, engine, ServiceAccount, dependencies. One denial lists every
//! failed check.

use std::error::Error;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::join_all;
use tokio::time::Instant;
use wfe_model::dependencies::{self, DependencyProblem};
use wfe_model::rules::{self, CheckedSpec, ValidatedSpec, Violation};
use wfe_model::served::{self, ServedKind};
use wfe_model::target::Target;
use wfe_model::text::in_full;
use wfe_model::workflow::Workflow;
use wfe_peers::catalog::{Catalog, LookupError};
use wfe_peers::dependencies::ReadError;
use wfe_peers::discovery::ServedKinds;

use crate::args::OnOutage;
use crate::created::Created;
use crate::lookups::Lookups;
use crate::refusal::Refusal;
use crate::review::{Request, Verdict};
use crate::scope::Scope;
use crate::targets::Targets;

/// Reviews CREATE requests.
pub struct Validator {
    /// The workflow catalog.
    pub catalog: Arc<dyn Catalog>,
    /// The kinds that the API server serves.
    pub kinds: ServedKinds,
    /// Whether targets exist.
    pub targets: Targets,
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

/// The catalog entry and its dependencies; why it cannot be run; or why the catalog could not be read.
type WorkflowResult = Result<Result<(Arc<Workflow>, Vec<DependencyResult>), Violation>, String>;

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
        let checked = match rules::check_in(&request.namespace, &spec) {
            Ok(checked) => checked,
            Err(violations) => {
                return Verdict::refuse(violations.into_iter().map(Refusal::Spec).collect());
            }
        };
        let mut findings = Findings::default();
        findings.refuse(self.scope.refusal(&request.namespace));
        let engine = checked.engine;
        let ((workflow, account), kinds, engine_violation, missing) = tokio::join!(
            self.workflow_and_account(&checked, deadline),
            within(deadline, self.kinds.concerning(&checked.target)),
            within(deadline, self.kinds.lacks(engine)),
            tokio::time::timeout_at(deadline, self.targets.is_missing(&checked.target)),
        );
        if let Ok(Some(true)) = missing {
            // No reason for a denial: it may be created before the workflow runs.
            let remark = format!("spec.targetResource: {} does not exist now", checked.target);
            findings.remarks.push(remark);
        }

        let kinds = findings.record(
            "spec.targetResource",
            "the kind of the target cannot be checked",
            kinds,
        );
        let workflow = findings.record(
            "spec.workflowRef.workflowId",
            "the workflow catalog is unavailable",
            workflow,
        );
        let target = checked.target.clone();
        let (mut found, mut valid) = (None, None);
        match workflow {
            Some(Ok((workflow, dependencies))) => {
                found = Some(workflow.clone());
                match rules::validate(&spec, Ok(checked), &workflow) {
                    Ok(it) => {
                        let remarks = it.remarks();
                        findings
                            .remarks
                            .extend(remarks.iter().map(ToString::to_string));
                        valid = Some(it);
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
            Some(Err(violation)) => findings.refuse([Refusal::Spec(violation)]),
            None => {}
        }
        if let Some(kinds) = kinds {
            let misfits = misfits(&target, &kinds, found.as_deref(), valid.as_ref());
            findings.refuse(misfits.into_iter().map(Refusal::Spec));
        }
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

    /// The catalog entry with the state of each of its dependencies, and why its ServiceAccount may
    /// not run workflows.
    async fn workflow_and_account(
        &self,
        checked: &CheckedSpec,
        deadline: Instant,
    ) -> (WorkflowResult, Result<Option<String>, ReadError>) {
        let found = lookup(deadline, &*self.catalog, &checked.workflow_id).await;
        let workflow = found.as_ref().ok().and_then(|it| it.as_ref().ok());
        let own = workflow.and_then(|it| it.service_account.as_ref());
        let account = own.or(checked.service_account.as_ref());
        let account = account.unwrap_or(&self.default_service_account);
        let each = workflow
            .iter()
            .flat_map(|it| dependencies::each(&it.dependencies));
        // Not bounded by `deadline`: concurrent reviews share a read, which has its own timeout.
        let reads = each.map(async |dependency| self.lookups.dependency(&dependency).await);
        let (results, account) =
            tokio::join!(join_all(reads), self.lookups.account_refusal(account));
        let results = results.into_iter();
        let results = results.map(|result| result.map_err(|error| in_full(&error)));
        let results = results.collect();
        let found = found.map(|it| it.map(|workflow| (workflow, results)));
        (found, account)
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

/// The rules that the target breaks. `valid`: the request, if it satisfies all other rules.
fn misfits(
    target: &Target,
    kinds: &[ServedKind],
    workflow: Option<&Workflow>,
    valid: Option<&ValidatedSpec>,
) -> Vec<Violation> {
    if let Some(valid) = valid {
        return served::fit(valid, kinds).err().unwrap_or_default();
    }
    let allowed = workflow.map_or(&[][..], |it| &it.target_kinds);
    let misfit = served::resolve(target, kinds, allowed).err();
    // Which group is meant depends on the workflow.
    let is_certain =
        |it: &Violation| workflow.is_some() || !matches!(it, Violation::TargetKindAmbiguous { .. });
    misfit.filter(is_certain).into_iter().collect()
}

/// The workflow, or why it cannot be run; the error says why the catalog could not be read.
pub async fn lookup(
    deadline: Instant,
    catalog: &dyn Catalog,
    workflow_id: &str,
) -> Result<Result<Arc<Workflow>, Violation>, String> {
    let found = catalog.lookup(workflow_id).map(|found| match found {
        Ok(workflow) => Ok(Ok(workflow)),
        Err(LookupError::Unusable(violation)) => Ok(Err(violation)),
        Err(error @ LookupError::Unavailable(_)) => Err(error),
    });
    within(deadline, found).await
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
