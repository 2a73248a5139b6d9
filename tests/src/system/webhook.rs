//! The webhook: its certificate, its configuration in the API server, its processes.

use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::Api;
use kube::api::DeleteParams;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wfe_model::workflow_execution::WorkflowExecution;

use super::install::{
    self, WEBHOOK, apply_everywhere, configuration_name, selector, until_effective,
};
use super::{Program, Service, System, TlsClient, dry_run, program};
use crate::cluster::pki::Authority;

/// Where the API server asks.
const PORT: u16 = 9443;
/// It tells its clients to go for some seconds before it ends.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

impl System {
    /// Starts the webhook, waits until it is ready, and has the API server ask it.
    pub async fn start_webhook(&mut self) -> Result<()> {
        self.renew_certificate()?;
        self.webhook = Some(self.webhook_number(0).await?);
        self.configure_webhooks().await
    }

    /// The same behind what stands in for a Service, so that it can be replaced.
    pub async fn start_webhook_behind_a_service(&mut self) -> Result<Service> {
        self.renew_certificate()?;
        self.webhook = Some(self.webhook_number(1).await?);
        let service = Service::start(&self.webhook_address(0), &self.webhook_address(1)).await?;
        self.configure_webhooks().await?;
        Ok(service)
    }

    /// Starts a second replica and ends the first, as a rollout does.
    pub async fn replace_webhook(&mut self, service: &Service) -> Result<()> {
        let second = self.webhook_number(2).await?;
        let first = self.webhook.replace(second).context("a webhook runs")?;
        first.ask_to_end()?;
        // That is what takes a pod out of its Service.
        first.says(false, ENDS_WITHIN).await?;
        service.lead_to(&self.webhook_address(2));
        let status = first.ended(ENDS_WITHIN).await?;
        anyhow::ensure!(status.success(), "the webhook ended with {status}");
        Ok(())
    }

    /// A new serving certificate of the same authority, put there as the kubelet does: a link is
    /// swapped, and both files have changed at once.
    pub fn renew_certificate(&mut self) -> Result<()> {
        if self.authority.is_none() {
            self.authority = Some(Authority::new()?);
        }
        let authority = self.authority.as_ref().context("it was made above")?;
        let identity = authority.issue(WEBHOOK, None, &[self.address()])?;
        let directory = self.path("tls");
        let number = std::fs::read_dir(&directory).map_or(0, Iterator::count);
        let (version, swapped) = (format!("..{number}"), directory.join("..data"));
        std::fs::create_dir_all(directory.join(&version))?;
        for (name, pem) in [("tls.crt", identity.certificate), ("tls.key", identity.key)] {
            std::fs::write(directory.join(&version).join(name), pem)?;
            let file = directory.join(name);
            if !file.exists() {
                symlink(format!("..data/{name}"), file)?;
            }
        }
        symlink(&version, directory.join("..data_tmp"))?;
        Ok(std::fs::rename(directory.join("..data_tmp"), swapped)?)
    }

    /// Has the API server ask nobody any more, and ends the webhook.
    pub async fn remove_webhook(&mut self) -> Result<()> {
        self.leave_webhook_alone().await?;
        match self.webhook.take() {
            Some(webhook) => webhook.kill().await,
            None => Ok(()),
        }
    }

    /// Has the API server ask nobody any more.
    pub async fn leave_webhook_alone(&self) -> Result<()> {
        let client = self.cluster.admin();
        let (name, delete) = (
            configuration_name(self.namespace.name()),
            DeleteParams::default(),
        );
        Api::<MutatingWebhookConfiguration>::all(client.clone())
            .delete(&name, &delete)
            .await?;
        Api::<ValidatingWebhookConfiguration>::all(client)
            .delete(&name, &delete)
            .await?;
        self.until_asked(false).await
    }

    /// As the API server counts it: each system's own.
    pub fn webhook_name(&self, name: &str) -> String {
        format!(
            "{}.{name}.workflowexecution.kubernaut.ai",
            self.namespace.name()
        )
    }

    /// `host:port` of a replica; 0 is where the API server asks.
    pub fn webhook_address(&self, number: u16) -> String {
        format!("{}:{}", self.address(), PORT + number)
    }

    /// A client that trusts its certificate.
    pub fn webhook_client(&self) -> Result<TlsClient> {
        let authority = self.authority.as_ref().context("it was started")?;
        TlsClient::new(self.webhook_address(0), &authority.certificate)
    }

    /// The metrics of the one that was started alone.
    pub async fn webhook_metrics(&self) -> Result<String> {
        program::get(&self.metrics_address(0), "/metrics").await
    }

    fn metrics_address(&self, number: u16) -> String {
        format!("{}:{}", self.address(), 9192 + number)
    }

    async fn webhook_number(&self, number: u16) -> Result<Program> {
        let kubeconfig = install::kubeconfig(self, WEBHOOK).await?;
        let health = format!("{}:{}", self.address(), 8092 + number);
        let mut flags = vec![
            format!("--execution-namespace={}", self.execution.name()),
            format!("--watch-namespace={}", self.namespace.name()),
            format!("--catalog-dir={}", self.path("catalog").display()),
            format!("--cert-dir={}", self.path("tls").display()),
            format!("--listen={}", self.webhook_address(number)),
            format!("--metrics-addr={}", self.metrics_address(number)),
            format!("--health-addr={health}"),
        ];
        flags.extend(self.webhook_flags.clone());
        let log = self.path(&format!("webhook-{number}.log"));
        Program::start(WEBHOOK, &flags, &kubeconfig, &log, &health).await
    }

    /// Has the API server ask the webhook about this system's namespace.
    async fn configure_webhooks(&self) -> Result<()> {
        let file: WebhookFile = install::read("files/webhooks.yaml")?;
        let authority = self.authority.as_ref().context("there is a certificate")?;
        let (ca, selector) = (STANDARD.encode(&authority.certificate), selector(self));
        let complete = |entries: Vec<WebhookEntry>| -> Result<Vec<Value>> {
            let complete = entries.into_iter().map(|entry| {
                let url = format!("https://{}{}", self.webhook_address(0), entry.path);
                let (name, _) = entry.name.split_once('.').context("a name with dots")?;
                let mut webhook = file.common.clone();
                webhook.extend(entry.own);
                webhook.extend([
                    ("name".to_owned(), json!(self.webhook_name(name))),
                    (
                        "clientConfig".to_owned(),
                        json!({ "url": url, "caBundle": ca }),
                    ),
                    ("namespaceSelector".to_owned(), selector.clone()),
                ]);
                Ok(Value::Object(webhook))
            });
            complete.collect()
        };
        let name = configuration_name(self.namespace.name());
        let configuration = |kind: &str, webhooks: Vec<Value>| json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "webhooks": webhooks });
        let mutating = configuration("MutatingWebhookConfiguration", complete(file.mutating)?);
        let mutating: MutatingWebhookConfiguration = serde_json::from_value(mutating)?;
        apply_everywhere(self, mutating).await?;
        let validating =
            configuration("ValidatingWebhookConfiguration", complete(file.validating)?);
        let validating: ValidatingWebhookConfiguration = serde_json::from_value(validating)?;
        apply_everywhere(self, validating).await?;
        self.until_asked(true).await
    }

    /// Until both webhooks are asked; or none.
    async fn until_asked(&self, asked: bool) -> Result<()> {
        let unknown = json!({
            "executionEngine": "job", "targetResource": "a/B/c",
            "workflowRef": { "workflowId": "no-such-workflow", "version": "1", "containerImage": format!("r.io/a@sha256:{}", "0".repeat(64)) },
        });
        let nothing = json!({ "executionEngine": "none" });
        until_effective("webhook configurations", async || {
            let mutating = self.is_refused_by("mutate", &nothing).await?;
            let validating = self.is_refused_by("validate", &unknown).await?;
            Ok(mutating == asked && validating == asked)
        })
        .await
    }

    /// Whether a request that nobody can like is refused by a webhook.
    async fn is_refused_by(&self, name: &str, spec: &Value) -> Result<bool> {
        let wfe: WorkflowExecution = serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
            "metadata": { "generateName": "probe-" }, "spec": spec,
        }))?;
        let api = self.namespace.api::<WorkflowExecution>();
        let refused = api.create(&dry_run(), &wfe).await;
        let name = self.webhook_name(name);
        Ok(refused.is_err_and(|error| error.to_string().contains(&name)))
    }
}

/// `files/webhooks.yaml`.
#[derive(Deserialize)]
struct WebhookFile {
    mutating: Vec<WebhookEntry>,
    validating: Vec<WebhookEntry>,
    common: Map<String, Value>,
}

#[derive(Deserialize)]
struct WebhookEntry {
    name: String,
    path: String,
    /// What it says for itself, beside what is common.
    #[serde(flatten)]
    own: Map<String, Value>,
}
