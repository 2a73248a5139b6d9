//! Whether the served CRD of WorkflowExecutions has the rules of this version, by a watch: a CRD of
//! an older release, or one that another client has changed, lets in requests that break the rules.

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client};
use wfe_model::crd;
use wfe_model::text::cut;
use wfe_process::endpoints::Readiness;

use super::owner_labels::every;

/// Readiness condition, named in the response of `/readyz` while it does not hold.
pub const CRD_HAS_RULES: &str = "crd-has-rules";
/// Name of the CRD.
const CRD: &str = "workflowexecutions.kubernaut.ai";
/// Longest list of missing rules that is told, in characters.
const MAX_TEXT: usize = 500;

/// Keeps [`CRD_HAS_RULES`] up to date. Never returns.
pub async fn watch(client: &Client, readiness: &Readiness) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let only = every().fields(&format!("metadata.name={CRD}"));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    while let Some(event) = events.next().await {
        let crd = match event {
            Ok(Event::InitApply(crd) | Event::Apply(crd)) => crd,
            Ok(Event::Delete(_)) => {
                readiness.unset(CRD_HAS_RULES, "the CRD was deleted");
                continue;
            }
            Ok(Event::Init | Event::InitDone) => continue,
            Err(error) => {
                tracing::warn!(%error, "watch of the CRD failed, retrying");
                readiness.unset(CRD_HAS_RULES, &format!("the CRD cannot be read: {error}"));
                continue;
            }
        };
        let missing = crd::missing_rules(&crd);
        if missing.is_empty() {
            readiness.set(CRD_HAS_RULES, true);
            continue;
        }
        let missing = cut(&missing.join("; "), MAX_TEXT);
        tracing::error!(
            missing,
            "the served CRD lacks rules: apply the CRD of this version"
        );
        let why = format!("apply the CRD of this version; missing: {missing}");
        readiness.unset(CRD_HAS_RULES, &why);
    }
}
