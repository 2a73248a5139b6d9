//! Clients for the cluster that the tests run in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::cluster::home::{STATE_VARIABLE, State};
use crate::cluster::pki::{self, Authority, Identity};
use crate::cluster::registry::Registry;

/// File beside the administrator's kubeconfig.
pub(crate) const AUDIT_LOG: &str = "audit.log";
/// Common name of the certificate that the API server shows to webhooks.
pub const WEBHOOK_CLIENT: &str = "kube-apiserver-webhook-client";

/// A running cluster, with an administrator's client.
#[derive(Clone)]
pub struct Cluster {
    state: State,
    admin: Client,
}

impl Cluster {
    /// Connects to the cluster that this process runs in.
    ///
    /// # Panics
    /// Without a cluster; the message says how to start one.
    #[expect(clippy::panic, reason = "the one way to fail a test")]
    pub async fn connect() -> Self {
        match Self::try_connect().await {
            Ok(cluster) => cluster,
            Err(error) => panic!("{error:#}\nthese tests need a cluster: run `make test`"),
        }
    }

    async fn try_connect() -> Result<Self> {
        let file: PathBuf = std::env::var_os(STATE_VARIABLE)
            .with_context(|| format!("{STATE_VARIABLE} is not set"))?
            .into();
        let state = State::read(&file)?
            .with_context(|| format!("{} does not exist: the cluster has ended", file.display()))?;
        let admin = client(&state.kubeconfig).await?;
        Ok(Self { state, admin })
    }

    /// The administrator's client.
    pub fn admin(&self) -> Client {
        self.admin.clone()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state.kubeconfig.clone()
    }

    /// The authority of client certificates, also of the one with the name [`WEBHOOK_CLIENT`] that the
    /// API server shows to webhooks.
    pub fn client_authority(&self) -> &Path {
        &self.state.ca_certificate
    }

    /// The API server's audit log, of a cluster with Tekton: what ServiceAccounts have requested.
    pub fn audit_log(&self) -> PathBuf {
        self.state.kubeconfig.with_file_name(AUDIT_LOG)
    }

    /// A certificate for `user` and its key, as PEM.
    pub(crate) fn identity(&self, user: &str) -> Result<Identity> {
        let authority = Authority::load(&self.state.ca_certificate, &self.state.ca_key)?;
        authority.issue(user, None, &[])
    }

    /// A client with a certificate for `user` and, if given, `group`.
    pub async fn user(&self, user: &str, group: Option<&str>) -> Result<Client> {
        let authority = Authority::load(&self.state.ca_certificate, &self.state.ca_key)?;
        let identity = authority.issue(user, group, &[])?;
        let kubeconfig =
            serde_json::from_value(authority.kubeconfig(&self.state.server, &identity))?;
        client_of(kubeconfig).await
    }

    /// A client with a new token of a ServiceAccount.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<Client> {
        let kubeconfig = self.service_account_kubeconfig(namespace, name).await?;
        client_of(serde_json::from_value(kubeconfig)?).await
    }

    /// A kubeconfig with a new token of a ServiceAccount.
    pub(crate) async fn service_account_kubeconfig(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Value> {
        let token = self.service_account_token(namespace, name).await?;
        let ca = std::fs::read_to_string(&self.state.ca_certificate)?;
        Ok(pki::kubeconfig(
            &self.state.server,
            &ca,
            &json!({ "token": token }),
            namespace,
        ))
    }

    /// Requests a token of a ServiceAccount.
    pub async fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(3600),
                ..Default::default()
            },
            ..Default::default()
        };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await?;
        Ok(answer
            .status
            .context("the API server returned no token")?
            .token)
    }

    /// The registry of the node.
    pub fn registry(&self) -> Result<Registry> {
        let address = self
            .state
            .registry
            .as_deref()
            .context("this cluster has no node (--api-only)")?;
        Ok(Registry::at(address))
    }
}

/// A client from a kubeconfig file.
pub(crate) async fn client(kubeconfig: &Path) -> Result<Client> {
    client_of(Kubeconfig::read_from(kubeconfig)?).await
}

async fn client_of(kubeconfig: Kubeconfig) -> Result<Client> {
    // Fails if another test has installed the provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // Tests wait explicitly: retries would hide errors of the API server.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
