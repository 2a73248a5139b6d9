//! The cluster; reads PipelineRuns.

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, ResourceExt};
use wfe_model::workflow_execution::{FailureDetails, WorkflowExecution};
use wfe_tests::system::System;
use wfe_tests::{Cluster, TestNamespace};

/// Objects of a Tekton kind in a namespace.
pub use wfe_tests::system::cluster;

pub fn tekton(cluster: &Cluster, namespace: &TestNamespace, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("tekton.dev", "v1", kind);
    let resource = ApiResource::from_gvk(&kind);
    Api::namespaced_with(cluster.admin(), namespace.name(), &resource)
}

/// The names of all PipelineRuns in the execution namespace.
pub async fn pipeline_runs(system: &System) -> Vec<String> {
    let api = tekton(&system.cluster, &system.execution, "PipelineRun");
    let listed = api.list(&ListParams::default()).await.expect("listed");
    listed.iter().map(ResourceExt::name_any).collect()
}

/// Why a WorkflowExecution failed.
pub fn failure(wfe: &WorkflowExecution) -> FailureDetails {
    let status = wfe.status.as_ref().expect("a status");
    let details = status.failure_details.clone();
    details.unwrap_or_else(|| panic!("not failed: {status:?}"))
}
