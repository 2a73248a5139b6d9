//! Users with client certificates, ServiceAccounts with tokens, and the RBAC for both.

use anyhow::Result;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::install::{apply, apply_everywhere, service_account_user, until_effective};
use super::state::System;

/// RBAC rules of a user who works with WorkflowExecutions and clears blocks.
fn operator_rules() -> Value {
    json!([{
        "apiGroups": ["kubernaut.ai"],
        "resources": ["workflowexecutions", "workflowexecutions/status"],
        "verbs": ["get", "list", "create", "patch", "update"],
    }])
}

impl System {
    /// A client of a user with the operator Role in `namespace`.
    pub async fn operator(&self, name: &str, namespace: &str) -> Result<Client> {
        self.grant_operator_role(&json!({ "kind": "User", "name": name }), namespace)
            .await?;
        self.cluster.user(name, None).await
    }

    /// A client of a user with the role `edit` of Kubernetes in the execution namespace, and its verbs on
    /// Leases.
    pub async fn editor(&self, name: &str) -> Result<Client> {
        let (admin, namespace) = (self.cluster.admin(), self.execution.name());
        let rules = json!([{ "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"] }]);
        let role: Role =
            serde_json::from_value(json!({ "metadata": { "name": name }, "rules": rules }))?;
        let subject = json!({ "kind": "User", "name": name });
        let leases: RoleBinding = serde_json::from_value(binding(name, "Role", &subject))?;
        let edit: RoleBinding = serde_json::from_value(binding("edit", "ClusterRole", &subject))?;
        apply(&Api::namespaced(admin.clone(), namespace), &role).await?;
        apply(&Api::namespaced(admin.clone(), namespace), &leases).await?;
        apply(&Api::namespaced(admin, namespace), &edit).await?;
        for (group, resource) in [("batch", "jobs"), ("coordination.k8s.io", "leases")] {
            let access = json!({ "namespace": namespace, "verb": "patch", "group": group, "resource": resource });
            self.wait_until_access(name, access, true).await?;
        }
        self.cluster.user(name, None).await
    }

    /// Binds a `ClusterRole` to a user in the namespace of the WorkflowExecutions, and waits until RBAC allows
    /// `verb` on them.
    pub async fn bind(&self, user: &str, role: &str, verb: &str) -> Result<()> {
        let subject = json!({ "kind": "User", "name": user });
        let mut object: RoleBinding =
            serde_json::from_value(binding(role, "ClusterRole", &subject))?;
        object.metadata.name = Some(user.to_owned());
        apply(&self.namespace.api(), &object).await?;
        let namespace = Some(self.namespace.name());
        self.wait_until_allowed(user, verb, "", namespace, true)
            .await
    }

    /// Whether RBAC allows a user `verb` on WorkflowExecutions, or on a subresource of them.
    pub async fn is_allowed(&self, user: &str, verb: &str, subresource: &str) -> Result<bool> {
        let access = on_executions(verb, subresource, Some(self.namespace.name()));
        self.has_access(user, &access).await
    }

    /// A client of a ServiceAccount in the namespace `of`, with the operator Role in `namespace`.
    pub async fn operator_account(&self, of: &str, name: &str, namespace: &str) -> Result<Client> {
        let subject = json!({ "kind": "ServiceAccount", "name": name, "namespace": of });
        self.grant_operator_role(&subject, namespace).await?;
        self.cluster.service_account(of, name).await
    }

    async fn grant_operator_role(&self, subject: &Value, namespace: &str) -> Result<()> {
        let text = |key| subject.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = format!("operator-{}", text("name"));
        let role: Role = serde_json::from_value(
            json!({ "metadata": { "name": name }, "rules": operator_rules() }),
        )?;
        let binding: RoleBinding = serde_json::from_value(binding(&name, "Role", subject))?;
        let admin = self.cluster.admin();
        apply(&Api::namespaced(admin.clone(), namespace), &role).await?;
        apply(&Api::namespaced(admin, namespace), &binding).await?;
        let user = match text("namespace") {
            "" => text("name").to_owned(),
            of => service_account_user(of, text("name")),
        };
        self.wait_until_allowed(&user, "patch", "status", Some(namespace), true)
            .await
    }

    /// Grants a user `verb` on WorkflowExecutions in every namespace.
    pub async fn grant_cluster_wide(&self, user: &str, verb: &str) -> Result<()> {
        let rules = json!([{ "apiGroups": ["kubernaut.ai"], "resources": ["workflowexecutions"], "verbs": [verb] }]);
        let name = format!("{verb}-{user}");
        let role: ClusterRole =
            serde_json::from_value(json!({ "metadata": { "name": name }, "rules": rules }))?;
        let subject = json!({ "kind": "User", "name": user });
        let binding: ClusterRoleBinding =
            serde_json::from_value(binding(&name, "ClusterRole", &subject))?;
        apply_everywhere(self, role).await?;
        apply_everywhere(self, binding).await?;
        self.wait_until_allowed(user, verb, "", None, true).await
    }

    /// Grants a user the verb `use` on a ServiceAccount of the execution namespace.
    pub async fn grant_account(&self, user: &str, account: &str) -> Result<()> {
        let rules = json!([{ "apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": [account], "verbs": ["use"] }]);
        let name = format!("use-{account}");
        let (admin, namespace) = (self.cluster.admin(), self.execution.name());
        let role: Role =
            serde_json::from_value(json!({ "metadata": { "name": name }, "rules": rules }))?;
        let subject = json!({ "kind": "User", "name": user });
        let binding: RoleBinding = serde_json::from_value(binding(&name, "Role", &subject))?;
        apply(&Api::namespaced(admin.clone(), namespace), &role).await?;
        apply(&Api::namespaced(admin, namespace), &binding).await?;
        let access = json!({ "namespace": namespace, "verb": "use", "resource": "serviceaccounts", "name": account });
        self.wait_until_access(user, access, true).await
    }

    /// Waits until RBAC allows a user `verb` on WorkflowExecutions, or denies it.
    pub(super) async fn wait_until_allowed(
        &self,
        user: &str,
        verb: &str,
        subresource: &str,
        namespace: Option<&str>,
        allowed: bool,
    ) -> Result<()> {
        let access = on_executions(verb, subresource, namespace);
        self.wait_until_access(user, access, allowed).await
    }

    /// Waits until RBAC allows a user an access, by its resource attributes, or denies it.
    pub(super) async fn wait_until_access(
        &self,
        user: &str,
        access: Value,
        allowed: bool,
    ) -> Result<()> {
        until_effective("a user's RBAC", async || {
            Ok(self.has_access(user, &access).await? == allowed)
        })
        .await
    }

    /// Whether RBAC allows a user an access, by its resource attributes.
    async fn has_access(&self, user: &str, access: &Value) -> Result<bool> {
        let reviews: Api<SubjectAccessReview> = Api::all(self.cluster.admin());
        let review = json!({ "spec": { "user": user, "resourceAttributes": access } });
        let review: SubjectAccessReview = serde_json::from_value(review)?;
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|it| it.allowed))
    }
}

/// Resource attributes of an access to WorkflowExecutions, or to a subresource of them.
fn on_executions(verb: &str, subresource: &str, namespace: Option<&str>) -> Value {
    json!({
        "namespace": namespace, "verb": verb, "group": "kubernaut.ai", "resource": "workflowexecutions", "subresource": subresource,
    })
}

fn binding(name: &str, kind: &str, subject: &Value) -> Value {
    json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
        "subjects": [subject],
    })
}
