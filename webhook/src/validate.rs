//! The validating handler: all static rules again, and what takes a look-up: the catalog, the
//! ServiceAccount, the dependencies.

use std::sync::Arc;

use axum::http::StatusCode;
use wfe_model::rules::{self, Violation};
use wfe_model::workflow::{Workflow, WorkflowStatus};
use wfe_model::workflow_execution::WorkflowExecutionSpec;
use wfe_peers::catalog::Catalog;
use wfe_peers::dependencies::{DependencyReader, RUNNER_LABEL, ServiceAccountAnswer};

use crate::args::OnOutage;
use crate::review::{Cause, Denial, Request, Verdict};

/// Judges creates.
pub struct Validator {
    /// Where workflows are looked up.
    pub catalog: Arc<dyn Catalog>,
    /// Reads in the execution namespace.
    pub dependencies: DependencyReader,
    /// That namespace.
    pub execution_namespace: String,
    /// Where a WorkflowExecution names none.
    pub default_service_account: String,
    /// What to do when something cannot be asked.
    pub on_outage: OnOutage,
}

impl Validator {
    /// Judges a create. Changes nothing, so a dry run gets the same answer.
    pub async fn validate(&self, request: &Request) -> Verdict {
        let spec = match rules::read(request.part("/spec")) {
            Ok(spec) => spec,
            Err(violation) => return Verdict::violates(&[violation]),
        };
        if let Err(violations) = rules::check(&spec) {
            return Verdict::violates(&violations);
        }
        let workflow = match self.catalog.lookup(&spec.workflow_ref.workflow_id).await {
            Ok(Some(workflow)) => workflow,
            Ok(None) => {
                let workflow_id = spec.workflow_ref.workflow_id.clone();
                return Verdict::violates(&[Violation::WorkflowNotFound { workflow_id }]);
            }
            Err(error) => {
                return self.outage(&format!("the workflow catalog cannot be asked ({error})"));
            }
        };
        if let Err(violations) = rules::validate(&spec, &workflow) {
            return Verdict::violates(&violations);
        }
        self.check_cluster(&spec, &workflow).await
    }

    /// What the workflow needs in the execution namespace.
    async fn check_cluster(&self, spec: &WorkflowExecutionSpec, workflow: &Workflow) -> Verdict {
        let account = spec
            .execution_config
            .service_account_name
            .as_ref()
            .unwrap_or(&self.default_service_account);
        let answers = tokio::join!(
            self.dependencies.service_account(account),
            self.dependencies.check(&workflow.dependencies)
        );
        let (account_answer, problems) = match answers {
            (Ok(account), Ok(problems)) => (account, problems),
            (Err(error), _) | (_, Err(error)) => {
                return self.outage(&format!("dependencies cannot be read ({error})"));
            }
        };
        if account_answer != ServiceAccountAnswer::Allowed {
            return self.account_refused(account, &account_answer);
        }
        if !problems.is_empty() {
            let causes = problems.iter().map(|problem| Cause {
                reason: "FieldValueNotFound",
                message: format!(
                    "the workflow {:?} depends on something that is not ready: {problem}",
                    workflow.workflow_id
                ),
                field: "spec.workflowRef.workflowId".to_owned(),
            });
            return Verdict::invalid(causes.collect());
        }
        let verdict = Verdict::allow();
        if workflow.status == WorkflowStatus::Deprecated {
            return verdict.warn(&format!(
                "the workflow {:?} is deprecated",
                workflow.workflow_id
            ));
        }
        verdict
    }

    fn account_refused(&self, account: &str, answer: &ServiceAccountAnswer) -> Verdict {
        let namespace = &self.execution_namespace;
        let problem = match answer {
            ServiceAccountAnswer::Missing => "does not exist",
            _ => "is not meant for workflows",
        };
        let message = format!(
            "the ServiceAccount {account:?} in namespace {namespace} {problem}: use one with the label {RUNNER_LABEL}: \"true\""
        );
        let cause = Cause {
            reason: "FieldValueForbidden",
            message,
            field: "spec.executionConfig.serviceAccountName".to_owned(),
        };
        let denial = Denial {
            code: StatusCode::FORBIDDEN,
            reason: "ServiceAccountNotAllowed",
            causes: vec![cause],
        };
        Verdict {
            denial: Some(denial),
            ..Verdict::default()
        }
    }

    /// What could not be checked, the controller checks before anything runs.
    fn outage(&self, what: &str) -> Verdict {
        tracing::warn!(what, "a review could not be completed");
        match self.on_outage {
            OnOutage::Allow => Verdict::allow().warn(&format!(
                "not checked yet, the controller will before it runs: {what}"
            )),
            OnOutage::Deny => {
                let cause = Cause {
                    reason: "InternalError",
                    message: format!("{what}: try again later"),
                    field: "spec.workflowRef".to_owned(),
                };
                let denial = Denial {
                    code: StatusCode::SERVICE_UNAVAILABLE,
                    reason: "ServiceUnavailable",
                    causes: vec![cause],
                };
                Verdict {
                    denial: Some(denial),
                    ..Verdict::default()
                }
            }
        }
    }
}
