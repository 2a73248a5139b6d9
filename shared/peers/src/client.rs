//! The way to the API server.

use kube::{Client, Config};
use thiserror::Error;

/// Why there is none.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Neither inside a cluster nor with a kubeconfig.
    #[error("no way to the API server")]
    Config(#[from] kube::config::InferConfigError),
    /// A certificate or key that cannot be used.
    #[error("connect to the API server")]
    Client(#[from] kube::Error),
}

/// By the pod's token inside a cluster, else by kubeconfig. Nothing is repeated behind a call: each
/// caller has its own deadline and repeats as a whole.
pub async fn connect() -> Result<Client, ClientError> {
    let mut config = Config::infer().await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
