//! The client for the API server.

use kube::{Client, Config};
use thiserror::Error;

/// Why no client could be created.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The process neither runs in a cluster nor has a kubeconfig.
    #[error("no in-cluster configuration and no kubeconfig found")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration has an invalid certificate or key.
    #[error("create the client for the API server")]
    Client(#[from] kube::Error),
}

/// Creates a client with the ServiceAccount token inside a cluster, else with the kubeconfig. The
/// client does not retry requests, because each caller has its own deadline and retries itself.
pub async fn connect() -> Result<Client, ClientError> {
    let mut config = Config::infer().await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
