//! `wfe-platform`: stand-ins for the services of Kubernaut around wfe, one per subcommand.

use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use wfe_platform::authorizer::Authorizer;
use wfe_platform::data_storage::DataStorage;
use wfe_platform::holmes::Holmes;
use wfe_platform::rules::{self, Catalog};
use wfe_platform::{gateway, notification, receiver, signal_processing};

/// Stand-ins for the services of Kubernaut, for tests and demonstrations of wfe: small, and not meant for
/// production.
#[derive(Debug, Parser)]
#[command(name = "wfe-platform", version)]
struct Args {
    /// Filter for the logs.
    #[arg(long, global = true, env = "WFE_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, Subcommand)]
enum Service {
    /// Turn containers that were OOMKilled into RemediationRequests.
    Gateway {
        /// Namespace of the RemediationRequests.
        #[arg(long)]
        namespace: String,
    },
    /// Classify RemediationRequests and create their AIAnalyses.
    SignalProcessing {
        /// Namespace of the RemediationRequests.
        #[arg(long)]
        namespace: String,
    },
    /// Select workflows by fixed rules, with the API of HolmesGPT-API.
    HolmesgptApi {
        /// Address to listen on.
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// URL of Data Storage, whose catalog is searched.
        #[arg(
            long,
            conflicts_with = "catalog_namespace",
            required_unless_present = "catalog_namespace"
        )]
        data_storage_url: Option<String>,
        /// File with the token for Data Storage.
        #[arg(
            long,
            default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
        )]
        token_file: PathBuf,
        /// Namespace in which the permission of clients is checked.
        #[arg(long)]
        namespace: String,
        /// Namespace of the RemediationWorkflows that are searched instead.
        #[arg(long)]
        catalog_namespace: Option<String>,
    },
    /// Keep workflows and audit events, with the API of Data Storage.
    DataStorage {
        /// Address to listen on.
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// File of the database.
        #[arg(long)]
        database: PathBuf,
        /// Namespace in which the permission of clients is checked.
        #[arg(long)]
        namespace: String,
    },
    /// Post the end of each RemediationRequest to a receiver.
    Notification {
        /// Namespace of the RemediationRequests.
        #[arg(long)]
        namespace: String,
        /// URL that notifications are posted to.
        #[arg(long)]
        receiver: String,
    },
    /// Take notifications and list them, at /notifications.
    Receiver {
        /// Address to listen on.
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&args.log)?)
        .init();
    // A dependency may have installed a provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = run(args.service) => ended,
        _ = terminated.recv() => Ok(()),
    }
}

async fn run(service: Service) -> Result<()> {
    let client = async || {
        Client::try_default()
            .await
            .context("connect to the API server")
    };
    match service {
        Service::Gateway { namespace } => gateway::run(client().await?, &namespace).await,
        Service::SignalProcessing { namespace } => {
            signal_processing::run(client().await?, &namespace).await;
        }
        Service::HolmesgptApi {
            listen,
            data_storage_url,
            token_file,
            namespace,
            catalog_namespace,
        } => {
            let catalog = match (data_storage_url, catalog_namespace) {
                (Some(url), _) => Catalog::DataStorage {
                    url,
                    token: token_file,
                },
                (None, Some(namespace)) => Catalog::Objects(namespace),
                // One of them is required.
                (None, None) => return Ok(()),
            };
            let client = client().await?;
            let investigate = rules::investigate(client.clone(), catalog);
            let authorizer = Authorizer::Kubernetes(client, namespace);
            let _serving = Holmes::serve(listen, investigate, authorizer).await?;
            pending::<()>().await;
        }
        Service::DataStorage {
            listen,
            database,
            namespace,
        } => {
            let authorizer = Authorizer::Kubernetes(client().await?, namespace);
            let storage = DataStorage::open(listen, authorizer, &database).await?;
            // Newer releases of Data Storage keep `execution_engine`.
            storage.keep_engine();
            pending::<()>().await;
        }
        Service::Notification {
            namespace,
            receiver,
        } => notification::run(client().await?, &namespace, receiver).await?,
        Service::Receiver { listen } => receiver::run(TcpListener::bind(listen).await?).await?,
    }
    Ok(())
}
