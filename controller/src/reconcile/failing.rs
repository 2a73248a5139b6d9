//! WorkflowExecutions whose last pass failed: how long to wait before the next one, and which of
//! them no longer go first on their target.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Delays between the passes of an object that fail in a row, with jitter.
const MIN_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_mins(5);
/// Longest delay while the API server does not answer: it will, and then all objects go on.
const MAX_OUTAGE_DELAY: Duration = Duration::from_secs(30);
/// Number of failed passes in a row after which an operator is told, and the object gives up what it
/// has taken.
const STUCK_AFTER: usize = 5;
/// An operator is told again after as many more, which is about an hour.
const TELL_EVERY: usize = 12;

/// Failed passes in a row, by uid of the WorkflowExecution. A pass that fails before the delay after
/// the one before is over, because of a change, does not count.
#[derive(Default)]
pub struct Failing(Mutex<HashMap<String, Failures>>);

struct Failures {
    /// Passes for whose failure the object may be the cause.
    count: usize,
    delays: ExponentialBackoff,
    outage_delays: ExponentialBackoff,
    /// When the next pass is due.
    due: Instant,
}

/// What follows from a failed pass.
#[derive(Debug, Default, PartialEq)]
pub struct Failed {
    /// It is the first one in a row: others on the target no longer wait for this object.
    pub first: bool,
    /// An operator must be told.
    pub tell: bool,
}

impl Failing {
    /// Counts a failed pass; `outage`: the API server does not answer.
    pub fn record(&self, uid: &str, outage: bool) -> Failed {
        let mut failing = self.0.lock();
        let now = Instant::now();
        let first = !failing.contains_key(uid);
        let failures = failing.entry(uid.to_owned()).or_insert_with(|| Failures {
            count: 0,
            delays: delays(MAX_DELAY),
            outage_delays: delays(MAX_OUTAGE_DELAY),
            due: now,
        });
        if now < failures.due {
            return Failed::default();
        }
        let (next, max) = if outage {
            (&mut failures.outage_delays, MAX_OUTAGE_DELAY)
        } else {
            failures.count += 1;
            (&mut failures.delays, MAX_DELAY)
        };
        // The jitter is added to the maximum, too.
        failures.due = now + next.next().unwrap_or(max).min(max);
        let count = failures.count;
        let tell = count == STUCK_AFTER || count > 0 && count.is_multiple_of(TELL_EVERY);
        Failed {
            first,
            tell: tell && !outage,
        }
    }

    /// Forgets the failures of an object: its pass succeeded, or it is gone.
    pub fn clear(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// The delay before the next pass.
    pub fn delay(&self, uid: &str) -> Duration {
        let failing = self.0.lock();
        let due = failing.get(uid).map(|it| it.due - Instant::now());
        due.unwrap_or(MIN_DELAY)
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

fn delays(max: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(MIN_DELAY)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets passes of an object fail when they are due; returns the delays after them, and which of
    /// them an operator is told of.
    async fn fail(
        failing: &Failing,
        uid: &str,
        times: usize,
        outage: bool,
    ) -> (Vec<Duration>, Vec<usize>) {
        let (mut delays, mut told) = (Vec::new(), Vec::new());
        for number in 1..=times {
            if failing.record(uid, outage).tell {
                told.push(number);
            }
            delays.push(failing.delay(uid));
            tokio::time::advance(failing.delay(uid)).await;
        }
        (delays, told)
    }

    #[tokio::test(start_paused = true)]
    async fn delays_of_failing_object_grow_until_a_pass_succeeds() {
        let failing = Failing::default();
        let (delays, told) = fail(&failing, "a", 20, false).await;
        assert_eq!(told, [5, 12]);
        assert!(delays[0] < Duration::from_secs(2), "{delays:?}");
        assert_eq!(delays[19], MAX_DELAY, "{delays:?}");
        assert!(failing.is_stuck("a") && !failing.is_stuck("b"));
        let uids = ["a", "b"].into_iter();
        assert_eq!(failing.among(uids), HashSet::from(["a".to_owned()]));
        failing.clear("a");
        assert!(failing.record("a", false).first);
        assert!(failing.delay("a") < Duration::from_secs(2));
        failing.retain(|uid| uid == "b");
        assert!(failing.among(["a"].into_iter()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn pass_that_fails_before_it_is_due_does_not_count() {
        let failing = Failing::default();
        assert!(failing.record("a", false).first);
        for _ in 0..20 {
            assert_eq!(failing.record("a", false), Failed::default());
        }
        assert!(!failing.is_stuck("a"));
        assert!(failing.delay("a") < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn outage_is_no_fault_of_the_object() {
        let failing = Failing::default();
        let (delays, told) = fail(&failing, "a", 20, true).await;
        assert_eq!(delays[19], MAX_OUTAGE_DELAY, "{delays:?}");
        assert_eq!(told, [] as [usize; 0]);
        assert!(!failing.is_stuck("a"));
    }
}
