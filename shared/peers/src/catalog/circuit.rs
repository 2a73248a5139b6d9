//! Keeps lookups from a server that does not respond, so that they fail at once.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which the circuit opens.
const FAILURES: u32 = 3;
/// An open circuit lets one lookup through in this time: it notices the server's return.
const TRIAL_INTERVAL: Duration = Duration::from_secs(1);

/// State of the server, from the results of lookups.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    failures: u32,
    /// The last failure.
    why: String,
    /// When the next lookup is let through, while the circuit is open.
    trial_at: Option<Instant>,
}

impl Circuit {
    /// Whether a lookup may be sent, whose result is then recorded; the error is the last failure.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), String> {
        match self.trial_at {
            Some(at) if now < at => Err(format!("{}; it is asked again within a second", self.why)),
            Some(_) => {
                self.trial_at = Some(now + TRIAL_INTERVAL);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Records why the server has not responded; `None`: it has, whatever it said.
    pub(super) fn record(&mut self, failure: Option<&str>, now: Instant) {
        let Some(why) = failure else {
            *self = Self::default();
            return;
        };
        self.failures = self.failures.saturating_add(1);
        why.clone_into(&mut self.why);
        if self.failures >= FAILURES {
            self.trial_at = Some(now + TRIAL_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circuit_after_failures_admits_one_lookup_per_interval_until_one_succeeds() {
        let down = Some("down");
        let mut circuit = Circuit::default();
        let mut now = Instant::now();
        for _ in 0..FAILURES {
            assert_eq!(circuit.admit(now), Ok(()));
            circuit.record(down, now);
        }
        let refused = Err("down; it is asked again within a second".to_owned());
        assert_eq!(circuit.admit(now), refused);
        now += TRIAL_INTERVAL;
        assert_eq!(circuit.admit(now), Ok(()), "a trial");
        assert_eq!(circuit.admit(now), refused, "one at a time");
        circuit.record(down, now);
        assert_eq!(circuit.admit(now), refused);
        now += TRIAL_INTERVAL;
        assert_eq!(circuit.admit(now), Ok(()));
        circuit.record(None, now);
        assert_eq!(circuit.admit(now), Ok(()));
        circuit.record(down, now);
        assert_eq!(circuit.admit(now), Ok(()), "counted from the start");
    }
}
