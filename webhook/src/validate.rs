//! The validating handler: all static rules again, and what takes a look-up: the catalog, the
//! target's kind, the ServiceAccount, the dependencies. All that is wrong is said together.

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

/// Judges creates.
pub struct Validator {
    /// Where workflows are looked up.
    pub catalog: Arc<dyn Catalog>,
    /// What the cluster serves.
    pub kinds: ServedKinds,
    /// Reads in the execution namespace.
    pub lookups: Lookups,
    /// Who runs what names nobody.
    pub default_service_account: String,
    /// What to do when something cannot be asked.
    pub on_outage: OnOutage,
    /// Where requests are run.
    pub scope: Scope,
}

/// What is wrong with a dependency, if anything is known.
type Looked = Result<Option<DependencyProblem>, String>;

/// What has come out so far.
#[derive(Default)]
struct Findings {
    refusals: Vec<Refusal>,
    /// What could not be asked, and about which field.
    outages: Vec<(&'static str, String)>,
    /// What who asks should know.
    remarks: Vec<String>,
}

impl Findings {
    fn refuse(&mut self, refusals: impl IntoIterator<Item = Refusal>) {
        self.refusals.extend(refusals);
    }

    /// What was found, or why nothing was.
    fn take<T>(&mut self, field: &'static str, what: &str, answer: Result<T, String>) -> Option<T> {
        let outage = |why| self.outages.push((field, format!("{what} ({why})")));
        answer.map_err(outage).ok()
    }
}

impl Validator {
    /// Judges a create. Changes nothing, so a dry run gets the same answer.
    /// Look-ups are made side by side, until `deadline`.
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
        let engine = checked.requested.engine();
        let account = checked.service_account.as_ref();
        let account = account.unwrap_or(&self.default_service_account);
        let (workflow, misfit, lacking, account) = tokio::join!(
            self.workflow(&checked, deadline),
            within(deadline, self.kinds.misfit(&checked.target)),
            within(deadline, self.kinds.lacks(engine)),
            self.lookups.account_refusal(account),
        );

        let workflow = findings.take(
            "spec.workflowRef.workflowId",
            "the workflow catalog cannot be asked",
            workflow,
        );
        match workflow {
            Some(Some((workflow, dependencies))) => {
                match rules::validate(&spec, Ok(checked), &workflow) {
                    Ok(valid) => {
                        let remarks = valid.remarks();
                        findings.remarks = remarks.iter().map(ToString::to_string).collect();
                    }
                    Err(violations) => findings.refuse(violations.into_iter().map(Refusal::Spec)),
                }
                for answer in dependencies {
                    let problem = findings.take(
                        "spec.workflowRef.workflowId",
                        "a dependency cannot be checked",
                        answer,
                    );
                    findings.refuse(problem.flatten().map(Refusal::Dependency));
                }
            }
            Some(None) => findings.refuse([Refusal::Spec(Violation::WorkflowNotFound {
                workflow_id: checked.workflow_id,
            })]),
            None => {}
        }
        let misfit = findings.take(
            "spec.targetResource",
            "the target's kind cannot be checked",
            misfit,
        );
        findings.refuse(misfit.flatten().map(Refusal::Spec));
        let lacking = findings.take(
            "spec.executionEngine",
            "the engine cannot be checked",
            lacking,
        );
        findings.refuse(lacking.flatten().map(Refusal::Spec));
        let account = findings.take(
            "spec.executionConfig.serviceAccountName",
            "the ServiceAccount cannot be checked",
            account.map_err(|error| in_full(&error)),
        );
        findings.refuse(account.flatten().map(Refusal::ServiceAccountNotAllowed));
        self.verdict(findings)
    }

    /// The workflow, and what is wrong with each thing that it needs.
    async fn workflow(
        &self,
        checked: &CheckedSpec,
        deadline: Instant,
    ) -> Result<Option<(Arc<Workflow>, Vec<Looked>)>, String> {
        let asked = self.catalog.lookup(&checked.workflow_id);
        let Some(workflow) = within(deadline, asked).await? else {
            return Ok(None);
        };
        let each = dependencies::each(&workflow.dependencies);
        // Each read has a deadline of its own: it goes on for others when one review gives up.
        let looks = each.map(async |dependency| self.lookups.dependency(&dependency).await);
        let looked = join_all(looks).await.into_iter();
        let looked = looked
            .map(|answer| answer.map_err(|error| in_full(&error)))
            .collect();
        Ok(Some((workflow, looked)))
    }

    /// What is known to be wrong is refused; what could not be checked, the controller checks
    /// before anything runs.
    fn verdict(&self, findings: Findings) -> Verdict {
        let Findings {
            refusals,
            outages,
            remarks,
        } = findings;
        for (field, outage) in &outages {
            tracing::warn!(field, outage, "a review could not be completed");
        }
        if !refusals.is_empty() {
            return Verdict::refuse(refusals);
        }
        if self.on_outage == OnOutage::Deny && !outages.is_empty() {
            let unavailable = outages.into_iter();
            let unavailable = unavailable.map(|(field, why)| Refusal::Unavailable { field, why });
            return Verdict::refuse(unavailable.collect());
        }
        let unchecked = outages.into_iter().map(|(_, outage)| {
            format!("{outage}: not checked yet, the controller will before it runs")
        });
        let warnings = remarks.into_iter().chain(unchecked);
        warnings.fold(Verdict::allow(), |verdict, warning| verdict.warn(&warning))
    }
}

/// What is asked, or in words why it is not known.
pub async fn within<T, E: Error>(
    deadline: Instant,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout_at(deadline, asked).await {
        Ok(answer) => answer.map_err(|error| in_full(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
