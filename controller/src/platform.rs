//! The reconcilers that connect the controller to Kubernaut: off unless a flag switches them on.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use kube::Client;
use tokio_util::sync::CancellationToken;
use url::Url;
use wfe_orchestration::analyses::Analyses;
use wfe_orchestration::requests::Orchestration;
use wfe_orchestration::scope::Delays;
use wfe_peers::catalog::Catalog;
use wfe_peers::holmes::Holmes;
use wfe_peers::service::{PlainHttp, ServiceError, ServiceOptions};
use wfe_peers::token::BearerToken;

/// Flags of the reconcilers that connect the controller to Kubernaut.
#[derive(Args, Clone, Debug)]
pub struct PlatformArgs {
    /// Create a WorkflowExecution for each RemediationRequest whose AIAnalysis is Completed, and tell
    /// the request what became of it. Kubernaut's own orchestrator must be switched off.
    #[arg(long, env = "WFE_ENABLE_ORCHESTRATION")]
    pub enable_orchestration: bool,
    /// Take AIAnalyses to HolmesGPT-API. Kubernaut's own AIAnalysis controller must be switched off.
    #[arg(long, env = "WFE_ENABLE_ANALYSIS", requires = "holmes_url")]
    pub enable_analysis: bool,
    /// URL of HolmesGPT-API.
    #[arg(long, env = "WFE_HOLMES_URL")]
    pub holmes_url: Option<Url>,
    /// PEM file with the certificate authority of HolmesGPT-API (default: the system's).
    #[arg(long, env = "WFE_HOLMES_CA")]
    pub holmes_ca: Option<PathBuf>,
    /// ServiceAccount in the controller's own namespace whose tokens HolmesGPT-API gets, by
    /// `TokenRequest`; without it and without --holmes-token-file no token is sent.
    #[arg(long, env = "WFE_HOLMES_SERVICE_ACCOUNT")]
    pub holmes_service_account: Option<String>,
    /// File with the bearer token for HolmesGPT-API, instead of tokens of that ServiceAccount; read for
    /// each request, because the token rotates.
    #[arg(long, env = "WFE_HOLMES_TOKEN_FILE")]
    pub holmes_token_file: Option<PathBuf>,
    /// Send the token also to a --holmes-url with http://.
    #[arg(long, env = "WFE_HOLMES_PLAIN_HTTP")]
    pub holmes_plain_http: bool,
    /// Namespace whose RemediationRequests and AIAnalyses may name any target (default: the controller's
    /// own); those of other namespaces may name targets in their own namespace.
    #[arg(long, env = "WFE_PLATFORM_NAMESPACE")]
    pub platform_namespace: Option<String>,
}

impl PlatformArgs {
    /// The client of HolmesGPT-API, if there is a URL. `client` requests its tokens.
    fn holmes(&self, client: &Client) -> Result<Option<Holmes>, ServiceError> {
        let Some(url) = self.holmes_url.clone() else {
            return Ok(None);
        };
        let (file, account) = (&self.holmes_token_file, &self.holmes_service_account);
        let account = account.as_deref().unwrap_or_default();
        let has_token = file.is_some() || !account.is_empty();
        let holmes = Holmes::new(ServiceOptions {
            url,
            ca: self.holmes_ca.clone(),
            token: has_token.then(|| BearerToken::of(client, file.as_deref(), account)),
            plain_http: PlainHttp::flag("--holmes-plain-http", self.holmes_plain_http),
        });
        holmes.map(Some)
    }
}

/// The reconcilers that are switched on.
pub struct Platform {
    args: PlatformArgs,
    namespaces: Vec<String>,
    client: Client,
    catalog: Arc<dyn Catalog>,
    holmes: Option<Holmes>,
}

impl Platform {
    /// The reconcilers that `args` switch on, for the watched `namespaces`.
    pub fn new(
        args: PlatformArgs,
        namespaces: Vec<String>,
        client: &Client,
        catalog: &Arc<dyn Catalog>,
    ) -> Result<Self> {
        Ok(Self {
            holmes: args.holmes(client).context("--holmes-url")?,
            args,
            namespaces,
            client: client.clone(),
            catalog: catalog.clone(),
        })
    }

    /// Reconciles until `stop` is cancelled.
    pub async fn run(&self, stop: &CancellationToken) {
        let own = self.client.default_namespace();
        let platform = self.args.platform_namespace.as_deref().unwrap_or(own);
        let orchestration = async {
            if self.args.enable_orchestration {
                let orchestration = Orchestration {
                    client: self.client.clone(),
                    catalog: self.catalog.clone(),
                    platform_namespace: platform.to_owned(),
                    delays: Delays::default(),
                };
                orchestration.run(&self.namespaces, stop).await;
            }
        };
        let holmes = self.holmes.clone();
        let analysis = async {
            if let Some(holmes) = holmes.filter(|_| self.args.enable_analysis) {
                let analyses = Analyses {
                    client: self.client.clone(),
                    catalog: self.catalog.clone(),
                    holmes,
                    platform_namespace: platform.to_owned(),
                    delays: Delays::default(),
                };
                analyses.run(&self.namespaces, stop).await;
            }
        };
        tokio::join!(orchestration, analysis);
    }
}
