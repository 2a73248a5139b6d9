//! Builds a PipelineRun, and the request for its pipeline, from a plan. Cannot fail: the plan is
//! validated.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, SecretVolumeSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::json;
use wfe_model::duration;

use super::objects::{
    PENDING, Param, PipelineRun, PipelineRunSpec, PodTemplate, ResolutionRequest,
    ResolutionRequestSpec, ResolverRef, TaskRunTemplate, Timeouts, Workspace,
};
use crate::names;
use crate::plan::Plan;

const RESOLVER: &str = "bundles";
/// Name of the pipeline in every bundle.
const PIPELINE: &str = "workflow";
/// Label of a request: the resolver that answers it.
const RESOLVER_TYPE: &str = "resolution.tekton.dev/type";

/// Builds the PipelineRun of a plan, pending.
pub fn build(plan: &Plan) -> PipelineRun {
    let params = plan.values().into_iter();
    // Tekton substitutes $(…) in values. The rules refuse it in parameters and defaults. A
    // RemediationRequest cannot have such a name.
    let params = params.filter(|(_, value)| !value.contains("$("));
    PipelineRun {
        metadata: plan.metadata(),
        spec: PipelineRunSpec {
            pipeline_ref: Some(ResolverRef {
                resolver: RESOLVER.to_owned(),
                params: bundle(plan),
            }),
            params: params.map(|(name, value)| param(&name, &value)).collect(),
            // Started after the status stores the uid of this PipelineRun: a late create runs
            // nothing.
            status: Some(PENDING.to_owned()),
            timeouts: Some(Timeouts {
                pipeline: duration::format(plan.timeout),
            }),
            task_run_template: Some(TaskRunTemplate {
                service_account_name: plan.service_account.clone(),
                pod_template: PodTemplate {
                    security_context: plan.pod_security_context(),
                    enable_service_links: false,
                },
            }),
            workspaces: workspaces(plan),
        },
        status: None,
    }
}

/// Builds the request for the pipeline that the PipelineRun of a plan, with this uid, will run. The
/// PipelineRun owns it: it is deleted with it.
pub fn resolution_request(plan: &Plan, uid: &str) -> ResolutionRequest {
    ResolutionRequest {
        metadata: ObjectMeta {
            name: Some(plan.name.clone()),
            namespace: Some(plan.namespace.clone()),
            labels: Some(BTreeMap::from([
                (RESOLVER_TYPE.to_owned(), RESOLVER.to_owned()),
                (names::MANAGED_BY.to_owned(), names::MANAGER.to_owned()),
            ])),
            owner_references: Some(vec![OwnerReference {
                api_version: PipelineRun::api_version(&()).into_owned(),
                kind: PipelineRun::kind(&()).into_owned(),
                name: plan.name.clone(),
                uid: uid.to_owned(),
                controller: None,
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: ResolutionRequestSpec {
            params: bundle(plan),
        },
        status: None,
    }
}

fn bundle(plan: &Plan) -> Vec<Param> {
    vec![
        param("bundle", &plan.valid.image.to_string()),
        param("name", PIPELINE),
        param("kind", "pipeline"),
    ]
}

fn param(name: &str, value: &str) -> Param {
    Param {
        name: name.to_owned(),
        value: json!(value),
    }
}

/// The workspaces with the dependencies of a plan.
pub(super) fn workspaces(plan: &Plan) -> Vec<Workspace> {
    let dependencies = &plan.valid.workflow.dependencies;
    let secrets = dependencies.secrets.iter().map(|name| Workspace {
        name: format!("secret-{name}"),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.clone()),
            ..SecretVolumeSource::default()
        }),
        config_map: None,
    });
    let config_maps = dependencies.config_maps.iter().map(|name| Workspace {
        name: format!("configmap-{name}"),
        secret: None,
        config_map: Some(ConfigMapVolumeSource {
            name: name.clone(),
            ..ConfigMapVolumeSource::default()
        }),
    });
    secrets.chain(config_maps).collect()
}
