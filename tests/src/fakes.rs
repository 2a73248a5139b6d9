//! Fakes, each as strict as the real thing where it matters: a kubelet and Job controller, a proxy that
//! loses requests. Those of Kubernaut's services are in `wfe-platform`.

pub mod node;
pub mod proxy;

use anyhow::Result;
use wfe_platform::authorizer::Authorizer;
use wfe_platform::data_storage::DataStorage;

use crate::cluster::pki::Authority;

/// A Data Storage in memory on a free port of `host`, and the PEM of the authority that has signed its
/// certificate.
pub async fn data_storage(host: &str, authorizer: Authorizer) -> Result<(DataStorage, String)> {
    let authority = Authority::new()?;
    let identity = authority.issue("data-storage", None, &[host])?;
    let (certificate, key) = (&identity.certificate, &identity.key);
    let storage = DataStorage::start_with_tls(host, authorizer, certificate, key).await?;
    Ok((storage, authority.certificate))
}
