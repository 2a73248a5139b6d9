//! Reconciles AIAnalyses with HolmesGPT-API. The watch only says when to look: what decides is read
//! from the API server in the pass.

use std::sync::Arc;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use wfe_model::remediation::AIAnalysis;
use wfe_model::text::in_full;
use wfe_peers::catalog::Catalog;
use wfe_peers::holmes::Holmes;

use crate::investigation::{Observed, Step, decide, is_ended};
use crate::scope::{Delays, MAX_STEPS, Scope, look_up};

/// The analysis reconciler.
pub struct Analyses {
    /// Client for the API server.
    pub client: Client,
    /// The workflow catalog.
    pub catalog: Arc<dyn Catalog>,
    /// HolmesGPT-API.
    pub holmes: Holmes,
    /// AIAnalyses in this namespace may name any resource.
    pub platform_namespace: String,
    /// Delays of the passes that are repeated.
    pub delays: Delays,
}

/// Why a pass ended early; it is repeated.
#[derive(Debug, Error)]
pub enum PassError {
    /// The AIAnalysis was not read.
    #[error("read the AIAnalysis")]
    Read(#[source] kube::Error),
    /// The status was not stored.
    #[error("store the status")]
    Store(#[source] kube::Error),
}

impl Analyses {
    /// Reconciles the AIAnalyses of `namespaces`, all if there are none, until `stop` is cancelled.
    pub async fn run(self, namespaces: &[String], stop: &CancellationToken) {
        let this = Arc::new(self);
        Scope::each(namespaces, |scope| {
            let this = this.clone();
            async move {
                let controller =
                    Controller::new(scope.api::<AIAnalysis>(&this.client), Scope::watches())
                        .with_config(Scope::config())
                        .graceful_shutdown_on(stop.clone().cancelled_owned());
                Scope::drain(controller.run(Self::reconcile, Self::retry, this)).await;
            }
        })
        .await;
    }

    #[expect(clippy::needless_pass_by_value, reason = "as the library calls it")]
    fn retry(analysis: Arc<AIAnalysis>, error: &PassError, this: Arc<Self>) -> Action {
        tracing::warn!(
            namespace = analysis.namespace(),
            name = analysis.name_any(),
            error = in_full(error),
            "analysis failed, retrying"
        );
        Action::requeue(this.delays.next(&*analysis))
    }

    async fn reconcile(analysis: Arc<AIAnalysis>, this: Arc<Self>) -> Result<Action, PassError> {
        if is_ended(&analysis) {
            return Ok(Action::await_change());
        }
        let namespace = analysis.namespace().unwrap_or_default();
        let passed = this.pass(&namespace, &analysis.name_any()).await?;
        if passed == Action::await_change() {
            this.delays.reset(&*analysis);
        }
        Ok(passed)
    }

    async fn pass(&self, namespace: &str, name: &str) -> Result<Action, PassError> {
        let api: Api<AIAnalysis> = Api::namespaced(self.client.clone(), namespace);
        let Some(analysis) = api.get_opt(name).await.map_err(PassError::Read)? else {
            return Ok(Action::await_change());
        };
        let mut observed = Observed {
            analysis,
            platform_namespace: self.platform_namespace.clone(),
            reserved: false,
            begun: None,
            session: None,
            result: None,
            catalog: None,
            now: Timestamp::now(),
        };
        for _ in 0..MAX_STEPS {
            match decide(&observed) {
                Step::Reserve(status) => {
                    observed.analysis = store(&api, &observed.analysis, status).await?;
                    observed.reserved = true;
                    (observed.session, observed.result) = (None, None);
                }
                Step::Begin(incident) => {
                    observed.begun = Some(self.holmes.analyze(&incident).await);
                }
                Step::Poll(id) => {
                    observed.session = Some(self.holmes.session(&id).await);
                }
                Step::Fetch(id) => {
                    observed.result = Some(self.holmes.result(&id).await);
                }
                Step::Lookup(id) => {
                    observed.catalog = Some(look_up(&*self.catalog, &id).await);
                }
                Step::Store { status, again } => {
                    store(&api, &observed.analysis, status).await?;
                    return Ok(again.map_or_else(Action::await_change, Action::requeue));
                }
                Step::Wait(time) => return Ok(Action::requeue(time)),
                Step::Done => return Ok(Action::await_change()),
            }
        }
        Ok(Action::requeue(self.delays.next(&observed.analysis)))
    }
}

/// Stores fields of the status. A concurrent write of another client makes it a conflict.
async fn store(
    api: &Api<AIAnalysis>,
    analysis: &AIAnalysis,
    status: Value,
) -> Result<AIAnalysis, PassError> {
    let name = analysis.name_any();
    let field = |key: &str| status.get(key).and_then(Value::as_str);
    tracing::info!(
        namespace = analysis.namespace(),
        name,
        phase = field("phase"),
        message = field("message"),
        "AIAnalysis updated"
    );
    let version = &analysis.metadata.resource_version;
    let patch = json!({ "metadata": { "resourceVersion": version }, "status": status });
    let (merge, patch) = (PatchParams::default(), Patch::Merge(patch));
    let stored = api.patch_status(&name, &merge, &patch).await;
    stored.map_err(PassError::Store)
}
