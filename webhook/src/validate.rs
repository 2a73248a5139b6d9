//! The validating handler: all static rules again, and what takes a look-up: the catalog, the
//! ServiceAccount, the dependencies.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::Instant;
use wfe_model::rules::CheckedSpec;
use wfe_model::rules::{self, Violation};
use wfe_model::workflow::{Workflow, WorkflowStatus};
use wfe_peers::catalog::Catalog;
use wfe_peers::dependencies::{DependencyReader, not_ready};
use wfe_peers::discovery::ServedKinds;

use crate::args::OnOutage;
use crate::review::{Cause, Request, Verdict};

/// Within the time that the API server waits for all of it.
const READ_DEADLINE: Duration = Duration::from_secs(2);

/// Judges creates.
pub struct Validator {
    /// Where workflows are looked up.
    pub catalog: Arc<dyn Catalog>,
    /// What the cluster serves.
    pub kinds: ServedKinds,
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
        let checked = match rules::check(&spec) {
            Ok(checked) => checked,
            Err(violations) => return Verdict::violates(&violations),
        };
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
        let mut violations = match rules::validate(&spec, &workflow) {
            Ok(_) => Vec::new(),
            Err(violations) => violations,
        };
        let deadline = Instant::now() + READ_DEADLINE;
        let asked = tokio::time::timeout_at(deadline, self.kinds.misfit(&checked.target));
        match asked.await {
            Ok(Ok(misfit)) => violations.extend(misfit),
            // What is known to be wrong is said.
            Ok(Err(_)) | Err(_) if !violations.is_empty() => {}
            Ok(Err(error)) => {
                return self.outage(&format!("the target cannot be checked ({error})"));
            }
            Err(_) => return self.outage("the API server does not answer"),
        }
        if !violations.is_empty() {
            return Verdict::violates(&violations);
        }
        self.check_cluster(&checked, &workflow, deadline).await
    }

    /// What the workflow needs in the execution namespace.
    async fn check_cluster(
        &self,
        checked: &CheckedSpec,
        workflow: &Workflow,
        deadline: Instant,
    ) -> Verdict {
        let named = checked.service_account.as_ref();
        let account = named.unwrap_or(&self.default_service_account);
        let asked = tokio::time::timeout_at(deadline, async {
            tokio::join!(
                self.dependencies.service_account(account),
                self.dependencies.check(&workflow.dependencies)
            )
        });
        let Ok((account_answer, problems)) = asked.await else {
            return self.outage("the API server does not answer");
        };
        let unread = |error| self.outage(&format!("dependencies cannot be read ({error})"));
        let refusal = match account_answer {
            Ok(answer) => answer.refusal(account, &self.execution_namespace),
            Err(error) => return unread(error),
        };
        if let Some(message) = refusal {
            return Verdict::denied(
                StatusCode::FORBIDDEN,
                "ServiceAccountNotAllowed",
                "spec.executionConfig.serviceAccountName",
                message,
            );
        }
        match problems {
            Err(error) => unread(error),
            Ok(problems) if !problems.is_empty() => Verdict::invalid(vec![Cause {
                reason: "FieldValueNotFound",
                message: not_ready(&workflow.workflow_id, &problems),
                field: "spec.workflowRef.workflowId".to_owned(),
            }]),
            Ok(_) if workflow.status == WorkflowStatus::Deprecated => Verdict::allow().warn(
                &format!("the workflow {:?} is deprecated", workflow.workflow_id),
            ),
            Ok(_) => Verdict::allow(),
        }
    }

    /// What could not be checked, the controller checks before anything runs.
    fn outage(&self, what: &str) -> Verdict {
        tracing::warn!(what, "a review could not be completed");
        match self.on_outage {
            OnOutage::Allow => Verdict::allow().warn(&format!(
                "not checked yet, the controller will before it runs: {what}"
            )),
            OnOutage::Deny => Verdict::denied(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                "spec.workflowRef",
                format!("{what}: try again later"),
            ),
        }
    }
}
