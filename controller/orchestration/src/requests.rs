//! Reconciles RemediationRequests. The watches only say when to look: everything that decides is read
//! from the API server in the pass, so that nothing is created because of an old cache.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use wfe_model::remediation::{AIAnalysis, RemediationRequest};
use wfe_model::text::in_full;
use wfe_model::workflow_execution::WorkflowExecution;
use wfe_peers::catalog::{Catalog, Lookup};

use crate::decide::{Created, Observed, Step, decide};
use crate::outcome::Report;
use crate::scope::{Delays, MAX_STEPS, Scope, look_up};
use crate::selection::execution_name;

/// Part of the 403 for an owner whose kind the API server does not know yet: it refreshes its list of kinds some
/// seconds after a CRD is installed. The WorkflowExecution itself was not rejected, so the create is retried.
const UNKNOWN_OWNER: &str = "cannot find RESTMapping";

const REQUEST: &str = "the RemediationRequest";

/// The orchestration reconciler.
pub struct Orchestration {
    /// Client for the API server.
    pub client: Client,
    /// The workflow catalog.
    pub catalog: Arc<dyn Catalog>,
    /// RemediationRequests in this namespace may name any target.
    pub platform_namespace: String,
    /// Delays of the passes that are repeated.
    pub delays: Delays,
}

/// Why a pass ended early; it is repeated.
#[derive(Debug, Error)]
pub enum PassError {
    /// A read failed.
    #[error("read {0}")]
    Read(&'static str, #[source] kube::Error),
    /// The report was not stored.
    #[error("store the report")]
    Store(#[source] kube::Error),
}

impl Orchestration {
    /// Reconciles the RemediationRequests of `namespaces`, all if there are none, until `stop` is
    /// cancelled.
    pub async fn run(self, namespaces: &[String], stop: &CancellationToken) {
        let this = Arc::new(self);
        Scope::each(namespaces, |scope| {
            let this = this.clone();
            async move {
                let requests = scope.api::<RemediationRequest>(&this.client);
                let executions = scope.api::<WorkflowExecution>(&this.client);
                let analyses = scope.api::<AIAnalysis>(&this.client);
                let controller = Controller::new(requests, Scope::watches())
                    .owns(executions, Scope::watches())
                    .watches(analyses, Scope::watches(), |analysis| {
                        let request = &analysis.spec.remediation_request_ref;
                        let namespace = analysis.namespace().unwrap_or_default();
                        Some(ObjectRef::new(&request.name).within(&namespace))
                    })
                    .with_config(Scope::config())
                    .graceful_shutdown_on(stop.clone().cancelled_owned());
                Scope::drain(controller.run(Self::reconcile, Self::retry, this)).await;
            }
        })
        .await;
    }

    #[expect(clippy::needless_pass_by_value, reason = "as the library calls it")]
    fn retry(request: Arc<RemediationRequest>, error: &PassError, this: Arc<Self>) -> Action {
        tracing::warn!(
            namespace = request.namespace(),
            name = request.name_any(),
            error = in_full(error),
            "orchestration of the RemediationRequest failed, retrying"
        );
        Action::requeue(this.delays.next(&*request))
    }

    async fn reconcile(
        request: Arc<RemediationRequest>,
        this: Arc<Self>,
    ) -> Result<Action, PassError> {
        if request.is_ended() {
            return Ok(Action::await_change());
        }
        let namespace = request.namespace().unwrap_or_default();
        let passed = this.pass(&namespace, &request.name_any()).await?;
        if passed == Action::await_change() {
            this.delays.reset(&*request);
        }
        Ok(passed)
    }

    async fn pass(&self, namespace: &str, name: &str) -> Result<Action, PassError> {
        let requests: Api<RemediationRequest> = Api::namespaced(self.client.clone(), namespace);
        let executions: Api<WorkflowExecution> = Api::namespaced(self.client.clone(), namespace);
        let read = requests.get_opt(name).await;
        let read = read.map_err(|error| PassError::Read(REQUEST, error))?;
        let Some(request) = read else {
            return Ok(Action::await_change());
        };
        let read_execution = async || {
            let read = executions.get_opt(&execution_name(name)).await;
            read.map_err(|error| PassError::Read("the WorkflowExecution", error))
        };
        let mut execution = read_execution().await?;
        let analysis = match execution {
            None if !request.is_ended() => self.analysis(&request).await?,
            _ => None,
        };
        let (mut catalog, mut created): (Option<Lookup>, _) = (None, None);
        for _ in 0..MAX_STEPS {
            let observed = Observed {
                request: &request,
                analysis: analysis.as_ref(),
                execution: execution.as_ref(),
                catalog: catalog.clone(),
                created: created.take(),
                platform_namespace: &self.platform_namespace,
                now: Timestamp::now(),
            };
            match decide(&observed) {
                Step::Lookup(workflow_id) => {
                    catalog = Some(look_up(&*self.catalog, &workflow_id).await);
                }
                Step::Create(new) => {
                    // The request may have been cancelled during the lookup.
                    let now = requests.get_metadata_opt(name).await;
                    let now = now.map_err(|error| PassError::Read(REQUEST, error))?;
                    let version = now.and_then(|it| it.metadata.resource_version);
                    if version != request.metadata.resource_version {
                        return Ok(Action::requeue(Duration::ZERO));
                    }
                    match executions.create(&PostParams::default(), &new).await {
                        Ok(new) => execution = Some(new),
                        Err(kube::Error::Api(status)) if status.is_already_exists() => {
                            execution = read_execution().await?;
                        }
                        Err(error) => created = Some(self.classify(namespace, &error).await),
                    }
                }
                Step::Report(report) => {
                    self.store(&requests, &request, &report).await?;
                    return Ok(Action::await_change());
                }
                Step::Retry(report) => {
                    self.store(&requests, &request, &report).await?;
                    return Ok(Action::requeue(self.delays.next(&request)));
                }
                Step::Wait => return Ok(Action::await_change()),
            }
        }
        Ok(Action::requeue(self.delays.next(&request)))
    }

    /// The analysis that the request names, else the newest that names the request.
    async fn analysis(
        &self,
        request: &RemediationRequest,
    ) -> Result<Option<AIAnalysis>, PassError> {
        let failed = |error| PassError::Read("the AIAnalysis", error);
        let namespace = request.namespace().unwrap_or_default();
        let analyses: Api<AIAnalysis> = Api::namespaced(self.client.clone(), &namespace);
        let is_for = |it: &AIAnalysis| {
            let reference = &it.spec.remediation_request_ref;
            let here = reference.namespace.is_empty() || reference.namespace == namespace;
            here && reference.name == request.name_any()
        };
        let named = request.status.as_ref();
        if let Some(named) = named.and_then(|it| it.ai_analysis_ref.as_ref()) {
            let found = analyses.get_opt(&named.name).await.map_err(failed)?;
            return Ok(found.filter(is_for));
        }
        let found = analyses
            .list(&ListParams::default())
            .await
            .map_err(failed)?;
        let found = found.items.into_iter().filter(is_for);
        Ok(found.max_by_key(|it| it.creation_timestamp().map(|it| it.0)))
    }

    async fn store(
        &self,
        requests: &Api<RemediationRequest>,
        request: &RemediationRequest,
        report: &Report,
    ) -> Result<(), PassError> {
        let Some(patch) = report.patch(request, Timestamp::now()) else {
            return Ok(());
        };
        let name = request.name_any();
        tracing::info!(
            namespace = request.namespace(),
            name,
            phase = report.phase.map(|it| it.to_string()),
            reason = report.reason,
            "RemediationRequest reported"
        );
        let (merge, patch) = (PatchParams::default(), Patch::Merge(patch));
        let stored = requests.patch_status(&name, &merge, &patch).await;
        stored.map_err(PassError::Store)?;
        Ok(())
    }

    /// Whether a create was denied for what was to be created. A 403 may also say that this program lacks
    /// the permission.
    async fn classify(&self, namespace: &str, error: &kube::Error) -> Created {
        let unanswered = || Created::Unanswered(in_full(error));
        let kube::Error::Api(status) = error else {
            return unanswered();
        };
        match status.code {
            400 | 422 => Created::Denied(status.message.clone()),
            403 if status.message.contains(UNKNOWN_OWNER) => unanswered(),
            403 if self.may_create(namespace).await => Created::Denied(status.message.clone()),
            _ => unanswered(),
        }
    }

    async fn may_create(&self, namespace: &str) -> bool {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some("kubernaut.ai".to_owned()),
                    resource: Some("workflowexecutions".to_owned()),
                    verb: Some("create".to_owned()),
                    namespace: Some(namespace.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let status = answer.ok().and_then(|it| it.status);
        status.is_some_and(|it| it.allowed)
    }
}
