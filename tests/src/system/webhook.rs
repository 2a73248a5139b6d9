//! Runs the webhook: its serving certificate, webhook configurations and processes.

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

use super::catalog_source::CatalogSource;
use super::install::{
    self, WEBHOOK, apply_everywhere, configuration_name, named, selector, until_effective,
};
use super::look::dry_run;
use super::program::{self, Program};
use super::service::Service;
use super::state::System;
use super::tls::TlsClient;
use crate::cluster::pki::Authority;

/// Port that the webhook configurations name.
const PORT: u16 = 9443;
/// The webhook drains connections for some seconds after SIGTERM.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

impl System {
    /// Starts the webhook, waits until it is ready, and registers it with the API server.
    pub async fn start_webhook(&mut self) -> Result<()> {
        self.renew_certificate()?;
        self.webhook = Some(self.start_webhook_replica(0).await?);
        self.configure_webhooks().await
    }

    /// Like [`start_webhook`](Self::start_webhook), behind a fake Service, so that the process can
    /// be replaced.
    pub async fn start_webhook_behind_a_service(&mut self) -> Result<Service> {
        self.renew_certificate()?;
        self.webhook = Some(self.start_webhook_replica(1).await?);
        let service = Service::start(&self.webhook_address(0), &self.webhook_address(1)).await?;
        self.configure_webhooks().await?;
        Ok(service)
    }

    /// Starts a second replica and ends the first, as a rollout does.
    pub async fn replace_webhook(&mut self, service: &Service) -> Result<()> {
        let second = self.start_webhook_replica(2).await?;
        let first = self.webhook.replace(second).context("no webhook runs")?;
        first.send_sigterm()?;
        // A pod that is not ready is removed from its Service.
        first.wait_for_readiness(false, ENDS_WITHIN).await?;
        service.route_to(&self.webhook_address(2));
        let status = first.wait_for_exit(ENDS_WITHIN).await?;
        anyhow::ensure!(status.success(), "the webhook ended with {status}");
        Ok(())
    }

    /// Writes a new serving certificate of the same CA as the kubelet does: one symlink swap
    /// changes both files at once.
    pub fn renew_certificate(&mut self) -> Result<()> {
        if self.authority.is_none() {
            self.authority = Some(Authority::new()?);
        }
        let authority = self.authority.as_ref().context("no CA")?;
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

    /// Deletes the webhook configurations and ends the webhook.
    pub async fn remove_webhook(&mut self) -> Result<()> {
        self.delete_webhook_configurations().await?;
        match self.webhook.take() {
            Some(webhook) => webhook.kill().await,
            None => Ok(()),
        }
    }

    /// Deletes the webhook configurations and waits until the API server calls no webhook.
    pub async fn delete_webhook_configurations(&self) -> Result<()> {
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
        self.wait_until_called(false).await
    }

    /// Name of a webhook in its configuration, unique to this system; the label of its API server
    /// metrics.
    pub fn webhook_name(&self, name: &str) -> String {
        format!(
            "{}.{name}.workflowexecution.kubernaut.ai",
            self.namespace.name()
        )
    }

    /// `host:port` of a replica; 0 is the address in the webhook configurations.
    pub fn webhook_address(&self, number: u16) -> String {
        format!("{}:{}", self.address(), PORT + number)
    }

    /// A client that trusts the CA of the serving certificate.
    pub fn webhook_client(&self) -> Result<TlsClient> {
        let authority = self.authority.as_ref().context("not started")?;
        TlsClient::new(self.webhook_address(0), &authority.certificate, None)
    }

    /// As [`webhook_client`](Self::webhook_client), with a certificate of the cluster's authority for
    /// `user`, or, without one, of an authority that nobody knows.
    pub fn webhook_client_of(&self, user: Option<&str>) -> Result<TlsClient> {
        let identity = match user {
            Some(user) => self.cluster.identity(user)?,
            None => Authority::new()?.issue("unknown", None, &[])?,
        };
        let authority = self.authority.as_ref().context("not started")?;
        let address = self.webhook_address(0);
        TlsClient::new(address, &authority.certificate, Some(&identity))
    }

    /// The metrics of replica 0.
    pub async fn webhook_metrics(&self) -> Result<String> {
        program::get(&self.metrics_address(0), "/metrics").await
    }

    fn metrics_address(&self, number: u16) -> String {
        format!("{}:{}", self.address(), 9192 + number)
    }

    async fn start_webhook_replica(&self, number: u16) -> Result<Program> {
        let kubeconfig = install::kubeconfig(self, WEBHOOK).await?;
        let health = format!("{}:{}", self.address(), 8092 + number);
        let mut flags = vec![
            format!("--execution-namespace={}", self.execution.name()),
            format!("--watch-namespace={}", self.namespace.name()),
            format!("--cert-dir={}", self.path("tls").display()),
            format!("--listen={}", self.webhook_address(number)),
            format!("--metrics-addr={}", self.metrics_address(number)),
            format!("--health-addr={health}"),
        ];
        flags.extend(self.catalog_flags());
        if self.catalog == CatalogSource::DataStorage {
            flags.extend(self.data_storage_flags().into_iter().flatten());
        }
        flags.extend(self.webhook_flags.clone());
        let log = self.path(&format!("webhook-{number}.log"));
        Program::start(WEBHOOK, &flags, &kubeconfig, &log, &health).await
    }

    /// Applies the webhook configurations for this system's namespace and waits until they are in
    /// effect.
    async fn configure_webhooks(&self) -> Result<()> {
        let file: WebhookFile = install::read("files/webhooks.yaml")?;
        let authority = self.authority.as_ref().context("no CA")?;
        let ca = STANDARD.encode(&authority.certificate);
        let complete = |entries: Vec<WebhookEntry>, selector: Value| -> Result<Vec<Value>> {
            let complete = entries.into_iter().map(|entry| {
                let url = format!("https://{}{}", self.webhook_address(0), entry.path);
                let (name, _) = entry.name.split_once('.').context("no dot in the name")?;
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
        let mutating = configuration(
            "MutatingWebhookConfiguration",
            complete(file.mutating, selector(self))?,
        );
        let mutating: MutatingWebhookConfiguration = serde_json::from_value(mutating)?;
        apply_everywhere(self, mutating).await?;
        let mut validating = complete(file.validating, selector(self))?;
        if self.catalog == CatalogSource::Objects {
            validating.extend(complete(file.catalog, named(self.programs.name()))?);
        }
        let validating = configuration("ValidatingWebhookConfiguration", validating);
        let validating: ValidatingWebhookConfiguration = serde_json::from_value(validating)?;
        apply_everywhere(self, validating).await?;
        self.wait_until_called(true).await
    }

    /// Waits until the API server calls both webhooks, or neither.
    async fn wait_until_called(&self, called: bool) -> Result<()> {
        let unknown = json!({
            "executionEngine": "job", "targetResource": "a/B/c",
            "workflowRef": { "workflowId": "no-such-workflow", "version": "1", "containerImage": format!("r.io/a@sha256:{}", "0".repeat(64)) },
        });
        let invalid = json!({ "executionEngine": "none" });
        until_effective("webhook configurations", async || {
            let mutating = self.is_denied_by("mutate", &invalid).await?;
            let validating = self.is_denied_by("validate", &unknown).await?;
            Ok(mutating == called && validating == called)
        })
        .await
    }

    /// Whether the named webhook denies a create with an invalid `spec`.
    async fn is_denied_by(&self, name: &str, spec: &Value) -> Result<bool> {
        let wfe: WorkflowExecution = serde_json::from_value(json!({
            "apiVersion": "kubernaut.ai/v1alpha1", "kind": "WorkflowExecution",
            "metadata": { "generateName": "probe-" }, "spec": spec,
        }))?;
        let api = self.namespace.api::<WorkflowExecution>();
        let denied = api.create(&dry_run(), &wfe).await;
        let name = self.webhook_name(name);
        Ok(denied.is_err_and(|error| error.to_string().contains(&name)))
    }
}

/// `files/webhooks.yaml`.
#[derive(Deserialize)]
struct WebhookFile {
    mutating: Vec<WebhookEntry>,
    validating: Vec<WebhookEntry>,
    catalog: Vec<WebhookEntry>,
    common: Map<String, Value>,
}

#[derive(Deserialize)]
struct WebhookEntry {
    name: String,
    path: String,
    /// Fields of this webhook that are not in `common`.
    #[serde(flatten)]
    own: Map<String, Value>,
}
