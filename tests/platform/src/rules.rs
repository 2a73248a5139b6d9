//! The rules by which the stand-in for HolmesGPT-API selects a workflow: they replace the language model,
//! and its answers say so.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use wfe_model::workflow::RemediationWorkflow;

use crate::gateway::SIGNAL;
use crate::holmes::Investigate;

/// Pause before the API server or the catalog is asked again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Deadline of a request to the catalog.
const DEADLINE: Duration = Duration::from_secs(5);
/// The action for a container that was OOMKilled.
const ACTION: &str = "IncreaseMemory";
/// Its parameter.
const PARAMETER: &str = "MEMORY_LIMIT";

/// Where the rules find workflows.
#[derive(Clone)]
pub enum Catalog {
    /// Data Storage's discovery: its URL, and the file with the token.
    DataStorage {
        /// Base URL.
        url: String,
        /// File with the token.
        token: PathBuf,
    },
    /// The RemediationWorkflows of a namespace.
    Objects(String),
}

/// A workflow that fits.
struct Offer {
    id: String,
    version: String,
    bundle: String,
    engine: String,
}

/// What is known of an incident.
struct Incident {
    signal: String,
    namespace: String,
    kind: String,
    name: String,
    severity: String,
    environment: String,
    priority: String,
}

/// Answers by the rules. An answer without a workflow asks for a person, and says why. While the API server or
/// the catalog is unavailable, it retries, and the session stays open.
pub fn investigate(client: Client, catalog: Catalog) -> Investigate {
    Arc::new(move |incident| {
        let (client, catalog) = (client.clone(), catalog.clone());
        async move {
            let incident = Incident::read(&incident);
            loop {
                match select(&client, &catalog, &incident).await {
                    Ok(Ok(answer)) => return answer,
                    Ok(Err(why)) => return for_a_person(&why),
                    Err(error) => {
                        tracing::warn!("cannot ask, retrying: {error:#}");
                        tokio::time::sleep(RETRY_DELAY).await;
                    }
                }
            }
        }
        .boxed()
    })
}

fn for_a_person(why: &str) -> Value {
    tracing::info!("no workflow: {why}");
    json!({
        "needs_human_review": true,
        "human_review_reason": format!("fixed rules, no language model: {why}"),
        "root_cause_analysis": { "summary": "not found", "severity": "unknown" },
    })
}

/// The answer, or why the rules have none.
async fn select(
    client: &Client,
    catalog: &Catalog,
    incident: &Incident,
) -> Result<Result<Value, String>> {
    if incident.signal != SIGNAL || incident.kind != "Deployment" {
        let Incident { signal, kind, .. } = incident;
        return Ok(Err(format!("there is no rule for {signal} of a {kind}")));
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &incident.namespace);
    let Some(deployment) = deployments.get_opt(&incident.name).await? else {
        return Ok(Err(format!("Deployment {} does not exist", incident.name)));
    };
    let Some(limit) = memory_limit(&deployment) else {
        return Ok(Err("the container has no memory limit in Mi".to_owned()));
    };
    let offers = catalog.offers(client, incident).await?;
    let Some(offer) = offers.into_iter().next() else {
        let Incident {
            severity,
            environment,
            priority,
            ..
        } = incident;
        return Ok(Err(format!(
            "no workflow of action {ACTION} is for severity {severity}, environment {environment}, priority {priority}"
        )));
    };
    let rationale = format!(
        "fixed rules, no language model: a container that was OOMKilled gets twice its limit of {limit}Mi"
    );
    tracing::info!(workflow = offer.id, limit, "selected");
    Ok(Ok(json!({
        "needs_human_review": false,
        "selected_workflow": {
            "workflow_id": offer.id, "action_type": ACTION, "version": offer.version,
            "execution_bundle": offer.bundle, "execution_engine": offer.engine,
            "confidence": 0.95, "rationale": rationale,
            "parameters": { PARAMETER: format!("{}Mi", 2 * limit) },
        },
        "root_cause_analysis": {
            "summary": format!("the memory limit of {limit}Mi is too low"),
            "severity": incident.severity, "signal_name": incident.signal,
            "contributing_factors": [],
            "affectedResource": { "kind": incident.kind, "name": incident.name, "namespace": incident.namespace },
        },
    })))
}

/// The limit of the first container, in Mi.
fn memory_limit(deployment: &Deployment) -> Option<u32> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let limits = pod
        .containers
        .first()?
        .resources
        .as_ref()?
        .limits
        .as_ref()?;
    limits.get("memory")?.0.strip_suffix("Mi")?.parse().ok()
}

/// A field of a JSON object; empty where it is missing.
fn text(object: &Value, key: &str) -> String {
    let found = object.get(key).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

impl Incident {
    fn read(incident: &Value) -> Self {
        let text = |key: &str| text(incident, key);
        Self {
            signal: text("signal_name"),
            namespace: text("resource_namespace"),
            kind: text("resource_kind"),
            name: text("resource_name"),
            severity: text("severity"),
            environment: text("environment"),
            priority: text("priority"),
        }
    }

    fn component(&self) -> String {
        self.kind.to_lowercase()
    }
}

impl Catalog {
    async fn offers(&self, client: &Client, incident: &Incident) -> Result<Vec<Offer>> {
        match self {
            Self::DataStorage { url, token } => {
                let token = std::fs::read_to_string(token).context("read the token")?;
                let answer = reqwest::Client::new()
                    .get(format!("{url}/api/v1/workflows/actions/{ACTION}"))
                    .timeout(DEADLINE)
                    .query(&[
                        ("severity", &incident.severity),
                        ("component", &incident.component()),
                        ("environment", &incident.environment),
                        ("priority", &incident.priority),
                    ])
                    .bearer_auth(token.trim())
                    .send()
                    .await?;
                let status = answer.status();
                let body: Value = answer.json().await?;
                if !status.is_success() {
                    bail!("Data Storage answers {status}: {body}");
                }
                let found = body.get("workflows").and_then(Value::as_array);
                Ok(found.into_iter().flatten().map(Offer::of_entry).collect())
            }
            Self::Objects(namespace) => {
                let api: Api<RemediationWorkflow> = Api::namespaced(client.clone(), namespace);
                let all = api.list(&ListParams::default()).await?;
                let fitting = all.into_iter().filter(|it| fits(it, incident));
                Ok(fitting.map(|it| Offer::of_object(&it)).collect())
            }
        }
    }
}

impl Offer {
    fn of_entry(entry: &Value) -> Self {
        let text = |key: &str| text(entry, key);
        Self {
            id: text("workflowId"),
            version: text("version"),
            bundle: text("executionBundle"),
            engine: text("executionEngine"),
        }
    }

    fn of_object(object: &RemediationWorkflow) -> Self {
        let spec = &object.spec;
        Self {
            id: object.name_any(),
            version: spec.version.clone(),
            bundle: spec.execution.bundle.clone(),
            engine: spec.execution.engine.clone(),
        }
    }
}

/// Whether a workflow is offered for an incident, as in Data Storage's discovery.
fn fits(workflow: &RemediationWorkflow, incident: &Incident) -> bool {
    let status = workflow
        .status
        .as_ref()
        .and_then(|it| it.catalog_status.as_deref());
    let has = |labels: &[String], value: &str| {
        labels
            .iter()
            .any(|it| it == "*" || it.eq_ignore_ascii_case(value))
    };
    let labels = &workflow.spec.labels;
    status.is_none_or(|it| it == "Active")
        && workflow.spec.action_type == ACTION
        && has(&labels.severity, &incident.severity)
        && has(&labels.environment, &incident.environment)
        && has(&labels.component, &incident.component())
        && has(std::slice::from_ref(&labels.priority), &incident.priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incident(environment: &str) -> Incident {
        Incident::read(&json!({
            "signal_name": SIGNAL, "resource_kind": "Deployment", "severity": "critical",
            "environment": environment, "priority": "P0",
        }))
    }

    fn workflow(action: &str, status: &Value) -> RemediationWorkflow {
        serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "RemediationWorkflow", "metadata": { "name": "w" },
            "spec": {
                "version": "1", "actionType": action, "execution": { "engine": "job", "bundle": "b" },
                "labels": { "severity": ["critical"], "environment": ["production"], "component": ["deployment"], "priority": "*" },
            },
            "status": status,
        }))
        .expect("a workflow")
    }

    #[test]
    fn workflow_fits_by_action_labels_and_status() {
        let production = incident("production");
        assert!(fits(&workflow(ACTION, &json!({})), &production));
        assert!(fits(
            &workflow(ACTION, &json!({ "catalogStatus": "Active" })),
            &production
        ));
        assert!(!fits(
            &workflow(ACTION, &json!({ "catalogStatus": "Disabled" })),
            &production
        ));
        assert!(!fits(&workflow("Restart", &json!({})), &production));
        assert!(!fits(&workflow(ACTION, &json!({})), &incident("staging")));
    }

    #[test]
    fn memory_limit_is_read_in_mi_only() {
        let deployment = |limit: &str| -> Deployment {
            serde_json::from_value(
                json!({ "spec": { "selector": {}, "template": { "spec": { "containers": [
                { "name": "app", "resources": { "limits": { "memory": limit } } },
            ] } } } }),
            )
            .expect("a Deployment")
        };
        assert_eq!(memory_limit(&deployment("64Mi")), Some(64));
        assert_eq!(memory_limit(&deployment("1Gi")), None);
    }
}
