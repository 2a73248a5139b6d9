//! WorkflowExecutions whose last pass failed: how long to wait before the next one, and which of
//! them no longer go first on their target.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use parking_lot::Mutex;

/// Delays between the passes of an object that fail in a row, with jitter.
const MIN_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_mins(5);
/// Number of failed passes in a row after which an operator is told, and the object gives up what it
/// has taken.
const STUCK_AFTER: usize = 5;
/// An operator is told again after as many more, which is about an hour.
const TELL_EVERY: usize = 12;

/// Failed passes in a row, by uid of the WorkflowExecution.
#[derive(Default)]
pub struct Failing(Mutex<HashMap<String, Failures>>);

struct Failures {
    count: usize,
    delays: ExponentialBackoff,
}

/// What follows from a failed pass.
#[derive(Debug, PartialEq)]
pub struct Failed {
    /// It is the first one in a row: others on the target no longer wait for this object.
    pub first: bool,
    /// An operator must be told.
    pub tell: bool,
}

impl Failing {
    /// Counts a failed pass.
    pub fn record(&self, uid: &str) -> Failed {
        let mut failing = self.0.lock();
        let failures = failing.entry(uid.to_owned()).or_insert_with(|| Failures {
            count: 0,
            delays: delays(),
        });
        failures.count += 1;
        Failed {
            first: failures.count == 1,
            tell: failures.count == STUCK_AFTER || failures.count.is_multiple_of(TELL_EVERY),
        }
    }

    /// Forgets the failures of an object: its pass succeeded, or it is gone.
    pub fn clear(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// The delay before the next pass.
    pub fn delay(&self, uid: &str) -> Duration {
        let mut failing = self.0.lock();
        let failures = failing.get_mut(uid);
        let delay = failures.and_then(|it| it.delays.next());
        // The jitter is added to the maximum, too.
        delay.unwrap_or(MIN_DELAY).min(MAX_DELAY)
    }

    /// Whether the passes of an object fail again and again.
    pub fn is_stuck(&self, uid: &str) -> bool {
        let failing = self.0.lock();
        failing.get(uid).is_some_and(|it| it.count >= STUCK_AFTER)
    }

    /// Forgets objects that are gone.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0.lock().retain(|uid, _| exists(uid));
    }

    /// Those of `uids` whose last pass failed.
    pub fn among<'a>(&self, uids: impl Iterator<Item = &'a str>) -> HashSet<String> {
        let failing = self.0.lock();
        let found = uids.filter(|uid| failing.contains_key(*uid));
        found.map(str::to_owned).collect()
    }
}

fn delays() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(MIN_DELAY)
        .with_max_delay(MAX_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_of_failing_object_grow_until_a_pass_succeeds() {
        let failing = Failing::default();
        let told: Vec<_> = (1..=12).filter(|_| failing.record("a").tell).collect();
        assert_eq!(told, [5, 12]);
        assert!(failing.is_stuck("a") && !failing.is_stuck("b"));
        let delays: Vec<_> = (0..20).map(|_| failing.delay("a")).collect();
        assert!(delays[0] < Duration::from_secs(2), "{delays:?}");
        assert_eq!(delays[19], MAX_DELAY, "{delays:?}");
        let uids = ["a", "b"].into_iter();
        assert_eq!(failing.among(uids), HashSet::from(["a".to_owned()]));
        failing.clear("a");
        let first = Failed {
            first: true,
            tell: false,
        };
        assert_eq!(failing.record("a"), first);
        assert!(failing.delay("a") < Duration::from_secs(2));
        failing.retain(|uid| uid == "b");
        assert!(failing.among(["a"].into_iter()).is_empty());
    }
}
