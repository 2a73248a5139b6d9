//! Users with certificates and rights of their own.

use anyhow::Result;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::System;
use super::install::{apply, until_effective};

/// Rules of somebody who works with WorkflowExecutions, and may clear blocks.
fn operator() -> Value {
    json!([{
        "apiGroups": ["kubernaut.ai"],
        "resources": ["workflowexecutions", "workflowexecutions/status"],
        "verbs": ["get", "list", "create", "patch", "update"],
    }])
}

impl System {
    /// A client of somebody who may do all with WorkflowExecutions in `namespace` that an operator
    /// does.
    pub async fn operator(&self, name: &str, namespace: &str) -> Result<Client> {
        let client = self.cluster.user(name, None).await?;
        self.let_operate(json!({ "kind": "User", "name": name }), namespace)
            .await?;
        self.until_may(&client, "patch", "status", Some(namespace))
            .await?;
        Ok(client)
    }

    /// The same rights for somebody else.
    pub async fn let_operate(&self, subject: Value, namespace: &str) -> Result<()> {
        let name = subject.get("name").and_then(Value::as_str);
        let name = format!("operator-{}", name.unwrap_or_default());
        let role: Role =
            serde_json::from_value(json!({ "metadata": { "name": name }, "rules": operator() }))?;
        let binding: RoleBinding = serde_json::from_value(binding(&name, "Role", &subject))?;
        let admin = self.cluster.admin();
        apply(&Api::namespaced(admin.clone(), namespace), &role).await?;
        apply(&Api::namespaced(admin, namespace), &binding).await
    }

    /// Lets a user do `verb` with WorkflowExecutions in every namespace. The role outlives the
    /// test: its name is the user's, who is the test's own.
    pub async fn let_everywhere(&self, client: &Client, user: &str, verb: &str) -> Result<()> {
        let rules = json!([{ "apiGroups": ["kubernaut.ai"], "resources": ["workflowexecutions"], "verbs": [verb] }]);
        let name = format!("{verb}-{user}");
        let role: ClusterRole =
            serde_json::from_value(json!({ "metadata": { "name": name }, "rules": rules }))?;
        let subject = json!({ "kind": "User", "name": user });
        let binding: ClusterRoleBinding =
            serde_json::from_value(binding(&name, "ClusterRole", &subject))?;
        let admin = self.cluster.admin();
        apply(&Api::all(admin.clone()), &role).await?;
        apply(&Api::all(admin), &binding).await?;
        self.until_may(client, verb, "", None).await
    }

    async fn until_may(
        &self,
        client: &Client,
        verb: &str,
        subresource: &str,
        namespace: Option<&str>,
    ) -> Result<()> {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
        let review: SelfSubjectAccessReview = serde_json::from_value(
            json!({ "spec": { "resourceAttributes": {
            "namespace": namespace, "verb": verb, "group": "kubernaut.ai", "resource": "workflowexecutions", "subresource": subresource,
        } } }),
        )?;
        until_effective("a user's rights", async || {
            let answer = reviews.create(&PostParams::default(), &review).await?;
            Ok(answer.status.is_some_and(|status| status.allowed))
        })
        .await
    }
}

fn binding(name: &str, kind: &str, subject: &Value) -> Value {
    json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
        "subjects": [subject],
    })
}
