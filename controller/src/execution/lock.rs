//! The lock of a target: one Lease for all engines (BR-WE-009).
//!
//! Taken by create, or by replace with the resourceVersion it was seen free at; freed by a replace
//! that takes the holder out. A 409 means that somebody else was faster, or that the cache is
//! behind: it is looked at again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use crate::executor::Source;
use crate::names::{self, MANAGED_BY, MANAGER, TARGET_HASH};

/// How a lock stands, for one WorkflowExecution.
#[derive(Clone, Debug, PartialEq)]
pub enum Lock {
    /// Nobody holds it.
    Free,
    /// This one holds it.
    Ours,
    /// Another one does.
    Held(Source),
}

/// How `lease` stands for `source`.
pub fn state(lease: Option<&Lease>, source: &Source) -> Lock {
    match lease.and_then(holder) {
        None => Lock::Free,
        Some(holder) if holder == *source => Lock::Ours,
        Some(holder) => Lock::Held(holder),
    }
}

fn holder(lease: &Lease) -> Option<Source> {
    let text = lease
        .spec
        .as_ref()?
        .holder_identity
        .as_deref()
        .filter(|text| !text.is_empty())?;
    let mut parts = text.split('/');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Source {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    })
}

/// The Lease with `source` as its holder: a new one, or `free` taken.
pub fn taken(
    free: Option<&Lease>,
    namespace: &str,
    target_hash: &str,
    source: &Source,
    now: Timestamp,
) -> Lease {
    let mut lease = free.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(names::lock_name(target_hash)),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([
                (MANAGED_BY.to_owned(), MANAGER.to_owned()),
                (TARGET_HASH.to_owned(), target_hash.to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(format!(
        "{}/{}/{}",
        source.namespace, source.name, source.uid
    ));
    spec.acquire_time = Some(MicroTime(now));
    spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
    lease
}

/// `held` without a holder.
pub fn freed(held: &Lease) -> Lease {
    let mut lease = held.clone();
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = None;
        spec.acquire_time = None;
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str) -> Source {
        Source {
            namespace: "prod".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
        }
    }

    #[test]
    fn br_we_009_a_lock_is_free_ours_or_somebody_elses() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(state(None, &source("a")), Lock::Free);
        let lease = taken(None, "kubernaut-workflows", "abc", &source("a"), now);
        assert_eq!(lease.metadata.name.as_deref(), Some("wfe-target-abc"));
        assert_eq!(state(Some(&lease), &source("a")), Lock::Ours);
        assert_eq!(state(Some(&lease), &source("b")), Lock::Held(source("a")));
        let free = freed(&lease);
        assert_eq!(state(Some(&free), &source("b")), Lock::Free);
        let again = taken(Some(&free), "kubernaut-workflows", "abc", &source("b"), now);
        assert_eq!(state(Some(&again), &source("b")), Lock::Ours);
        assert_eq!(again.spec.and_then(|spec| spec.lease_transitions), Some(2));
    }

    #[test]
    fn br_we_009_a_namesake_with_another_uid_is_somebody_else() {
        let lease = taken(None, "n", "abc", &source("a"), Timestamp::UNIX_EPOCH);
        let reborn = Source {
            uid: "other".to_owned(),
            ..source("a")
        };
        assert_eq!(state(Some(&lease), &reborn), Lock::Held(source("a")));
    }
}
