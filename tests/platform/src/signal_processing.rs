//! Stand-in for Kubernaut's SignalProcessing, and for what its orchestrator does about analyses: classifies a
//! new RemediationRequest by labels, creates its AIAnalysis, and ends the request when the analysis fails.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use wfe_model::remediation::{
    AIAnalysis, AIAnalysisSpec, AnalysisRequest, Reference, RemediationRequest, ResourceIdentifier,
    SignalContext,
};

use crate::controller::{Handle, reconcile_each};

/// Label of a workload or namespace: `production`, `staging`, ….
const ENVIRONMENT: &str = "kubernaut.ai/environment";
/// Label of a workload: the severity of its signals, instead of the signal's own.
const SEVERITY: &str = "kubernaut.ai/severity";

type Labels = BTreeMap<String, String>;

/// Watches the RemediationRequests and AIAnalyses in `namespace`.
pub async fn run(client: Client, namespace: &str) {
    let requests: Api<RemediationRequest> = Api::namespaced(client.clone(), namespace);
    let analyses: Api<AIAnalysis> = Api::namespaced(client.clone(), namespace);
    let failures = Failures {
        requests: requests.clone(),
    };
    let processing = Processing {
        analyses: analyses.clone(),
        requests: requests.clone(),
        client,
    };
    tokio::join!(
        reconcile_each(requests, processing),
        reconcile_each(analyses, failures)
    );
}

struct Processing {
    client: Client,
    requests: Api<RemediationRequest>,
    analyses: Api<AIAnalysis>,
}

/// What a signal means to the business.
#[derive(Debug, PartialEq)]
struct Classification {
    severity: String,
    environment: String,
    priority: &'static str,
}

impl Handle<RemediationRequest> for Processing {
    async fn handle(&self, request: &RemediationRequest) -> Result<()> {
        if !request.phase().is_empty() {
            return Ok(());
        }
        let target = &request.spec.target_resource;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = namespaces.get(&target.namespace).await?;
        let workload = self.labels(target).await?;
        let class = classify(namespace.labels(), &workload, &request.spec.severity);
        let analysis = analysis(request, &class)?;
        match self
            .analyses
            .create(&PostParams::default(), &analysis)
            .await
        {
            Ok(_) => tracing::info!(request = request.name_any(), ?class, "classified"),
            // An earlier process has created it.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).context("create the AIAnalysis"),
        }
        let reference = json!({ "name": analysis.name_any() });
        let status = json!({ "overallPhase": "Analyzing", "aiAnalysisRef": reference });
        write_status(&self.requests, request, &status).await
    }
}

/// Ends the requests whose analyses have failed.
struct Failures {
    requests: Api<RemediationRequest>,
}

impl Handle<AIAnalysis> for Failures {
    async fn handle(&self, analysis: &AIAnalysis) -> Result<()> {
        let status = analysis.status.as_ref();
        let Some(status) = status.filter(|it| it.phase == "Failed") else {
            return Ok(());
        };
        let name = &analysis.spec.remediation_request_ref.name;
        let request = self.requests.get_opt(name).await?;
        let Some(request) = request.filter(|it| !it.is_ended()) else {
            return Ok(());
        };
        tracing::info!(request = name, why = status.message, "not remediated");
        let ended = json!({
            "overallPhase": "Failed", "outcome": "ManualReviewRequired", "failureReason": status.message,
        });
        write_status(&self.requests, &request, &ended).await
    }
}

/// Merges fields into the status of a request; a conflict if the request has changed since it was read.
async fn write_status(
    requests: &Api<RemediationRequest>,
    request: &RemediationRequest,
    status: &Value,
) -> Result<()> {
    let version = json!({ "resourceVersion": request.resource_version() });
    let patch = Patch::Merge(json!({ "metadata": version, "status": status }));
    let params = PatchParams::default();
    requests
        .patch_status(&request.name_any(), &params, &patch)
        .await?;
    Ok(())
}

impl Processing {
    /// Labels of the workload; none if it is gone.
    async fn labels(&self, target: &ResourceIdentifier) -> Result<Labels> {
        let (group, version) = target
            .api_version
            .rsplit_once('/')
            .unwrap_or(("", &target.api_version));
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &target.kind));
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &target.namespace, &kind);
        let found = api.get_opt(&target.name).await?;
        Ok(found.map(|it| it.labels().clone()).unwrap_or_default())
    }
}

fn classify(namespace: &Labels, workload: &Labels, severity: &str) -> Classification {
    let environment = workload.get(ENVIRONMENT).or(namespace.get(ENVIRONMENT));
    let environment = environment.map_or("unknown", String::as_str);
    let severity = workload.get(SEVERITY).map_or(severity, String::as_str);
    let priority = match (environment, severity) {
        ("production", "critical") => "P0",
        ("production", _) | (_, "critical") => "P1",
        ("staging", _) => "P2",
        _ => "P3",
    };
    Classification {
        severity: severity.to_owned(),
        environment: environment.to_owned(),
        priority,
    }
}

/// The analysis of a request; it is deleted with the request.
fn analysis(request: &RemediationRequest, class: &Classification) -> Result<AIAnalysis> {
    let name = request.name_any();
    let spec = AIAnalysisSpec {
        remediation_request_ref: Reference {
            name: name.clone(),
            namespace: request.namespace().unwrap_or_default(),
        },
        remediation_id: name.clone(),
        analysis_request: AnalysisRequest {
            signal_context: SignalContext {
                fingerprint: request.spec.signal_fingerprint.clone(),
                severity: class.severity.clone(),
                signal_name: request.spec.signal_name.clone(),
                environment: class.environment.clone(),
                business_priority: class.priority.to_owned(),
                target_resource: request.spec.target_resource.clone(),
            },
        },
    };
    let mut analysis = AIAnalysis::new(&format!("ai-{name}"), spec);
    let owner = request
        .controller_owner_ref(&())
        .context("the request has no uid")?;
    analysis.metadata.owner_references = Some(vec![owner]);
    Ok(analysis)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn labels(labels: &[(&str, &str)]) -> Labels {
        let labels = labels.iter();
        labels
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[rstest]
    #[case(&[(ENVIRONMENT, "production")], &[], "critical", "production", "P0")]
    #[case(&[(ENVIRONMENT, "production")], &[(SEVERITY, "low")], "low", "production", "P1")]
    #[case(&[(ENVIRONMENT, "production")], &[(ENVIRONMENT, "staging"), (SEVERITY, "high")], "high", "staging", "P2")]
    #[case(&[], &[(SEVERITY, "high")], "high", "unknown", "P3")]
    fn signal_is_classified_by_labels_of_workload_and_namespace(
        #[case] namespace: &[(&str, &str)],
        #[case] workload: &[(&str, &str)],
        #[case] severity: &str,
        #[case] environment: &str,
        #[case] priority: &'static str,
    ) {
        let expected = Classification {
            severity: severity.to_owned(),
            environment: environment.to_owned(),
            priority,
        };
        assert_eq!(
            classify(&labels(namespace), &labels(workload), "critical"),
            expected
        );
    }
}
