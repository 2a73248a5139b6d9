//! Installs CRD, RBAC, policies and ServiceAccounts from the chart's files, as `helm install` does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::wait::Condition;
use kube::runtime::wait::conditions::is_crd_established;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use wfe_model::workflow_execution::WorkflowExecution;

use super::look::dry_run;
use super::script::Script;
use super::state::{System, chart};
use crate::cluster::{Cluster, access, wait};

pub(super) const CONTROLLER: &str = "wfe-controller";
pub(super) const WEBHOOK: &str = "wfe-webhook";
pub(super) const DATA_STORAGE_CLIENT: &str = "wfe-data-storage-client";
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
const EFFECTIVE_DEADLINE: Duration = Duration::from_secs(20);
/// Label of cluster-scoped objects; its value is the namespace of the [`System`] that owns them.
const SYSTEM_LABEL: &str = "wfe-tests/system";
const RUNNER: &str = "kubernaut-workflow-runner";
const TEKTON: &str = "system:serviceaccount:tekton-pipelines:tekton-pipelines-controller";
const RUNNER_LABEL: &str = "kubernaut.ai/workflow-runner";

/// Applies CRD, ServiceAccounts, RBAC and policies, and enforces PodSecurity `restricted` in the
/// execution namespace.
pub(super) async fn all(system: &System) -> Result<()> {
    crd(&system.cluster).await?;
    let namespaces: Api<Namespace> = Api::all(system.cluster.admin());
    let restricted =
        json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    namespaces
        .patch(
            system.execution.name(),
            &PatchParams::default(),
            &Patch::Merge(restricted),
        )
        .await?;

    for (namespace, name, label) in [
        (&system.programs, CONTROLLER, None),
        (&system.programs, WEBHOOK, None),
        (&system.programs, DATA_STORAGE_CLIENT, None),
        (
            &system.execution,
            RUNNER,
            Some((RUNNER_LABEL.to_owned(), "true".to_owned())),
        ),
    ] {
        let accounts = namespace.api::<ServiceAccount>();
        let labels = label.map(|label| BTreeMap::from([label]));
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels,
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        apply(&accounts, &account).await?;
    }
    let execution = system.execution.name();
    cluster_role(system, CONTROLLER, rules("controller-cluster-rules.yaml")?).await?;
    role(
        system,
        execution,
        CONTROLLER,
        rules("controller-rules.yaml")?,
    )
    .await?;
    role(system, execution, WEBHOOK, rules("webhook-rules.yaml")?).await?;
    policies(system, "files/execution-policies.yaml", execution).await?;
    policies(system, "files/policies.yaml", system.namespace.name()).await?;
    wait_until_policies_deny(system).await
}

/// Lets controllers elect a leader by a Lease in their own namespace.
pub(super) async fn leader_election(system: &System) -> Result<()> {
    let rules = rules("leader-election-rules.yaml")?;
    let (namespace, name) = (system.programs.name(), "leader-election");
    role_named(system, namespace, name, CONTROLLER, rules).await
}

/// Applies policies of the chart, bound to one namespace of this system.
async fn policies(system: &System, file: &str, namespace: &str) -> Result<()> {
    let text = text(file)?;
    let controller = service_account_user(system.programs.name(), CONTROLLER);
    let policies: Vec<ValidatingAdmissionPolicy> = serde_saphyr::from_str(
        &text
            .replace("CONTROLLER", &controller)
            .replace("EXECUTION_NAMESPACE", system.execution.name())
            .replace("DEFAULT_RUNNER", RUNNER)
            .replace("TEKTON", TEKTON),
    )?;
    // Applied in reverse: the first policy, which can be probed, takes effect last.
    for mut policy in policies.into_iter().rev() {
        let name = format!("{}-{}", policy.name_any(), system.namespace.name());
        policy.metadata.name = Some(name.clone());
        let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "policyName": name, "validationActions": ["Deny"],
                "matchResources": { "namespaceSelector": named(namespace) },
            },
        }))?;
        apply_everywhere(system, policy).await?;
        apply_everywhere(system, binding).await?;
    }
    Ok(())
}

/// Removes a policy of this system.
pub(super) async fn remove_policy(system: &System, policy: &str) -> Result<()> {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(system.cluster.admin());
    let name = format!("{policy}-{}", system.namespace.name());
    bindings.delete(&name, &DeleteParams::default()).await?;
    Ok(())
}

/// Waits until the API server denies a user's status update.
async fn wait_until_policies_deny(system: &System) -> Result<()> {
    let name = "probe";
    let request = Script::of("probe", format!("r.io/a@sha256:{}", "0".repeat(64)), "");
    let api = system.namespace.api::<WorkflowExecution>();
    api.create(&PostParams::default(), &request.request(name, &json!({})))
        .await?;
    let dry_run = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let patch = Patch::Merge(json!({ "status": { "phase": "Pending" } }));
    let policed = until_effective("the policies", async || {
        let refused = api.patch_status(name, &dry_run, &patch).await;
        Ok(refused.is_err_and(|error| error.to_string().contains("only the controller writes")))
    });
    policed.await?;
    api.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Label selector that matches the namespace of this system only.
pub(super) fn selector(system: &System) -> Value {
    named(system.namespace.name())
}

/// Label selector that matches a namespace.
pub(super) fn named(namespace: &str) -> Value {
    json!({ "matchLabels": { "kubernetes.io/metadata.name": namespace } })
}

/// Applies a CRD of the same name without any rule, as the field's older one.
pub(super) async fn crd_without_rules(system: &System) -> Result<()> {
    let [mut crd, _] = crds()?;
    remove_rules(&mut crd);
    let crd: CustomResourceDefinition = serde_json::from_value(crd)?;
    apply(&Api::all(system.cluster.admin()), &crd).await?;
    let api = system.namespace.api::<WorkflowExecution>();
    let empty = json!({ "metadata": { "generateName": "probe-" }, "spec": { "targetResource": "prod/Deployment/web", "workflowRef": { "workflowId": "w", "version": "1" } } });
    let empty: WorkflowExecution = serde_json::from_value(empty)?;
    let mut refusal = None;
    let accepted = async || {
        refusal = api.create(&dry_run(), &empty).await.err();
        Ok(refusal.is_none())
    };
    let effective = until_effective("a CRD without rules", accepted).await;
    effective.with_context(|| refusal.map(|it| it.to_string()).unwrap_or_default())
}

fn remove_rules(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            // Keys of lists must be required.
            let names_engine = |value: &Value| {
                value
                    .as_array()
                    .is_some_and(|it| it.contains(&json!("executionEngine")))
            };
            let is_rule = |key: &str, value: &Value| match key {
                "x-kubernetes-validations" | "enum" => value.is_array(),
                "required" => names_engine(value),
                _ => false,
            };
            fields.retain(|key, value| !is_rule(key, value));
            fields.values_mut().for_each(remove_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_rules),
        _ => {}
    }
}

/// Applies the CRD of an older release, without `field` in the status schema and without rules for the
/// whole spec, and waits until the
/// API server prunes the field from the WorkflowExecution `probe`.
pub(super) async fn older_crd(system: &System, field: &str, probe: &str) -> Result<()> {
    let [mut crd, _] = crds()?;
    let pointer = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
    let properties = crd.pointer_mut(pointer).and_then(Value::as_object_mut);
    properties
        .context("the CRD has no status schema")?
        .remove(field)
        .context("the status schema has no such field")?;
    let spec = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    let spec = spec.and_then(Value::as_object_mut);
    spec.context("the CRD has no spec schema")?
        .remove("x-kubernetes-validations");
    let crd: CustomResourceDefinition = serde_json::from_value(crd)?;
    apply(&Api::all(system.cluster.admin()), &crd).await?;
    let account = system
        .cluster
        .service_account(system.programs.name(), CONTROLLER)
        .await?;
    let api: Api<WorkflowExecution> = Api::namespaced(account, system.namespace.name());
    let mut written = serde_json::to_value(api.get(probe).await?)?;
    let status = written
        .pointer_mut("/status")
        .and_then(Value::as_object_mut);
    let status = status.context("the probe has no status")?;
    status.insert(field.to_owned(), json!("2026-01-01T00:00:00Z"));
    let written: WorkflowExecution = serde_json::from_value(written)?;
    until_effective("an older CRD", async || {
        let stored = api.replace_status(probe, &dry_run(), &written).await?;
        Ok(serde_json::to_value(stored.status)?.get(field).is_none())
    })
    .await
}

/// The CRDs of WorkflowExecution and RemediationWorkflow.
fn crds() -> Result<[Value; 2]> {
    let crds: Vec<Value> = serde_saphyr::from_multiple(&text("files/crds.yaml")?)?;
    let crds = <[Value; 2]>::try_from(crds);
    crds.map_err(|_| anyhow!("files/crds.yaml: two CRDs are expected"))
}

/// Applies the chart's CRDs and the roles for people, and waits until the CRDs are established.
pub(super) async fn crd(cluster: &Cluster) -> Result<()> {
    for crd in crds()? {
        definition(cluster, serde_json::from_value(crd)?).await?;
    }
    for role in read::<Vec<ClusterRole>>("files/roles.yaml")? {
        apply(&Api::all(cluster.admin()), &role).await?;
    }
    Ok(())
}

/// Applies a CRD and waits until it is established.
async fn definition(cluster: &Cluster, crd: CustomResourceDefinition) -> Result<()> {
    let api = Api::all(cluster.admin());
    apply(&api, &crd).await?;
    let established =
        |crd: &CustomResourceDefinition| is_crd_established().matches_object(Some(crd));
    let (name, what) = (crd.name_any(), "the CRD is established");
    wait::until(&api, &name, what, EFFECTIVE_DEADLINE, established).await?;
    Ok(())
}

fn rules(file: &str) -> Result<Vec<PolicyRule>> {
    read(&format!("files/{file}"))
}

pub(super) fn read<T: DeserializeOwned>(file: &str) -> Result<T> {
    serde_saphyr::from_str(&text(file)?).with_context(|| format!("read {file}"))
}

fn text(file: &str) -> Result<String> {
    let path = chart(file);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// A Role with `rules` in `namespace`, bound to a ServiceAccount of the programs.
async fn role(
    system: &System,
    namespace: &str,
    account: &str,
    rules: Vec<PolicyRule>,
) -> Result<()> {
    role_named(system, namespace, account, account, rules).await
}

async fn role_named(
    system: &System,
    namespace: &str,
    name: &str,
    account: &str,
    rules: Vec<PolicyRule>,
) -> Result<()> {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    };
    let role = Role {
        metadata: metadata.clone(),
        rules: Some(rules),
    };
    let binding = RoleBinding {
        metadata,
        role_ref: role_ref("Role", name),
        subjects: Some(vec![subject(system, account)]),
    };
    let client = system.cluster.admin();
    apply(&Api::namespaced(client.clone(), namespace), &role).await?;
    apply(&Api::namespaced(client, namespace), &binding).await
}

fn role_ref(kind: &str, name: &str) -> RoleRef {
    RoleRef {
        api_group: "rbac.authorization.k8s.io".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

/// A ServiceAccount of the programs.
fn subject(system: &System, account: &str) -> Subject {
    Subject {
        kind: "ServiceAccount".to_owned(),
        name: account.to_owned(),
        namespace: Some(system.programs.name().to_owned()),
        api_group: None,
    }
}

/// A `ClusterRole` with `rules`, bound to a ServiceAccount; deleted with the system.
async fn cluster_role(system: &System, account: &str, rules: Vec<PolicyRule>) -> Result<()> {
    let metadata = ObjectMeta {
        name: Some(configuration_name(system.namespace.name())),
        ..ObjectMeta::default()
    };
    let role = ClusterRole {
        metadata: metadata.clone(),
        rules: Some(rules),
        ..ClusterRole::default()
    };
    let binding = ClusterRoleBinding {
        metadata,
        role_ref: role_ref("ClusterRole", &configuration_name(system.namespace.name())),
        subjects: Some(vec![subject(system, account)]),
    };
    apply_everywhere(system, role).await?;
    apply_everywhere(system, binding).await
}

/// Applies a cluster-scoped object, labelled so that it is deleted with the system.
pub(super) async fn apply_everywhere<K>(system: &System, mut object: K) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Resource<DynamicType = ()> + Serialize,
{
    let labels = object.meta_mut().labels.get_or_insert_default();
    labels.insert(SYSTEM_LABEL.to_owned(), system.namespace.name().to_owned());
    apply(&Api::all(system.cluster.admin()), &object).await
}

pub(super) async fn apply<K: Clone + std::fmt::Debug + DeserializeOwned + Resource + Serialize>(
    api: &Api<K>,
    object: &K,
) -> Result<()> {
    api.patch(
        &object.name_any(),
        &PatchParams::apply("wfe-tests").force(),
        &Patch::Apply(object),
    )
    .await?;
    Ok(())
}

/// Grants or revokes the controller's permission to update statuses.
pub(super) async fn set_status_permission(system: &System, allowed: bool) -> Result<()> {
    let mut rules = rules("controller-cluster-rules.yaml")?;
    if !allowed {
        rules.retain(|rule| {
            !rule
                .resources
                .iter()
                .flatten()
                .any(|it| it == "workflowexecutions/status")
        });
    }
    cluster_role(system, CONTROLLER, rules).await?;
    let user = service_account_user(system.programs.name(), CONTROLLER);
    let namespace = Some(system.namespace.name());
    let right = system.wait_until_allowed(&user, "update", "status", namespace, allowed);
    right.await
}

/// Grants the controller the permission to delete WorkflowExecutions whose time to live is over.
pub(super) async fn expiry(system: &System) -> Result<()> {
    let rules = rules("controller-expiry-rules.yaml")?;
    let namespace = system.namespace.name();
    role_named(system, namespace, "expiry", CONTROLLER, rules).await?;
    let delete = json!({ "group": "kubernaut.ai", "resource": "workflowexecutions", "verb": "delete", "namespace": namespace });
    wait_until_allowed(system, CONTROLLER, delete, true).await
}

/// Grants or revokes the controller's permission to create Jobs.
pub(super) async fn set_job_permission(system: &System, allowed: bool) -> Result<()> {
    let mut rules = rules("controller-rules.yaml")?;
    if !allowed {
        let jobs = |rule: &&mut PolicyRule| rule.resources.iter().flatten().any(|it| it == "jobs");
        let jobs = rules.iter_mut().find(jobs).context("no rule for Jobs")?;
        jobs.verbs.retain(|it| it != "create");
    }
    role(system, system.execution.name(), CONTROLLER, rules).await?;
    let namespace = system.execution.name();
    let create =
        json!({ "group": "batch", "resource": "jobs", "verb": "create", "namespace": namespace });
    wait_until_allowed(system, CONTROLLER, create, allowed).await
}

/// Lets the controller have tokens for Data Storage.
pub(super) async fn data_storage_tokens(system: &System) -> Result<()> {
    tokens(system, CONTROLLER, "data-storage-token").await
}

/// Lets the webhook have tokens for Data Storage.
pub(super) async fn webhook_data_storage_tokens(system: &System) -> Result<()> {
    tokens(system, WEBHOOK, "webhook-data-storage-token").await
}

async fn tokens(system: &System, account: &str, role: &str) -> Result<()> {
    let rules = rules("data-storage-token-rules.yaml")?;
    let namespace = system.programs.name();
    role_named(system, namespace, role, account, rules).await?;
    let token = json!({ "resource": "serviceaccounts", "subresource": "token", "name": DATA_STORAGE_CLIENT, "verb": "create", "namespace": namespace });
    wait_until_allowed(system, account, token, true).await
}

/// Installs RemediationRequest and AIAnalysis, and lets the controller reconcile them.
pub(super) async fn platform(system: &System) -> Result<()> {
    for crd in wfe_model::crd::platform() {
        definition(&system.cluster, crd).await?;
    }
    let mut all = rules("orchestration-rules.yaml")?;
    all.extend(rules("analysis-rules.yaml")?);
    let namespace = system.namespace.name();
    role_named(system, namespace, "platform", CONTROLLER, all).await?;
    for (resource, verb) in [
        ("remediationrequests", "watch"),
        ("workflowexecutions", "create"),
    ] {
        let attributes = json!({ "group": "kubernaut.ai", "resource": resource, "verb": verb, "namespace": namespace });
        wait_until_allowed(system, CONTROLLER, attributes, true).await?;
    }
    Ok(())
}

/// Lets both programs read the catalog's objects in the namespace of the programs.
pub(super) async fn catalog_objects(system: &System) -> Result<()> {
    let namespace = system.programs.name();
    for account in [CONTROLLER, WEBHOOK] {
        let role = format!("{account}-catalog");
        let rules = rules("catalog-rules.yaml")?;
        role_named(system, namespace, &role, account, rules).await?;
        let watch = json!({ "group": "kubernaut.ai", "resource": "remediationworkflows", "verb": "watch", "namespace": namespace });
        wait_until_allowed(system, account, watch, true).await?;
    }
    Ok(())
}

/// Grants or revokes the permission that Data Storage checks for its clients.
pub(super) async fn set_data_storage_permission(system: &System, allowed: bool) -> Result<()> {
    let rules = if allowed {
        rules("data-storage-rules.yaml")?
    } else {
        Vec::new()
    };
    role_named(
        system,
        system.programs.name(),
        DATA_STORAGE_CLIENT,
        DATA_STORAGE_CLIENT,
        rules,
    )
    .await?;
    let namespace = system.programs.name();
    let create = json!({ "resource": "services", "name": "data-storage-service", "verb": "create", "namespace": namespace });
    wait_until_allowed(system, DATA_STORAGE_CLIENT, create, allowed).await
}

/// Waits until RBAC allows an account of the programs the access in `attributes`, or denies it.
async fn wait_until_allowed(
    system: &System,
    account: &str,
    attributes: Value,
    allowed: bool,
) -> Result<()> {
    let user = service_account_user(system.programs.name(), account);
    system.wait_until_access(&user, attributes, allowed).await
}

/// The user name of a ServiceAccount.
pub(super) fn service_account_user(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// A kubeconfig with a fresh token of a ServiceAccount.
pub(super) async fn kubeconfig(system: &System, account: &str) -> Result<PathBuf> {
    let config = system
        .cluster
        .service_account_kubeconfig(system.programs.name(), account)
        .await?;
    let path = system.path(&format!("{account}.conf"));
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

/// Polls until `effective` is true: the API server learns of webhook configurations, policies and
/// RBAC through its own watches, some time after they are stored.
pub async fn until_effective(
    what: &str,
    mut effective: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let asking = async {
        while !effective().await? {
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        Ok(())
    };
    tokio::time::timeout(EFFECTIVE_DEADLINE, asking)
        .await
        .with_context(|| format!("not effective in the API server in time: {what}"))?
}

/// Deletes the cluster-scoped objects of a system, and removes the finalizers that would keep its
/// namespace in Terminating.
pub(super) fn remove(kubeconfig: &Path, namespace: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = access::client(kubeconfig).await?;
        delete_labelled::<MutatingWebhookConfiguration>(&client, namespace).await?;
        delete_labelled::<ValidatingWebhookConfiguration>(&client, namespace).await?;
        delete_labelled::<ValidatingAdmissionPolicyBinding>(&client, namespace).await?;
        delete_labelled::<ValidatingAdmissionPolicy>(&client, namespace).await?;
        delete_labelled::<ClusterRoleBinding>(&client, namespace).await?;
        delete_labelled::<ClusterRole>(&client, namespace).await?;
        let api: Api<WorkflowExecution> = Api::namespaced(client, namespace);
        let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        for wfe in api.list(&ListParams::default()).await? {
            api.patch(&wfe.name_any(), &PatchParams::default(), &free)
                .await?;
        }
        Ok(())
    })
}

/// Deletes the objects of a cluster-scoped kind that carry the label of a system.
async fn delete_labelled<K>(client: &Client, namespace: &str) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Resource<DynamicType = ()>,
{
    let ours = ListParams::default().labels(&format!("{SYSTEM_LABEL}={namespace}"));
    let (api, delete) = (Api::<K>::all(client.clone()), DeleteParams::default());
    api.delete_collection(&delete, &ours).await?;
    Ok(())
}

pub(super) fn configuration_name(namespace: &str) -> String {
    format!("wfe-{namespace}")
}
