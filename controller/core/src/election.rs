//! Leader election by a Lease, as client-go does it: who may write the Lease, and when.
//!
//! Clocks of different machines are never compared. A Lease has expired when this process has seen
//! no change of it for the Lease's own duration, by its own monotonic clock. Every write has the
//! resourceVersion that was seen, so of two candidates one gets a conflict.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

/// Time after the last renewal at which others may take the Lease.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Time after the last renewal at which the leader stops, well before others may take the Lease.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Interval of renewals, and of attempts to take the Lease.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// What one candidate has seen of the Lease.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    lease: Option<Lease>,
    /// When the Lease was first seen in this version.
    seen_at: Option<Instant>,
}

/// What a candidate does next.
#[derive(Debug, PartialEq)]
pub enum Attempt {
    /// Write this Lease: it has the resourceVersion that was seen, or none if there was no Lease.
    Write(Box<Lease>),
    /// Another process leads, until this time at least.
    Wait(Instant),
}

impl Candidate {
    /// A candidate that has seen nothing.
    pub fn new(identity: String) -> Self {
        Self {
            identity,
            lease: None,
            seen_at: None,
        }
    }

    /// The name of this process in the Lease.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Records the Lease as read, watched or written; `None`: it does not exist.
    pub fn see(&mut self, lease: Option<Lease>, now: Instant) {
        let version = |lease: &Option<Lease>| {
            let lease = lease.as_ref()?;
            lease.metadata.resource_version.clone()
        };
        if self.seen_at.is_none() || version(&self.lease) != version(&lease) {
            self.seen_at = Some(now);
        }
        self.lease = lease;
    }

    /// Whether this process is the holder that was seen last.
    pub fn holds(&self) -> bool {
        self.lease.as_ref().and_then(holder) == Some(self.identity.as_str())
    }

    /// The next attempt to take or renew the Lease.
    pub fn attempt(&self, name: &str, now: Instant, time: Timestamp) -> Attempt {
        let Some(lease) = &self.lease else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: None,
            };
            return Attempt::Write(Box::new(self.claimed(lease, time)));
        };
        if holder(lease).is_some() && !self.holds() {
            let expires = self.seen_at.map(|at| at + duration(lease));
            if let Some(expires) = expires.filter(|it| now < *it) {
                return Attempt::Wait(expires);
            }
        }
        Attempt::Write(Box::new(self.claimed(lease.clone(), time)))
    }

    /// The Lease without a holder, so that another process takes it at once; `None` if this process
    /// does not hold it.
    pub fn released(&self, time: Timestamp) -> Option<Lease> {
        let mut lease = self.lease.clone().filter(|_| self.holds())?;
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = None;
        spec.renew_time = Some(MicroTime(time));
        spec.lease_duration_seconds = Some(1);
        Some(lease)
    }

    fn claimed(&self, lease: Lease, time: Timestamp) -> Lease {
        let mut lease = lease;
        let renews = holder(&lease) == Some(self.identity.as_str());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if !renews {
            spec.acquire_time = Some(MicroTime(time));
            let transitions = spec.lease_transitions.unwrap_or_default();
            spec.lease_transitions = Some(transitions.saturating_add(1));
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.renew_time = Some(MicroTime(time));
        spec.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
        lease
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
    Some(holder).filter(|it| !it.is_empty())
}

fn duration(lease: &Lease) -> Duration {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
    let seconds = seconds.and_then(|it| u64::try_from(it).ok());
    seconds.map_or(LEASE_DURATION, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "wfe-controller";

    fn time() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    /// The Lease as the API server stores it.
    fn stored(attempt: Attempt, version: &str) -> Lease {
        let Attempt::Write(lease) = attempt else {
            panic!("no write: {attempt:?}")
        };
        let mut lease = *lease;
        lease.metadata.resource_version = Some(version.to_owned());
        lease
    }

    #[test]
    fn lease_is_created_renewed_released_and_taken_over_at_once() {
        let now = Instant::now();
        let (mut a, mut b) = (
            Candidate::new("a".to_owned()),
            Candidate::new("b".to_owned()),
        );
        a.see(None, now);
        let attempt = a.attempt(NAME, now, time());
        let creates = |it: &Lease| it.metadata.resource_version.is_none();
        assert!(matches!(&attempt, Attempt::Write(lease) if creates(lease)));
        let lease = stored(attempt, "1");
        a.see(Some(lease.clone()), now);
        b.see(Some(lease), now);
        assert!(a.holds() && !b.holds());
        let renewed = stored(a.attempt(NAME, now, time()), "2");
        let spec = renewed.spec.clone().expect("a spec");
        assert_eq!(
            spec.lease_transitions,
            Some(1),
            "a renewal is no transition"
        );
        a.see(Some(renewed), now);
        let mut released = a.released(time()).expect("held");
        released.metadata.resource_version = Some("3".to_owned());
        b.see(Some(released), now);
        let taken = stored(b.attempt(NAME, now, time()), "4");
        let spec = taken.spec.clone().expect("a spec");
        assert_eq!(spec.lease_transitions, Some(2));
        b.see(Some(taken), now);
        assert!(b.holds());
        assert!(
            a.released(time()).is_some(),
            "a has not seen it: its write conflicts"
        );
    }

    #[test]
    fn lease_of_other_holder_is_taken_when_it_was_unchanged_for_its_duration() {
        let now = Instant::now();
        let mut other = Candidate::new("other".to_owned());
        other.see(None, now);
        // A renewal time far in the past or future says nothing: clocks are not compared.
        let lease = stored(other.attempt(NAME, now, time()), "1");
        let mut mine = Candidate::new("mine".to_owned());
        mine.see(Some(lease.clone()), now);
        let expires = now + LEASE_DURATION;
        assert_eq!(mine.attempt(NAME, now, time()), Attempt::Wait(expires));
        let later = now + Duration::from_secs(14);
        mine.see(Some(lease.clone()), later);
        assert_eq!(mine.attempt(NAME, later, time()), Attempt::Wait(expires));
        let mut renewed = lease;
        renewed.metadata.resource_version = Some("2".to_owned());
        mine.see(Some(renewed), later);
        let attempt = mine.attempt(NAME, expires, time());
        assert_eq!(attempt, Attempt::Wait(later + LEASE_DURATION), "renewed");
        let attempt = mine.attempt(NAME, later + LEASE_DURATION, time());
        let taken = stored(attempt, "3");
        let version = taken.metadata.resource_version;
        assert_eq!(version.as_deref(), Some("3"));
    }
}
