//! The lock of a target: one Lease for all engines (BR-WE-009).
//!
//! Taken by create, or by replace with the resourceVersion it was seen free at; freed by a replace
//! that takes the holder out and leaves a record of what was executed. A 409 means that somebody
//! else was faster, or that the cache is behind: it is looked at again.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::history::{Entry, Limits};
use crate::executor::Source;
use crate::names::{self, LAST_EXECUTION, MANAGED_BY, MANAGER, PAST_EXECUTIONS, TARGET_HASH};

/// More records than a target can need within the times of the rules; each has some 300 bytes.
const MOST_PAST: usize = 32;

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
    let parts: Vec<_> = text.split('/').collect();
    Some(match parts.as_slice() {
        [namespace, name, uid] => Source {
            namespace: (*namespace).to_owned(),
            name: (*name).to_owned(),
            uid: (*uid).to_owned(),
        },
        // Somebody has written it by hand: it is theirs.
        _ => Source {
            namespace: String::new(),
            name: text.to_owned(),
            uid: text.to_owned(),
        },
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

/// `free` with `source` as its holder; or taken again by its holder, for another try.
pub fn taken(free: Lease, source: &Source, now: Timestamp) -> Lease {
    let mut lease = free;
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    let holder = format!("{}/{}/{}", source.namespace, source.name, source.uid);
    if spec.holder_identity.as_ref() != Some(&holder) {
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
    }
    spec.holder_identity = Some(holder);
    spec.acquire_time = Some(MicroTime(now));
    spec.renew_time = Some(MicroTime(now));
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
    let last: Option<Entry> = read(&lease, LAST_EXECUTION);
    let newer =
        |entry: &&Entry| last.is_none_or(|last| last.completion_time <= entry.completion_time);
    if let Some(entry) = record.filter(newer) {
        annotate(&mut lease, LAST_EXECUTION, entry);
    }
    lease
}

/// `lease` with a record of one that is about to go, whoever holds it. Of older records those stay
/// that still say something.
pub fn recorded(lease: Lease, entry: &Entry, limits: &Limits, now: Timestamp) -> Lease {
    let mut lease = lease;
    lease.spec.get_or_insert_default().renew_time = Some(MicroTime(now));
    let mut past = past(Some(&lease));
    past.retain(|it| it.uid != entry.uid && it.matters(now, limits));
    past.push(entry.clone());
    past.sort_by_key(|it| Reverse(it.completion_time));
    past.truncate(MOST_PAST);
    annotate(&mut lease, PAST_EXECUTIONS, &past);
    lease
}

/// What the lock says of those that may be gone.
pub fn records(lease: Option<&Lease>) -> Vec<Entry> {
    let last: Option<Entry> = lease.and_then(|lease| read(lease, LAST_EXECUTION));
    past(lease).into_iter().chain(last).collect()
}

fn past(lease: Option<&Lease>) -> Vec<Entry> {
    let past = lease.and_then(|lease| read(lease, PAST_EXECUTIONS));
    past.unwrap_or_default()
}

/// Whether the lock does not remember `entry` as it is now: the record of the last execution does
/// not count, the next one takes its place.
pub fn lacks(lease: Option<&Lease>, entry: &Entry) -> bool {
    !past(lease).contains(entry)
}

/// When it was last written: taken, freed, or given a record.
pub fn last_used(lease: &Lease) -> Option<Timestamp> {
    let renewed = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.renew_time.as_ref());
    let created = lease.metadata.creation_timestamp.as_ref();
    renewed.map(|time| time.0).or(created.map(|time| time.0))
}

fn annotate(lease: &mut Lease, name: &str, value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(name.to_owned(), text);
    }
}

/// None where it cannot be read, too: then the objects are all the history there is.
fn read<T: DeserializeOwned>(lease: &Lease, name: &str) -> Option<T> {
    let text = lease.metadata.annotations.as_ref()?.get(name)?;
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    fn entry(name: &str, second: i64) -> Entry {
        Entry {
            uid: format!("uid-{name}"),
            namespace: "prod".to_owned(),
            name: name.to_owned(),
            workflow_id: "w".to_owned(),
            outcome: Outcome::Succeeded,
            was_execution_failure: false,
            cleared: false,
            completion_time: Timestamp::from_second(second).expect("a timestamp"),
            consecutive_failures: 0,
            cleared_at: None,
        }
    }

    #[test]
    fn br_we_009_a_lock_remembers_the_last_execution_and_those_that_are_gone() {
        let limits = Limits {
            cooldown: Duration::from_secs(100),
            backoff_base: Duration::ZERO,
            backoff_max: Duration::ZERO,
            max_consecutive_failures: 5,
        };
        let at = |second| Timestamp::from_second(second).expect("a timestamp");
        let names = |lease: &Lease| -> Vec<String> {
            records(Some(lease)).into_iter().map(|it| it.name).collect()
        };
        assert!(records(None).is_empty() && lacks(None, &entry("a", 10)));
        let held = taken(new("n", "abc"), &source("a"), at(0));
        let lease = freed(held, Some(&entry("a", 10)), at(10));
        let lease = recorded(lease, &entry("b", 20), &limits, at(30));
        assert_eq!(names(&lease), ["b", "a"]);
        assert!(
            lacks(Some(&lease), &entry("a", 10)),
            "the next execution takes its place"
        );
        assert!(!lacks(Some(&lease), &entry("b", 20)));
        let cleared = Entry {
            cleared: true,
            ..entry("b", 20)
        };
        assert!(lacks(Some(&lease), &cleared), "it was cleared since");
        let lease = recorded(lease, &cleared, &limits, at(40));
        assert_eq!(names(&lease), ["b", "a"], "once");
        let lease = recorded(lease, &entry("c", 110), &limits, at(121));
        assert_eq!(
            names(&lease),
            ["c", "a"],
            "what says nothing any more is dropped"
        );
        assert_eq!(last_used(&lease), Some(at(121)));
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
