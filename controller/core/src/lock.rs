//! The lock of a target: one Lease for all engines (BR-WE-009).
//!
//! The lock is taken by a create, or by a replace with the resourceVersion at which the Lease had
//! no holder. It is freed by a replace that removes the holder and adds a record of the execution.
//! On a 409 another writer was first, or the cache is stale: the Lease is read again, uncached.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::execution::Source;
use crate::history::{Entry, Limits};
use crate::names::{
    self, LAST_EXECUTION, MANAGED_BY, MANAGER, PAST_EXECUTIONS, TARGET_HASH, TargetHash,
};

/// More records than a target can need within cooldown and backoff; each has some 300 bytes.
const MAX_PAST_RECORDS: usize = 32;

/// Who holds a lock, relative to one WorkflowExecution.
#[derive(Clone, Debug, PartialEq)]
pub enum Lock {
    /// The lock has no holder.
    Free,
    /// The WorkflowExecution itself holds the lock.
    Ours,
    /// Another WorkflowExecution holds the lock.
    Held(Source),
    /// A user has written this text as the holder: the lock is held until the user removes it.
    ByHand(String),
}

/// A target's Lease as last seen, parsed once.
#[derive(Clone, Debug, Default)]
pub struct TargetLock {
    /// `None`: the target has no Lease yet.
    pub lease: Option<Arc<Lease>>,
    /// The holder of the lock.
    pub holder: Option<Holder>,
    last: Option<Entry>,
    past: Vec<Entry>,
}

impl From<Option<Arc<Lease>>> for TargetLock {
    fn from(lease: Option<Arc<Lease>>) -> Self {
        let seen = lease.as_deref();
        Self {
            holder: seen.and_then(holder),
            last: seen.and_then(|lease| read(lease, LAST_EXECUTION)),
            past: seen.map(past).unwrap_or_default(),
            lease,
        }
    }
}

impl TargetLock {
    /// Who holds the lock, relative to `source`.
    pub fn state(&self, source: &Source) -> Lock {
        match &self.holder {
            None => Lock::Free,
            Some(Holder::Execution(holder)) if holder == source => Lock::Ours,
            Some(Holder::Execution(holder)) => Lock::Held(holder.clone()),
            Some(Holder::ByHand(text)) => Lock::ByHand(text.clone()),
        }
    }

    /// The lock's records of ended WorkflowExecutions, which may no longer exist.
    pub fn records(&self) -> impl Iterator<Item = &Entry> {
        self.past.iter().chain(&self.last)
    }

    /// Whether the lock has a lasting record equal to `entry`. The record of the last execution
    /// does not count, since the next execution replaces it.
    pub fn has_record(&self, entry: &Entry) -> bool {
        self.past.contains(entry)
    }

    /// Whether a record says that the block of `entry` is not cleared, although it is.
    pub fn lacks_clearance(&self, entry: &Entry) -> bool {
        let mut records = self.records();
        entry.cleared && records.any(|it| it.uid == entry.uid && !it.cleared)
    }
}

/// Who holds a lock.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Holder {
    /// A WorkflowExecution.
    Execution(Source),
    /// The text that a user has written.
    ByHand(String),
}

/// The holder of a Lease.
pub fn holder(lease: &Lease) -> Option<Holder> {
    let text = lease
        .spec
        .as_ref()?
        .holder_identity
        .as_deref()
        .filter(|text| !text.is_empty())?;
    let parts: Vec<_> = text.split('/').collect();
    Some(match parts.as_slice() {
        [namespace, name, uid] => Holder::Execution(Source {
            namespace: (*namespace).to_owned(),
            name: (*name).to_owned(),
            uid: (*uid).to_owned(),
        }),
        _ => Holder::ByHand(text.to_owned()),
    })
}

/// The WorkflowExecution that holds a Lease.
pub fn holding_execution(lease: &Lease) -> Option<Source> {
    match holder(lease)? {
        Holder::Execution(source) => Some(source),
        Holder::ByHand(_) => None,
    }
}

/// Whether the watch of locks shows this Lease. A Lease that a user has created may have no labels.
pub fn is_watched(lease: &Lease) -> bool {
    let labels = lease.metadata.labels.as_ref();
    labels.is_some_and(|it| {
        it.get(MANAGED_BY).is_some_and(|it| it == MANAGER) && it.contains_key(TARGET_HASH)
    })
}

/// `lease` with the labels of a target's lock.
pub fn labelled(lease: Lease, target: &TargetHash) -> Lease {
    let mut lease = lease;
    let labels = lease.metadata.labels.get_or_insert_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.insert(TARGET_HASH.to_owned(), target.as_str().to_owned());
    lease
}

/// A new Lease without a holder, for a target that has none yet.
pub fn new(namespace: &str, target: &TargetHash) -> Lease {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(names::lock_name(target)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
    };
    labelled(lease, target)
}

/// `free` with `source` as its holder; or a Lease that `source` holds already, for another attempt.
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

/// `held` without a holder, with the record of its execution if there was one.
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

/// `lease` with a record of a WorkflowExecution that is about to be removed; the holder stays.
/// Records that are no longer relevant are dropped.
pub fn recorded(lease: Lease, entry: &Entry, limits: &Limits, now: Timestamp) -> Lease {
    let (mut lease, _) = map_records(lease, |it| (it.uid == entry.uid).then(|| entry.clone()));
    lease.spec.get_or_insert_default().renew_time = Some(MicroTime(now));
    let mut past = past(&lease);
    past.retain(|it| it.uid != entry.uid && it.is_relevant(now, limits));
    past.push(entry.clone());
    past.sort_by_key(|it| Reverse(it.completion_time));
    past.truncate(MAX_PAST_RECORDS);
    annotate(&mut lease, PAST_EXECUTIONS, &past);
    lease
}

/// `lease` with the records that `change` replaces, and those records.
pub fn map_records(lease: Lease, change: impl Fn(&Entry) -> Option<Entry>) -> (Lease, Vec<Entry>) {
    let (mut lease, mut changed) = (lease, Vec::new());
    if let Some(last) = read(&lease, LAST_EXECUTION).as_ref().and_then(&change) {
        annotate(&mut lease, LAST_EXECUTION, &last);
        changed.push(last);
    }
    let mut past = past(&lease);
    for entry in &mut past {
        if let Some(replaced) = change(entry) {
            *entry = replaced.clone();
            changed.push(replaced);
        }
    }
    if !past.is_empty() {
        annotate(&mut lease, PAST_EXECUTIONS, &past);
    }
    (lease, changed)
}

fn past(lease: &Lease) -> Vec<Entry> {
    read(lease, PAST_EXECUTIONS).unwrap_or_default()
}

/// When the Lease was last written: taken, freed, or given a record.
pub fn last_used(lease: &Lease) -> Option<Timestamp> {
    let renewed = lease
        .spec
        .as_ref()
        .and_then(|spec| spec.renew_time.as_ref());
    let created = lease.metadata.creation_timestamp.as_ref();
    renewed.map(|time| time.0).or(created.map(|time| time.0))
}

/// Adds `value` as JSON.
pub fn annotate(lease: &mut Lease, name: &str, value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(name.to_owned(), text);
    }
}

/// `None` also for text that is no valid record: the history is then the WorkflowExecutions alone.
fn read<T: DeserializeOwned>(lease: &Lease, name: &str) -> Option<T> {
    let text = lease.metadata.annotations.as_ref()?.get(name)?;
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::history::Outcome;

    fn seen(lease: &Lease) -> TargetLock {
        TargetLock::from(Some(Arc::new(lease.clone())))
    }

    fn source(name: &str) -> Source {
        Source {
            namespace: "prod".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
        }
    }

    /// BR-WE-009
    #[test]
    fn state_after_take_and_free_is_ours_held_or_free() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(TargetLock::default().state(&source("a")), Lock::Free);
        let lease = taken(new("kubernaut-workflows", &"abc".into()), &source("a"), now);
        assert_eq!(lease.metadata.name.as_deref(), Some("wfe-target-abc"));
        assert_eq!(seen(&lease).state(&source("a")), Lock::Ours);
        assert_eq!(seen(&lease).state(&source("b")), Lock::Held(source("a")));
        let free = freed(lease, None, now);
        assert_eq!(seen(&free).state(&source("b")), Lock::Free);
        let again = taken(free, &source("b"), now);
        assert_eq!(seen(&again).state(&source("b")), Lock::Ours);
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

    /// BR-WE-009
    #[test]
    fn records_include_last_execution_and_relevant_past_ones() {
        let limits = Limits {
            cooldown: Duration::from_secs(100),
            backoff_base: Duration::ZERO,
            backoff_max: Duration::ZERO,
            max_consecutive_failures: 5,
        };
        let at = |second| Timestamp::from_second(second).expect("a timestamp");
        let names = |lease: &Lease| -> Vec<String> {
            seen(lease).records().map(|it| it.name.clone()).collect()
        };
        assert!(TargetLock::default().records().next().is_none());
        let held = taken(new("n", &"abc".into()), &source("a"), at(0));
        let lease = freed(held, Some(&entry("a", 10)), at(10));
        let lease = recorded(lease, &entry("b", 20), &limits, at(30));
        assert_eq!(names(&lease), ["b", "a"]);
        assert!(
            !seen(&lease).has_record(&entry("a", 10)),
            "the next execution replaces the record"
        );
        assert!(seen(&lease).has_record(&entry("b", 20)));
        let cleared = Entry {
            cleared: true,
            ..entry("b", 20)
        };
        assert!(
            !seen(&lease).has_record(&cleared),
            "the record is older than the clearance"
        );
        let lease = recorded(lease, &cleared, &limits, at(40));
        assert_eq!(names(&lease), ["b", "a"], "one record for each");
        let lease = recorded(lease, &entry("c", 110), &limits, at(121));
        assert_eq!(names(&lease), ["c", "a"], "irrelevant records are dropped");
        assert_eq!(last_used(&lease), Some(at(121)));
    }

    /// BR-WE-009
    #[test]
    fn records_invalid_json_is_ignored() {
        let mut lease = new("n", &"abc".into());
        lease.metadata.annotations = Some(BTreeMap::from([(
            LAST_EXECUTION.to_owned(),
            "{".to_owned(),
        )]));
        assert!(seen(&lease).records().next().is_none());
    }

    /// BR-WE-009
    #[test]
    fn holder_without_three_parts_is_a_lock_by_hand() {
        let mut lease = taken(new("n", &"abc".into()), &source("a"), Timestamp::UNIX_EPOCH);
        lease.spec.get_or_insert_default().holder_identity = Some("ops".to_owned());
        let by_hand = Lock::ByHand("ops".to_owned());
        assert_eq!(seen(&lease).state(&source("a")), by_hand);
        assert!(is_watched(&lease));
        lease.metadata.labels = None;
        assert!(!is_watched(&lease));
        assert!(is_watched(&labelled(lease, &"abc".into())));
    }

    /// BR-WE-009
    #[test]
    fn state_same_name_with_other_uid_is_held() {
        let lease = taken(new("n", &"abc".into()), &source("a"), Timestamp::UNIX_EPOCH);
        let recreated = Source {
            uid: "other".to_owned(),
            ..source("a")
        };
        assert_eq!(seen(&lease).state(&recreated), Lock::Held(source("a")));
    }
}
