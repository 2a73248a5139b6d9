//! The plan that an engine builds a Job or PipelineRun from, and what both have in common.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PodSecurityContext, SeccompProfile};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use wfe_model::parameters::TARGET_PARAMETERS;
use wfe_model::rules::ValidatedSpec;
use wfe_model::served::ServedTarget;
use wfe_model::workflow::Resources;
use wfe_model::workflow_execution::WorkflowExecution;

use crate::execution::Source;
use crate::names::{self, TargetHash};
use crate::trace::traceparent;

/// User id of a workflow whose catalog entry has none: the distroless images' `nonroot`.
const DEFAULT_USER: i64 = 65_532;
/// As OpenTelemetry passes the trace to a process.
const TRACEPARENT: &str = "TRACEPARENT";

/// Everything that an engine needs to build a Job or PipelineRun.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the object, by [`crate::names::execution_name`].
    pub name: String,
    /// The execution namespace.
    pub namespace: String,
    /// The WorkflowExecution that the object is created for.
    pub source: Source,
    /// Hash of the target.
    pub target_hash: TargetHash,
    /// What the target is in this cluster.
    pub target: ServedTarget,
    /// The request, validated against its catalog entry.
    pub valid: Arc<ValidatedSpec>,
    /// Execution timeout.
    pub timeout: Duration,
    /// ServiceAccount of the pods.
    pub service_account: String,
    /// Requests and limits of resources that the catalog entry does not name.
    pub default_resources: Resources,
}

impl Plan {
    /// Metadata of the object.
    pub(crate) fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels()),
            annotations: Some(self.annotations()),
            owner_references: self.owner().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    /// Labels of the object and its pods.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        BTreeMap::from([
            label(names::MANAGED_BY, names::MANAGER),
            label(
                names::WORKFLOW_EXECUTION,
                &names::label_value(&self.source.name),
            ),
            label(names::WORKFLOW_EXECUTION_UID, &self.source.uid),
            label(names::EXECUTION_ENGINE, self.valid.workflow.engine.as_str()),
            label(names::TARGET_HASH, self.target_hash.as_str()),
            label(names::SOURCE_NAMESPACE, &self.source.namespace),
        ])
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let spec = &self.valid.spec;
        BTreeMap::from([
            self.source_annotation(),
            (names::TARGET_RESOURCE.to_owned(), spec.target.to_string()),
            (names::WORKFLOW_ID.to_owned(), spec.workflow_id.clone()),
            (names::IMAGE.to_owned(), self.valid.image.to_string()),
        ])
    }

    /// The full name of the WorkflowExecution: the label has a cut one.
    pub(crate) fn source_annotation(&self) -> (String, String) {
        (names::WORKFLOW_EXECUTION.to_owned(), self.source_name())
    }

    fn source_name(&self) -> String {
        format!("{}/{}", self.source.namespace, self.source.name)
    }

    /// Only within one namespace: the garbage collector deletes an object whose owner is in another
    /// one.
    fn owner(&self) -> Option<OwnerReference> {
        (self.source.namespace == self.namespace).then(|| OwnerReference {
            api_version: WorkflowExecution::api_version(&()).into_owned(),
            kind: WorkflowExecution::kind(&()).into_owned(),
            name: self.source.name.clone(),
            uid: self.source.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        })
    }

    /// What the workflow is told, by name: the target, its request, its trace, and its parameters.
    pub(crate) fn values(&self) -> Vec<(String, String)> {
        let spec = &self.valid.spec;
        let request = spec.remediation_request.as_ref();
        let target = self.target.parameters(&spec.target);
        let mut parameters = self.valid.parameters.clone();
        parameters.retain(|name, _| !TARGET_PARAMETERS.contains(&name.as_str()));
        // The name is not reserved.
        let is_free = !parameters.contains_key(TRACEPARENT);
        let trace = traceparent(&self.source.uid).filter(|_| is_free);
        let ours = [
            Some(("TARGET_RESOURCE", spec.target.to_string())),
            Some(("KUBERNAUT_WORKFLOW_EXECUTION", self.source_name())),
            request.map(|request| ("KUBERNAUT_REMEDIATION_REQUEST", request.name.clone())),
            trace.map(|trace| (TRACEPARENT, trace)),
        ];
        let ours = ours.into_iter().flatten().chain(target);
        let ours = ours.map(|(name, value)| (name.to_owned(), value));
        ours.chain(parameters).collect()
    }

    /// Security context of the pods, as `PodSecurity` `restricted` requires it.
    pub(crate) fn pod_security_context(&self) -> PodSecurityContext {
        PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(self.valid.workflow.run_as_user.unwrap_or(DEFAULT_USER)),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use serde_json::json;
    use wfe_model::engine::Engine;
    use wfe_model::rules;
    use wfe_model::workflow::Workflow;

    use super::*;

    pub(crate) fn default_resources() -> Resources {
        let amounts = |cpu: &str, memory: &str| {
            let amounts = [("cpu", cpu), ("memory", memory)];
            let amounts = amounts.map(|(name, amount)| (name.to_owned(), amount.to_owned()));
            amounts.into()
        };
        Resources {
            requests: amounts("50m", "64Mi"),
            limits: amounts("1", "512Mi"),
        }
    }

    pub(crate) const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A valid plan with every optional field, for a WorkflowExecution in `namespace`.
    pub(crate) fn plan(engine: Engine, namespace: &str) -> Plan {
        let field = engine.runs();
        let reference = format!("{}r.io/w/restart@sha256:{HEX}", field.scheme());
        let yaml = format!(
            "metadata: {{workflowId: restart, version: 1.0.0}}
execution: {{engine: {engine}, bundle: 'r.io/w/restart:v1@sha256:{HEX}', runAsUser: 1000, resources: {{requests: {{cpu: 50m}}, limits: {{memory: 128Mi, ephemeral-storage: 2Gi}}}}}}
dependencies: {{secrets: [{{name: registry}}], configMaps: [{{name: limits.v1}}]}}
parameters:
- {{name: TEXT, type: string}}
- {{name: ADDED, type: integer, default: 3}}
"
        );
        let read = Workflow::read("restart.yaml", &yaml).expect("a valid workflow");
        let workflow = Arc::new(read.workflow);
        let text = if engine.substitutes() {
            "$HOME"
        } else {
            "$(TARGET_RESOURCE) $HOME"
        };
        let spec = json!({
            "executionEngine": engine.as_str(),
            "workflowRef": { "workflowId": "restart", "version": "1.0.0", field.name(): reference },
            "targetResource": "prod/Deployment/web",
            "parameters": { "TEXT": text },
            "remediationRequestRef": { "name": "rr-1" },
        });
        let spec = rules::read(spec).expect("a spec");
        Plan {
            name: "we-1-0a1b2c3d".to_owned(),
            namespace: "kubernaut-workflows".to_owned(),
            source: Source {
                namespace: namespace.to_owned(),
                name: "we-1".to_owned(),
                uid: "uid-1".to_owned(),
            },
            target_hash: "abc".into(),
            target: ServedTarget {
                api_version: "apps/v1".to_owned(),
                kind: "Deployment".to_owned(),
            },
            valid: Arc::new(rules::validate(&spec, rules::check(&spec), &workflow).expect("valid")),
            timeout: Duration::from_mins(30),
            service_account: "runner".to_owned(),
            default_resources: default_resources(),
        }
    }
}
