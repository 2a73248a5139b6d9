//! Writes of Leases.

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

/// Replaces the version of a Lease that was seen, or creates a Lease that has none. The error is a
/// 404 or 409 if another client has written or deleted it first.
pub async fn put(leases: &Api<Lease>, lease: &Lease) -> kube::Result<Lease> {
    let parameters = PostParams::default();
    if lease.metadata.resource_version.is_some() {
        leases.replace(&lease.name_any(), &parameters, lease).await
    } else {
        leases.create(&parameters, lease).await
    }
}
