//! The lock of a target: one Lease for all engines (BR-WE-009).
//!
//! Taken by create, or by replace with the resourceVersion it was seen free at; freed by a replace
//! that takes the holder out and leaves a record of what was executed. A 409 means that somebody
//! else was faster, or that the cache is behind: it is looked at again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use super::history::Entry;
use crate::executor::Source;
use crate::names::{self, LAST_EXECUTION, LAST_FAILURE, MANAGED_BY, MANAGER, TARGET_HASH};

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

/// Who holds it.
pub fn holder(lease: &Lease) -> Option<Source> {
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

/// The Lease of a target that has none yet; nobody holds it.
pub fn new(namespace: &str, target_hash: &str) -> Lease {
    Lease {
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
    }
}

/// `free` with `source` as its holder.
pub fn taken(free: Lease, source: &Source, now: Timestamp) -> Lease {
    let mut lease = free;
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(format!(
        "{}/{}/{}",
        source.namespace, source.name, source.uid
    ));
    spec.acquire_time = Some(MicroTime(now));
    spec.renew_time = Some(MicroTime(now));
    spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
    lease
}

/// `held` without a holder, with the record of what it was held for.
pub fn freed(held: Lease, record: Option<&Entry>, now: Timestamp) -> Lease {
    let mut lease = held;
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = None;
        spec.acquire_time = None;
        spec.renew_time = Some(MicroTime(now));
    }
    match record {
        Some(entry) => recorded(lease, entry, now),
        None => lease,
    }
}

/// `lease` with the record of an end, whoever holds it.
pub fn recorded(lease: Lease, entry: &Entry, now: Timestamp) -> Lease {
    let mut lease = lease;
    lease.spec.get_or_insert_default().renew_time = Some(MicroTime(now));
    if let Ok(text) = serde_json::to_string(entry) {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(annotation(entry.executed).to_owned(), text);
    }
    lease
}

/// What the lock says of those that may be gone: the last execution, and the last failure before
/// one.
pub fn records(lease: Option<&Lease>) -> Vec<Entry> {
    [true, false]
        .into_iter()
        .filter_map(|executed| record(lease?, executed))
        .collect()
}

/// Whether `entry` must be recorded before its WorkflowExecution may go: the lock knows neither of
/// it as it is now, nor of a later one of its kind.
pub fn lacks(lease: Option<&Lease>, entry: &Entry) -> bool {
    let Some(known) = lease.and_then(|lease| record(lease, entry.executed)) else {
        return true;
    };
    if known.uid == entry.uid {
        return known.cleared != entry.cleared;
    }
    known.completion_time < entry.completion_time
}

/// When it was last held.
pub fn last_used(lease: &Lease) -> Option<Timestamp> {
    let renewed = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.renew_time.as_ref());
    let created = lease.metadata.creation_timestamp.as_ref();
    renewed.map(|time| time.0).or(created.map(|time| time.0))
}

fn annotation(executed: bool) -> &'static str {
    if executed {
        LAST_EXECUTION
    } else {
        LAST_FAILURE
    }
}

fn record(lease: &Lease, executed: bool) -> Option<Entry> {
    let text = lease
        .metadata
        .annotations
        .as_ref()?
        .get(annotation(executed))?;
    let entry: Entry = serde_json::from_str(text).ok()?;
    Some(Entry { executed, ..entry })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::history::Outcome;

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
        let lease = taken(new("kubernaut-workflows", "abc"), &source("a"), now);
        assert_eq!(lease.metadata.name.as_deref(), Some("wfe-target-abc"));
        assert_eq!(state(Some(&lease), &source("a")), Lock::Ours);
        assert_eq!(state(Some(&lease), &source("b")), Lock::Held(source("a")));
        let free = freed(lease, None, now);
        assert_eq!(state(Some(&free), &source("b")), Lock::Free);
        let again = taken(free, &source("b"), now);
        assert_eq!(state(Some(&again), &source("b")), Lock::Ours);
        assert_eq!(again.spec.and_then(|spec| spec.lease_transitions), Some(2));
    }

    fn entry(name: &str, second: i64, executed: bool) -> Entry {
        Entry {
            uid: format!("uid-{name}"),
            namespace: "prod".to_owned(),
            name: name.to_owned(),
            workflow_id: "w".to_owned(),
            outcome: Outcome::Failed,
            was_execution_failure: executed,
            cleared: false,
            completion_time: Timestamp::from_second(second).expect("a timestamp"),
            consecutive_failures: u32::from(!executed),
            executed,
            cleared_at: None,
        }
    }

    #[test]
    fn br_we_009_a_lock_remembers_the_last_execution_and_the_last_failure_before_one() {
        let now = Timestamp::UNIX_EPOCH;
        let (ran, refused) = (entry("a", 10, true), entry("b", 20, false));
        let held = taken(new("n", "abc"), &source("a"), now);
        let lease = recorded(freed(held, Some(&ran), now), &refused, now);
        assert_eq!(records(Some(&lease)), [ran.clone(), refused.clone()]);
        assert!(records(None).is_empty());
        assert!(lacks(None, &ran) && !lacks(Some(&lease), &ran));
        assert!(
            !lacks(Some(&lease), &entry("before", 5, true)),
            "a later one counts"
        );
        assert!(lacks(Some(&lease), &entry("after", 15, true)));
        let cleared = Entry {
            cleared: true,
            ..ran
        };
        assert!(lacks(Some(&lease), &cleared), "it was cleared since");
    }

    #[test]
    fn br_we_009_a_record_that_cannot_be_read_is_none() {
        let mut lease = new("n", "abc");
        lease.metadata.annotations = Some(BTreeMap::from([(
            LAST_EXECUTION.to_owned(),
            "{".to_owned(),
        )]));
        assert!(records(Some(&lease)).is_empty());
    }

    #[test]
    fn br_we_009_a_namesake_with_another_uid_is_somebody_else() {
        let lease = taken(new("n", "abc"), &source("a"), Timestamp::UNIX_EPOCH);
        let reborn = Source {
            uid: "other".to_owned(),
            ..source("a")
        };
        assert_eq!(state(Some(&lease), &reborn), Lock::Held(source("a")));
    }
}
